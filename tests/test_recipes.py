"""Every recipe trains: on made data in the files of the real one, with small networks, a step or two."""

from collections.abc import Callable
import csv
import math
from pathlib import Path
import re
from typing import Any

import made
import pytest
from safetensors.torch import save_file
import timm
import torchvision
import yaml

from lit_distill.cli import main
from lit_distill.datamodules import Mixing

CONFIGS = Path(__file__).parents[1] / "configs"
SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
SMALL_DATA = ["--data.batch_size=4", "--data.eval_batch_size=4", "--data.num_workers=0"]
SMALL_VIT = [f"--model.student.{flag}" for flag in ("dim=16", "depth=1", "heads=1", "mlp_dim=16", "dim_head=8")]
Patch = pytest.MonkeyPatch
# Two steps on noise teach a teacher nothing, and the callback that measures it says so.
pytestmark = pytest.mark.filterwarnings("ignore:the teacher is right on")


def fit(recipe: str, *flags: str) -> None:
    main(["fit", "--config", str(CONFIGS / f"{recipe}.yaml"), *SHORT, *flags])


def digits(patch: Patch) -> list[str]:
    return []


def dogs_vs_cats(patch: Patch) -> list[str]:
    Path("kaggle.zip").write_bytes(made.kaggle())
    return ["--data.root=kaggle.zip", *SMALL_DATA, *SMALL_VIT]


def dogs_vs_cats_distill(patch: Patch) -> list[str]:
    save_file(torchvision.models.shufflenet_v2_x0_5().state_dict(), "teacher.safetensors")
    network = "torchvision.models.shufflenet_v2_x0_5"
    teacher = [f"--model.teacher.model={network}", "--model.teacher.weights=teacher.safetensors"]
    return [*dogs_vs_cats(patch), *teacher, "--model.teacher.input_size=64"]


def cifar10_teacher(patch: Patch) -> list[str]:
    made.unpack(Path("data"), made.cifar(patch, 10))
    return [*SMALL_DATA, "--model.student.name=test_resnet", "--model.student.img_size=64"]


def cifar100_teacher(patch: Patch) -> list[str]:
    made.unpack(Path("data"), made.cifar(patch, 100, 200, 100))
    return [*SMALL_DATA, "--model.student.name=test_resnet", "--model.student.img_size=64"]


def cifar10(patch: Patch) -> list[str]:
    fit("cifar10_teacher", *cifar10_teacher(patch))
    return [*SMALL_DATA, *SMALL_VIT]


def cifar100(patch: Patch) -> list[str]:
    fit("cifar100_teacher", *cifar100_teacher(patch))
    return [*SMALL_DATA, *SMALL_VIT]


def image_folder_teacher(patch: Patch) -> list[str]:
    made.photos(Path("photos"))
    return [*SMALL_DATA, "--model.student.name=test_resnet", "--model.student.pretrained=false", "--data.image_size=32"]


def image_folder(patch: Patch) -> list[str]:
    fit("image_folder_teacher", *image_folder_teacher(patch))
    small = ["--model.student.pretrained=false", "--model.student.img_size=32", "--model.student.dict_kwargs.depth=1"]
    return [*SMALL_DATA, *small, "--data.image_size=32"]


def imagenet(patch: Patch) -> list[str]:
    if not Path("data").exists():
        made.unpack(Path("data/imagenet"), made.imagenet_archives(patch))
    save_file(timm.create_model("regnety_002", num_classes=4).state_dict(), "teacher.safetensors")
    teacher = ["--model.teacher.model=regnety_002", "--model.teacher.weights=teacher.safetensors"]
    student = ["--model.student.name=deit_tiny_distilled_patch16_224", "--model.student.dict_kwargs.depth=1"]
    return [*SMALL_DATA, *student, *teacher, *sized(32)]


def imagenet_finetune_384(patch: Patch) -> list[str]:
    fit("imagenet_deit_base", *imagenet(patch))
    return [*imagenet(patch), *sized(48)]


def sized(side: int) -> list[str]:
    return [f"--{flag}={side}" for flag in ("data.image_size", "model.student.img_size", "model.teacher.input_size")]


SMOKE: dict[str, Callable[[Patch], list[str]]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cifar100_teacher": cifar100_teacher,
    "cifar10_teacher": cifar10_teacher,
    "digits": digits,
    "digits_teacher": digits,
    "dogs_vs_cats": dogs_vs_cats,
    "dogs_vs_cats_distill": dogs_vs_cats_distill,
    "image_folder": image_folder,
    "image_folder_teacher": image_folder_teacher,
    "imagenet_deit_base": imagenet,
    "imagenet_deit_small": imagenet,
    "imagenet_deit_tiny": imagenet,
    "imagenet_finetune_384": imagenet_finetune_384,
}
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
# Another recipe trains it as its teacher or first stage, or is the same but for the size of a network made small here.
COVERED = {"cifar100_teacher", "cifar10_teacher", "image_folder_teacher", "imagenet_deit_base", "imagenet_deit_small"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in COVERED else name for name in RECIPES]
)
def test_it_trains_and_ends_with_a_checkpoint(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    assert name in SMOKE, f"configs/{name}.yaml has no smoke test: give it one here"
    mixed: list[Any] = []
    plan = Mixing.plan
    monkeypatch.setattr(Mixing, "plan", lambda self, *args: mixed.append(self) or plan(self, *args))
    fit(name, *SMOKE[name](monkeypatch))
    assert bool(mixed) == ("mixing" in recipe(name)["data"]["init_args"])
    folder = Path("logs", name, "version_0")
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    (loss,) = (float(row["train/loss"]) for row in rows if row.get("train/loss"))
    assert math.isfinite(loss)
    distilled = recipe(name)["model"].get("distillation") is not None
    assert bool([row for row in rows if row.get("train/distillation")]) == distilled


@pytest.mark.parametrize("name", RECIPES)
def test_it_says_what_it_is_and_how_to_run_it(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text().split("\n")
    comment = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert len(comment) >= 2
    assert any(re.match(rf"#   python train\.py fit --config configs/{name}\.yaml( |$)", line) for line in comment)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", RECIPES)
def test_the_networks_that_the_smoke_tests_replace_exist(name: str) -> None:
    model = recipe(name)["model"]
    student, teacher = model["student"], (model.get("teacher") or {}).get("init_args", {})
    if student["class_path"] == "lit_distill.TimmStudent":
        known = timm.list_pretrained() if student["init_args"].get("pretrained") else []
        assert student["init_args"]["name"] in [*timm.list_models(), *known]
    taught_by = teacher.get("model")
    if isinstance(taught_by, str) and taught_by.startswith("logs/"):
        assert Path(taught_by).parts[1] in RECIPES
    elif isinstance(taught_by, str) and taught_by.startswith("torchvision."):
        assert torchvision.models.get_weight(teacher["weights"])
    elif isinstance(taught_by, str):
        assert taught_by in timm.list_pretrained()


def recipe(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return content


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_deit_is_trained_as_its_paper_says(size: str) -> None:
    content = recipe(f"imagenet_deit_{size}")
    model, data, trainer = content["model"], content["data"]["init_args"], content["trainer"]
    assert model["student"]["init_args"]["name"] == f"deit_{size}_distilled_patch16_224"
    assert model["student"]["init_args"]["drop_path_rate"] == 0.1
    assert model["teacher"]["init_args"]["model"] == "regnety_160.deit_in1k"
    batch = 4 * data["batch_size"]  # GPUs that the comment names
    optimizer, schedule = model["optimizer"]["init_args"], model["scheduler"]["init_args"]
    assert optimizer == {"lr": pytest.approx(5e-4 * batch / 512), "weight_decay": 0.05}
    steps = -(-1_281_167 // batch)
    assert round(schedule["warmup"] * trainer["max_epochs"] * steps) == 5 * steps
    assert schedule["min_ratio"] * optimizer["lr"] == pytest.approx(1e-5)
    assert model["criterion"]["init_args"]["label_smoothing"] == 0.1
    assert (model["distillation"]["class_path"], model["alpha"]) == ("lit_distill.HardDistillation", 0.5)
    assert data["augmentation"]["policy"] == "rand-m9-mstd0.5-inc1"
    assert (data["augmentation"]["erasing"], data["mixing"]) == (0.25, {"mixup": 0.8, "cutmix": 1.0})
    assert (data["repeats"], trainer["max_epochs"], data["image_size"]) == (3, 300, 224)


def test_the_recipes_of_one_network_differ_in_nothing_but_their_teacher() -> None:
    plain, taught = recipe("dogs_vs_cats"), recipe("dogs_vs_cats_distill")
    for key in ("teacher", "distillation", "alpha"):
        assert taught["model"].pop(key)
    taught["trainer"]["logger"] = plain["trainer"]["logger"]
    assert plain == taught
    origin = {"image_size": 224, "patch_size": 32, "dim": 1024, "depth": 6, "heads": 8, "mlp_dim": 2048}
    assert origin.items() <= plain["model"]["student"]["init_args"].items()
    groups = recipe("dogs_vs_cats_distill")["model"]["teacher"]["init_args"]["classes"]
    assert groups == {"cat": list(range(281, 286)), "dog": list(range(151, 269))}
