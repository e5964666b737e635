"""The command line, and the only room that may import every other one."""

from lit_distill.cli.app import DistillCLI
from lit_distill.cli.entry import main

__all__ = ["DistillCLI", "main"]
