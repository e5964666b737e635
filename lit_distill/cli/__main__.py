"""``python -m lit_distill.cli``, the same as ``lit-distill``."""

from lit_distill.cli import main

if __name__ == "__main__":
    main()
