"""The runs of ``distill``: which data, networks and rates suit a folder of photos."""

from collections.abc import Collection, Sequence
import hashlib
from pathlib import Path
import re
import shutil
from typing import Any, NamedTuple, TypeGuard

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule
from timm import is_model, list_models
from torch import nn

from lit_distill import losses
from lit_distill.agreement import check_class_counts
from lit_distill.callbacks import TeacherCaching
from lit_distill.checks import did_you_mean, some_of
from lit_distill.cli import sizing
from lit_distill.cli.from_checkpoint import instantiated
from lit_distill.cli.sizing import Description
from lit_distill.datamodules import FilesDataModule, ImageDataModule
from lit_distill.models import FrozenTeacher
from lit_distill.models.imagenet import imagenet_groups
from lit_distill.models.packaged import packaged_bytes
from lit_distill.models.sources import source_of
from lit_distill.models.timm_net import timm_net, weights_at_hand
from lit_distill.models.trust import build


class SizedData(ImageDataModule):
    """A data module that says how large its images are; somebody else's may be of any other class."""

    image_size: int


def plan_data(chosen: Namespace, given: Collection[str]) -> tuple[Description, SizedData]:
    """Choose what nobody has chosen of the data.

    Args:
        chosen: The class and its arguments.
        given: Names of the arguments that the user has given.

    Returns:
        The complete description, and the data module.

    Raises:
        ValueError: If the data does not say how many classes or pixels it has.
    """
    description = chosen.as_dict()
    arguments = description["init_args"]
    data = _made_data(description)
    if isinstance(data, FilesDataModule):
        size = arguments["image_size"] if "image_size" in given else sizing.image_size_of(data)
        fitting = {
            "image_size": size,
            "augmentation": sizing.augmentation_for(size),
            "batch_size": sizing.batch_size_for(len(data.splits["train"].files)),
        }
        arguments |= {name: value for name, value in fitting.items() if name not in given}
        data = _made_data(description)
    # A run that was cut off continues from any folder.
    roots = {name: value for name, value in arguments.items() if name.endswith("root") and value is not None}
    arguments |= {name: str(Path(root).resolve()) for name, root in roots.items()}
    missing = [name for name in ("num_classes", "image_size") if getattr(data, name, None) is None]
    if missing:
        raise ValueError(f"{type(data).__name__} has no {missing[0]}, from which the networks are sized")
    return description, data


def _made_data(description: Description) -> SizedData:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    data: SizedData = instantiated(parser, {"data": description}).data  # or a foreign one with its attributes
    return data


def digests_of_photos(data: LightningDataModule) -> dict[str, dict[str, str]]:
    """Return a digest of each training and validation photo, by split and name, after they have been read once."""
    if not isinstance(data, FilesDataModule):
        return {}
    return {split: data.contents(split) for split in ("train", "val") if split in data.splits}


class GivenTeacher(NamedTuple):
    """A teacher that the user names: its name or real path, its classes, and a digest that changes with its weights."""

    model: str
    num_classes: int | None
    digest: str


def find_teacher(name: str) -> GivenTeacher:
    """Load the teacher of that name, or at that path, to find out now if it is not there.

    Raises:
        ValueError: If there is none, or its weights cannot be had.
    """
    if _is_name_of_network(name):
        digest, model = hashlib.sha256(packaged_bytes(name) or b"").hexdigest(), name
    else:
        digest, model = digest_of_teacher(name), str(Path(name).resolve())
    return GivenTeacher(model, FrozenTeacher(name).num_classes, digest)


def plan_given_teacher(given: GivenTeacher, choices: Namespace, data: SizedData) -> Description:
    """Return the description of a teacher that the user names.

    Raises:
        ValueError: If its classes are not those of the data, and nothing says which of them stand for these.
    """
    arguments: dict[str, Any] = {"model": given.model}
    if choices.teacher_classes:
        arguments["classes"] = choices.teacher_classes
    elif _is_name_of_network(given.model) and given.num_classes != data.num_classes:
        arguments["classes"] = _known_groups(given, data)
    teacher = FrozenTeacher(**arguments)
    names = getattr(data, "class_names", None)
    if names is not None:
        teacher.set_class_names(list(map(str, names)))
    check_class_counts(nn.Identity(), teacher, data, nn.Identity())
    return {"class_path": "lit_distill.FrozenTeacher", "init_args": arguments}


def _is_name_of_network(teacher: str) -> bool:
    """Tell whether a teacher is pretrained weights by timm's or torchvision's name of their network."""
    source = source_of(teacher)
    return source == "torchvision" or (source == "timm" and is_model(teacher))


def _known_groups(teacher: GivenTeacher, data: SizedData) -> dict[str, str]:
    names = list(map(str, getattr(data, "class_names", None) or []))
    groups = imagenet_groups(names) if teacher.num_classes == 1000 else None
    if groups is None:
        example = ", ".join(f"{word}: NUMBERS" for word in names[:3]) + ", ..." * (len(names) > 3)
        raise ValueError(
            f"{teacher.model} tells {teacher.num_classes} classes apart, and the data has {data.num_classes} "
            f"({some_of(names)}): say which of them stand for each with --teacher_classes='{{{example}}}', NUMBERS "
            "such as 281-285"
        )
    stand = some_of((f"{name} is {numbers}" for name, numbers in groups.items()), 10)
    print(f"{teacher.model}: by their names, of its classes {stand}; --teacher_classes says otherwise", flush=True)
    return groups


def digest_of_teacher(path: str) -> str:
    """Return what changes when a checkpoint or an exported folder does.

    Raises:
        ValueError: If there is none.
    """
    exported = Path(path, "student.safetensors")
    file = exported if exported.is_file() else Path(path)
    if not file.is_file():
        hint = "" if Path(path).suffix else did_you_mean(path, list_models(), cutoff=0.8)
        expected = "expected a checkpoint or an exported folder, or a network by timm's name"
        raise ValueError(f"there is no teacher at {path}: {hint or expected}")
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def teacher_net(choices: Namespace, data: SizedData) -> str:
    """Return the network that becomes the teacher: the one given, or one whose pretrained weights are at hand."""
    if choices.teacher_net:
        return str(choices.teacher_net)
    at_hand = [name for name in ("resnet18", "tf_efficientnet_lite0") if _is_at_hand(name, choices, data)]
    return next(iter(at_hand), "resnet18")


def _is_at_hand(name: str, choices: Namespace, data: SizedData) -> bool:
    return choices.pretrained is not False and _channels(data) == 3 and weights_at_hand(name)


def plan_teacher(choices: Namespace, data: SizedData) -> Description:
    """Return the model of the teacher's run.

    Raises:
        ValueError: If there is no such network.
    """
    pretrained = _is_pretrained(choices.teacher_net, choices, data)
    net = sizing.teacher_for(choices.teacher_net, data.image_size, _channels(data), pretrained)
    make_network(net, data)
    return {"student": net, "optimizer": _adamw(3e-4 if pretrained else 1e-3)}


def plan_student(choices: Namespace, data: SizedData, teacher: Description) -> Description:
    """Return the model of the student's run, which learns from ``teacher``."""
    net, rate = sizing.student_for(data.image_size, _channels(data)), 1e-3
    if choices.student:
        pretrained = _is_pretrained(choices.student, choices, data)
        net = sizing.timm_student(choices.student, _channels(data), pretrained)
        rate = 2e-4 if pretrained else 1e-3
    return {
        "student": net,
        "teacher": teacher,
        "criterion": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}},
        "distillation": {"class_path": "lit_distill.HardDistillation"},
        "optimizer": _adamw(rate),
    }


def retrospection_for(epochs: int) -> Description:
    """Return the part of a configuration that turns retrospection on, if there are epochs enough for it."""
    if epochs < 10:
        return {}
    name = "lit_distill.callbacks.LearningWithRetrospection"
    return {"retrospection": {"class_path": name, "init_args": {"interval": 5}}}


class CacheChoice(NamedTuple):
    """A part of the student's configuration about the teacher's cache, and a line that says so."""

    part: Description
    note: str = ""


def teacher_caches_for(epochs: int, data: SizedData, output: Path, flags: Sequence[str]) -> list[CacheChoice]:
    """Return how the student's run may keep the teacher's answers, the best way first.

    Unless the flags say otherwise, it keeps those of `sizing.views_for` views if there are more epochs and the disk
    has room.

    Args:
        epochs: Epochs of the run.
        data: The images.
        output: The folder of all runs, which may not exist yet.
        flags: Flags of ``fit``.

    Raises:
        ValueError: If the flags ask for too few views, or for a cache without a number of views.
    """
    given = "\n".join(flags)
    views = re.findall(r"--teacher_cache\.(?:init_args\.)?views=(-?\d+)", given)
    if views:
        # Raises before a teacher is trained.
        TeacherCaching(int(views[-1]), single_view="single_view=true" in given.lower())
        return [CacheChoice(_caching(int(views[-1])))]
    is_asked_for = "--teacher_cache." in given
    kept_views = sizing.views_for(epochs, getattr(data, "repeats", 1))
    if "--teacher_cache=" in given or epochs <= kept_views or not _can_be_cached(data, given):
        if is_asked_for:
            raise ValueError(
                f"say how many views the teacher's cache keeps, such as --teacher_cache.views={kept_views}"
            )
        return [CacheChoice({})]
    folder = re.findall(r"--teacher_cache\.(?:init_args\.)?folder=(.*)", given)
    place = Path(folder[-1]) if folder else output / "teacher_cache"
    images = [len(data.splits[split].files) for split in ("train", "val") if split in data.splits]
    size = sizing.cache_bytes(images[0], sum(images[1:]), data.num_classes, kept_views)
    free = shutil.disk_usage(next(each for each in (place, *place.absolute().parents) if each.exists())).free
    free += sum(path.stat().st_size for path in place.glob("*/*.answers"))  # what is there is not needed again
    kept = f"the teacher's answers to {kept_views} views of each image"
    cached = CacheChoice(
        _caching(kept_views),
        f"teacher cache: the student's run keeps {kept}, at most {size / 1e6:.3g} MB, in {place}, and asks the teacher "
        f"in {kept_views} of {epochs} epochs; --teacher_cache=null asks it in all of them",
    )
    too_large = CacheChoice(
        {},
        f"no teacher cache: {kept} would take {size / 1e6:.3g} MB, and {place} has {free / 1e6:.3g} MB free; "
        f"--teacher_cache.views={kept_views} --teacher_cache.top_k=8 takes less",
    )
    return [cached, CacheChoice({})] if is_asked_for or 2 * size <= free else [too_large, cached]


def _caching(views: int) -> Description:
    return {"teacher_cache": {"class_path": "lit_distill.callbacks.TeacherCaching", "init_args": {"views": views}}}


def _can_be_cached(data: SizedData, flags: str) -> TypeGuard[FilesDataModule]:
    """Tell whether images are keyed by their views, and all losses are on logits, for all that is known of them."""
    key = r"--model\.distillation(?:\.\w+\.loss)?(?:\.class_path)?="
    named = re.findall(f"{key}(.*)", flags)
    is_ours = all(hasattr(losses, name.rpartition(".")[2]) for name in named)
    has_views = isinstance(data, FilesDataModule) and data.views is None
    return has_views and is_ours and "--trainer.overfit_batches=" not in flags


def make_network(description: Description, data: SizedData) -> nn.Module:
    """Make a network, so that a name or a size that does not exist is found out now."""
    arguments = {**description["init_args"], "num_classes": data.num_classes}
    if description["class_path"].endswith("TimmStudent"):
        extra = {key: value for key, value in arguments.items() if key == "in_chans"}
        return timm_net(arguments["name"], data.num_classes, args=extra)
    arguments["image_size"] = data.image_size
    network: nn.Module = build({**description, "init_args": arguments}, "this command")
    return network


def _is_pretrained(name: str, choices: Namespace, data: SizedData) -> bool:
    wanted = weights_at_hand(name) if choices.pretrained is None else choices.pretrained
    return bool(wanted) and _channels(data) == 3  # as the photos that it was pretrained on


def _channels(data: SizedData) -> int:
    return getattr(data, "channels", 3)


def _adamw(rate: float) -> Description:
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": rate, "weight_decay": 0.05}}
