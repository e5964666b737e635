"""The command line, and the only room that may import every other one."""

from typing import TYPE_CHECKING

from lit_distill._lazy import attach
from lit_distill.cli.entry import main

if TYPE_CHECKING:
    from lit_distill.cli.app import DistillCLI
else:  # Lightning takes seconds to import, and `export` and `predict STUDENT PHOTO` do without
    __getattr__, __dir__ = attach(__name__, {"app": ["DistillCLI"]})

__all__ = ["DistillCLI", "main"]
