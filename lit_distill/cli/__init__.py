"""The command line, and the only room that may import every other one."""

from lit_distill.cli.app import DistillCLI, main

__all__ = ["DistillCLI", "main"]
