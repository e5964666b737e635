"""The command line, and the only room that may import every other one."""

from lit_distill._lazy import import_all
from lit_distill.cli.app import DistillCLI
from lit_distill.cli.entry import main

__all__ = ["DistillCLI", "main"]

import_all("lit_distill", "lit_distill.models", "lit_distill.losses", "lit_distill.datamodules")
