"""The command line from a checkout: ``python train.py fit --config configs/digits.yaml``."""

from lit_distill.cli import main

if __name__ == "__main__":
    main()
