"""What an import brings with it, and that no two modules import each other."""

import ast
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {ROOT / "lit_distill": "lit_distill"}
ROOMS |= {ROOT / name: f"lit_distill.{name}" for name in ("callbacks", "datamodules")}
MODULES = {
    ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for folder, package in ROOMS.items()
    for path in sorted(folder.rglob("*.py"))
}


def imported_by(source: str, modules: set[str]) -> set[str]:
    """Return which of ``modules`` a source imports anywhere: at the top, for type checkers, or inside a function."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # A name is a submodule, or something that the package itself imports.
            imported |= {name if name in modules else node.module for name in names}
    return imported & modules


def find_circle(sources: dict[str, str]) -> list[str]:
    graph = {name: imported_by(source, set(sources)) for name, source in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_two_modules_import_each_other() -> None:
    circle = find_circle({name: path.read_text() for name, path in MODULES.items()})
    assert circle == [], " -> ".join(circle)


@pytest.mark.parametrize(
    "closing",
    [
        "import a.x",
        "from a.x import f",
        "from a import x",
        "if TYPE_CHECKING:\n    from a.x import f",
        "def g():\n    from a.x import f",
    ],
)
def test_a_circle_is_found_wherever_it_is_closed(closing: str) -> None:
    sources = {"a": "", "a.x": "from a.y import g", "a.y": "import a.z", "a.z": "import os"}
    assert find_circle(sources) == []
    circle = find_circle({**sources, "a.z": closing})
    assert circle[0] == circle[-1]
    assert set(circle) == {"a.x", "a.y", "a.z"}


HEAVY = ["timm", "torchvision", "sklearn", "einops"]
STRANGERS_PROGRAM = f"""
import sys
import torch

def check(*names):
    assert not set(names) & (set(sys.modules) - before), set(names) & set(sys.modules)

before = set(sys.modules)
import lit_distill.losses
from lit_distill import SoftDistillation
check("lightning", *{HEAVY})

import lightning.pytorch, torchmetrics  # which import torchvision themselves
before = set(sys.modules)
import lit_distill.callbacks
from lit_distill.datamodules import IndexedDataset
check(*{HEAVY})

from jsonargparse import ArgumentParser
parser = ArgumentParser()
parser.add_subclass_arguments(torch.nn.Module, "student")
arguments = parser.parse_args(["--student=lit_distill.DigitsCNN"])
print(arguments.student.class_path, type(parser.instantiate_classes(arguments).student).__name__)
"""


def test_a_strangers_project_imports_only_what_it_uses_and_finds_a_class_by_its_path() -> None:
    done = subprocess.run([sys.executable, "-c", STRANGERS_PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["lit_distill.DigitsCNN", "DigitsCNN"]


LAZY = ["lit_distill", "lit_distill.datamodules", "lit_distill.models"]


@pytest.mark.parametrize("name", LAZY)
def test_what_is_imported_on_first_use_is_complete(name: str) -> None:
    package = import_module(name)
    assert set(package.__all__) < set(dir(package))
    assert all(getattr(package, public) is not None for public in package.__all__)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'Nothing'"):
        package.Nothing  # noqa: B018
    # What type checkers read is what is imported.
    statements = [node for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.ImportFrom)]
    for statement in statements:
        for alias in statement.names:
            if alias.name in package.__all__:
                assert getattr(package, alias.name) is getattr(import_module(statement.module), alias.name)
    assert {alias.name for statement in statements for alias in statement.names} >= set(package.__all__)
