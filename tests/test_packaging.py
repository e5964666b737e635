"""The mapping of top-level folders into one package: complete, buildable, and importable from elsewhere."""

import json
from pathlib import Path
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_packages_are_the_folders_of_the_tree() -> None:
    found = {"lit_distill"}
    for folder in (ROOT / "lit_distill").rglob("__init__.py"):
        found.add(".".join(folder.parent.relative_to(ROOT).parts))
    for name in ("callbacks", "configs", "datamodules"):
        for folder in (ROOT / name).rglob("__init__.py"):
            found.add(".".join(["lit_distill", *folder.parent.relative_to(ROOT).parts]))
    assert set(SETUPTOOLS["packages"]) == found
    assert SETUPTOOLS["package-dir"] == {
        f"lit_distill.{name}": name for name in ("callbacks", "configs", "datamodules")
    }


def test_the_links_for_type_checkers_cover_the_package() -> None:
    links = ROOT / ".typing" / "lit_distill"
    own = {path.name for path in (ROOT / "lit_distill").iterdir() if path.name != "__pycache__"}
    linked = {path.name for path in links.iterdir() if path.name != "__pycache__"}
    assert linked == own | {"callbacks", "configs", "datamodules"}
    for path in links.iterdir():
        assert path.is_symlink()
        assert path.resolve().exists()


def test_an_editor_finds_the_mapped_packages(tmp_path) -> None:
    names = {"callbacks": "LearningWithRetrospection", "datamodules": "DigitsDataModule"}
    lines = ["import lit_distill.configs"]
    lines += [f"from lit_distill.{package} import {name}\nreveal_type({name})" for package, name in names.items()]
    (tmp_path / "script.py").write_text("\n".join(lines))
    checker = shutil.which("basedpyright", path=Path(sys.executable).parent)
    if checker is None:
        pytest.skip("basedpyright is not installed")
    command = [checker, "--outputjson", str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    messages = [found["message"] for found in json.loads(done.stdout)["generalDiagnostics"]]
    expected = [f'Type of "{name}" is "type[{name}]"' for name in names.values()]
    assert messages == expected


@pytest.mark.slow
def test_the_wheel_holds_everything_and_imports_from_outside_the_checkout(tmp_path) -> None:
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("lit_distill", "callbacks", "configs", "datamodules"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = source / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lit_distill"}
    expected = {f"lit_distill/{p.relative_to(ROOT)}" for p in (ROOT / "configs").glob("*.yaml")}
    expected |= {"lit_distill/py.typed", "lit_distill/models/digits_cnn.safetensors"}
    assert expected <= set(names)
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import lit_distill, lit_distill.callbacks;"
        "assert lit_distill.__file__.startswith(sys.path[0]), lit_distill.__file__;"
        "assert lit_distill.callbacks.__file__.startswith(sys.path[0]), lit_distill.callbacks.__file__;"
        "from lit_distill.cli import main; main(['fit', '--config', 'digits', '--trainer.fast_dev_run=true'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
