"""The command line from a checkout: ``python train.py fit --config configs/digits.yaml``."""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # quietly, while the imports below take their seconds

from lit_distill.cli import main

if __name__ == "__main__":
    main()
