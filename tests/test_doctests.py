"""Every example in a docstring runs."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"lit_distill": ROOT / "lit_distill"}
ROOMS |= {f"lit_distill.{name}": ROOT / name for name in ("callbacks", "datamodules")}
MODULES = sorted(
    ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
    for package, folder in ROOMS.items()
    for path in folder.rglob("*.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failures == 0


PACKAGES = [name for name in MODULES if hasattr(import_module(name), "__all__")]


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_public_is_documented(name: str) -> None:
    module = import_module(name)
    assert [thing for thing in module.__all__ if not getattr(module, thing).__doc__] == []
