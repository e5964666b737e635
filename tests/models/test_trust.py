"""A file that names what it may not name runs nothing, wherever in the description the name stands."""

from collections.abc import Callable
import json
from pathlib import Path
import sys
from typing import Any

import pytest
from safetensors.torch import save_file
import torch
from torch import nn

from lit_distill import DistillableViT, FrozenTeacher, LitDistiller, load_student
from lit_distill.datamodules import DigitsDataModule
from lit_distill.models.described import check_arguments
from lit_distill.models.export import export_student
from lit_distill.models.trust import build, trusting

VIT: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_classes": 5, "dim": 8, "depth": 1, "heads": 2}
VIT |= {"mlp_dim": 8}

# A module beside the user: importing it leaves a trace, and so does all that it has.
EVIL = """
from pathlib import Path
from torch import nn
def touch(*args, **kwargs):
    Path({trace!r}).touch()
touch()
class Net(nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        touch()
"""


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once anything has run."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "evil.py").write_text(EVIL.format(trace=str(tmp_path / "trace")))
    monkeypatch.syspath_prepend(tmp_path / "beside")
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return tmp_path / "trace"


def callables(trace: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        "os.system": ("os.system", {"command": f"touch {trace}"}),
        "a class": ("subprocess.Popen", {"args": ["touch", str(trace)]}),
        "a module beside": ("evil.Net", {}),
        "through a package": ("lit_distill.models.saved.Path.touch", {"self": str(trace)}),
    }


def places(name: str, args: dict[str, Any]) -> dict[str, Any]:
    teacher = {"class_path": "lit_distill.FrozenTeacher", "init_args": {"model": name, "model_args": args}}
    return {
        "the student": {"class_path": name, "init_args": args},
        "a part of it": {
            "class_path": "lit_distill.DistillableViT",
            "init_args": {**VIT, "encoder": {"class_path": name, "init_args": args}},
        },
        "a teacher's name": teacher,
        "a list within a part": {
            "class_path": "lit_distill.DistillableViT",
            "dict_kwargs": {**VIT, "encoder": {"class_path": "torch.nn.Sequential", "init_args": {"x": [teacher]}}},
        },
    }


def as_checkpoint(described: Any, folder: Path) -> Path:
    state = {f"student.{key}": value for key, value in DistillableViT(**VIT).state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"student": described}}, folder / "hostile.ckpt")
    return folder / "hostile.ckpt"


def as_folder(described: Any, folder: Path) -> Path:
    (folder / "hostile").mkdir()
    save_file(DistillableViT(**VIT).state_dict(), folder / "hostile" / "student.safetensors")
    card = {"student": described, "image_shape": [3, 8, 8], "preprocessing": None}
    (folder / "hostile" / "student.json").write_text(json.dumps(card))
    return folder / "hostile"


def test_a_file_cannot_give_trust(tmp_path, trace: Path) -> None:
    (tmp_path / "inner").mkdir()
    inner = as_folder({"class_path": "evil.Net"}, tmp_path / "inner")
    teacher = {"class_path": "lit_distill.FrozenTeacher", "init_args": {"model": str(inner), "trust": ["evil"]}}
    with pytest.raises(ValueError, match=r"refused .*hostile: it asks to trust evil, which only you can say"):
        load_student(as_folder(teacher, tmp_path))
    with pytest.raises(ValueError, match=r"refused x.ckpt: it asks to trust \['evil'\]"):
        check_arguments({"teacher": teacher}, LitDistiller, "x.ckpt")
    assert not trace.exists()


@pytest.mark.parametrize("load", [load_student, lambda path: FrozenTeacher(str(path))], ids=["student", "teacher"])
@pytest.mark.parametrize("write", [as_checkpoint, as_folder], ids=["checkpoint", "folder"])
@pytest.mark.parametrize("place", places("", {}))
@pytest.mark.parametrize("kind", callables(Path()))
def test_nothing_that_a_file_names_runs(
    tmp_path, trace: Path, kind: str, place: str, write: Callable[..., Path], load: Callable[..., Any]
) -> None:
    path = write(places(*callables(trace)[kind])[place], tmp_path)
    with pytest.raises(ValueError, match=r"refused .*hostile"):
        load(path)
    assert not trace.exists()


@pytest.mark.parametrize("kind", callables(Path()))
@pytest.mark.parametrize("place", places("", {}))
def test_nor_does_lightnings_way_of_loading_run_it(tmp_path, trace: Path, kind: str, place: str) -> None:
    path = as_checkpoint(places(*callables(trace)[kind])[place], tmp_path)
    state = torch.load(path, weights_only=True)
    state["hyper_parameters"]["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
    torch.save({**state, "pytorch-lightning_version": "2.6.6"}, path)
    with pytest.raises(ValueError, match=r"refused .*hostile"):
        LitDistiller.load_from_checkpoint(path)
    assert not trace.exists()


def test_nor_does_a_data_module_from_a_file(tmp_path, trace: Path) -> None:
    state = {"state_dict": {}, "pytorch-lightning_version": "2.6.6"}
    named = {"seed": 3, "train_transform": {"class_path": "evil.Net"}}
    for hyper_parameters in (named, {**named, "_instantiator": "lightning.pytorch.cli.instantiate_module"}):
        torch.save({**state, "datamodule_hyper_parameters": hyper_parameters}, tmp_path / "hostile.ckpt")
        with pytest.raises(ValueError, match=r"refused .*hostile.ckpt: it names evil.Net"):
            DigitsDataModule.load_from_checkpoint(tmp_path / "hostile.ckpt")
    torch.save({**state, "datamodule_hyper_parameters": {"seed": 3}}, tmp_path / "fine.ckpt")
    assert DigitsDataModule.load_from_checkpoint(tmp_path / "fine.ckpt").seed == 3
    assert not trace.exists()


def test_a_package_of_the_users_needs_the_users_word(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, width=3):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(192, width))\n"
        "def make(width=3):\n"
        "    return Net(width)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_package  # type: ignore[import-not-found]

    student = my_package.Net(5)
    card = {"student": {"class_path": "my_package.Net", "init_args": {"width": 5}}}
    export_student(student, tmp_path / "out", card, [3, 8, 8])  # the student in hand is word enough
    with pytest.raises(ValueError, match=r"add trust=\['my_package'\] to the call, or --trust my_package"):
        load_student(tmp_path / "out")
    for trust in ("my_package", ["my_package"], ("torch", "my_package")):
        assert torch.equal(load_student(tmp_path / "out", trust=trust)[1].weight, student[1].weight)
    assert FrozenTeacher(str(tmp_path / "out"), trust=["my_package"]).num_classes == 5
    # The word is for modules alone, for this call alone, and for that package alone.
    with trusting("my_package"):
        for name in ("my_package.make", "my_package.nn", "os.system", "my_packages.Net"):
            with pytest.raises(ValueError, match="refused a file"):
                build({"class_path": name}, "a file")
    with pytest.raises(ValueError, match="refused"):
        load_student(tmp_path / "out")
    with pytest.raises(ValueError, match="cannot trust 'no_such_package': there is no such package, neither installed"):
        load_student(tmp_path / "out", trust=["no_such_package"])


def test_a_description_starts_from_no_other_file() -> None:
    described = {"class_path": "lit_distill.TimmStudent", "init_args": {"name": "resnet10t", "num_classes": 2}}
    described["init_args"] |= {"pretrained": True, "weights": "nowhere.pt"}  # type: ignore[operator]
    student = build({**described, "dict_kwargs": {"checkpoint_path": "nowhere.pth"}}, "a file")
    assert isinstance(student, nn.Module)
    with pytest.raises(ValueError, match=r"give the file x.pth as weights="):
        FrozenTeacher("resnet10t", model_args={"checkpoint_path": "x.pth"})
