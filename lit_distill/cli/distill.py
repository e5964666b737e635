"""``lit-distill distill``: from a folder of photos to an exported student."""

from collections.abc import Mapping, Sequence
import hashlib
import json
from pathlib import Path
import re
import shlex
import shutil
import tempfile
import time
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from lightning.pytorch import LightningDataModule, Trainer

from lit_distill.cli import sizing
from lit_distill.cli.errors import one_line
from lit_distill.cli.export import export
from lit_distill.cli.outputs import beside
from lit_distill.cli.run_config import TRUST, instantiated
from lit_distill.cli.stage import Stage
from lit_distill.datamodules import FilesDataModule
from lit_distill.datamodules.walk import printable
from lit_distill.losses import HardDistillation
from lit_distill.models import load_safely, load_student
from lit_distill.models.card import card_of
from lit_distill.models.timm_net import timm_net, weights_at_hand
from lit_distill.models.trust import build, trusting
from lit_distill.module import LitDistiller

_FOLDER = "lit_distill.datamodules.ImageFolderDataModule"
_STEPS = 8  # of a dry run
_FOR_BOTH = ("--trainer.", "--num_threads")
_FOR_STUDENT = ("--model.", "--retrospection", "--checkpoint.")


def run(args: Sequence[str]) -> None:
    """Run the command with the arguments that follow ``lit-distill distill``."""
    args, steps = _dry_run(_folder_named(args))
    own = [arg for arg in args if not arg.startswith((*_FOR_BOTH, *_FOR_STUDENT))]
    both = [arg for arg in args if arg.startswith(_FOR_BOTH)]
    students = [arg for arg in args if arg.startswith(_FOR_STUDENT)]
    loose = [arg for arg in both + students if "=" not in arg]
    if loose:
        raise ValueError(f"{loose[0]} is passed on to fit, and needs its value in the same word: {loose[0]}=...")
    parser = _parser()
    if not any(arg == "--data" or arg.startswith("--data=") for arg in own):
        own = [f"--data={_FOLDER}", *own]
    try:
        config = parser.parse_args(own)
    except Exception as error:
        if "required" in str(error) and "root" in str(error):
            raise ValueError("required: --data.root, the folder of your photos") from error
        raise ValueError(one_line(error, parser._option_string_actions)) from error
    given = {arg.partition("=")[0].replace(".init_args", "") for arg in own}
    word = [f"--trust={json.dumps(config.trust)}"] if config.trust else []
    named = re.findall(r"--model\.student(?:\.class_path)?=(\w+)\.", " ".join(students))
    with trusting([*config.trust, *named]):  # a student that is named here is the user's word
        if not steps:
            distill(config, given, [*both, *word], students)
            return
        with tempfile.TemporaryDirectory() as folder:
            config.output = Path(folder)
            distill(config, given, [*both, *word], students, steps)


def _folder_named(args: Sequence[str]) -> list[str]:
    """Return the arguments with the folder of the photos as ``--data.root``, whichever way it is given."""
    alone = (
        place
        for place, arg in enumerate(args)
        if arg[:1] != "-" and (place == 0 or re.match("[^-]|.*=", args[place - 1]))
    )
    named = next(alone, None)
    return [
        f"--data.root={arg}" if place == named else re.sub(r"^--root(?==|$)", "--data.root", arg)
        for place, arg in enumerate(args)
    ]


def _dry_run(args: Sequence[str]) -> tuple[list[str], int]:
    """Return the arguments without ``--trainer.fast_dev_run``, and the steps of a dry run, 0 if none is asked for."""
    flag = "--trainer.fast_dev_run="
    values = [arg.removeprefix(flag).lower() for arg in args if arg.startswith(flag)]
    known = {"true": _STEPS, "1": _STEPS, "false": 0, "0": 0, "null": 0}
    if values and values[-1] not in known and not values[-1].isdecimal():
        raise ValueError(f"{flag[:-1]} must be true, false or a number of steps, got {values[-1]}")
    steps = 0 if not values else known[values[-1]] if values[-1] in known else int(values[-1])
    return [arg for arg in args if not arg.startswith(flag)], steps


def distill(
    config: Any, given: set[str], both: Sequence[str] = (), students: Sequence[str] = (), steps: int = 0
) -> None:
    """Make the teacher, the student and the export, each unless it is there, and say where they are.

    With ``steps``, each run takes so many steps and no more, and a line says how long all of it would take.
    """
    began = time.monotonic()
    if config.teacher:
        _digest_of_file(config.teacher)
        load_student(config.teacher)  # what is wrong with it is to be told before anything is read or trained
    description, data = _data(config.data, given)
    root = description["init_args"].get("root")
    output = config.output or beside(Path("distilled") / printable(Path(root or type(data).__name__).name), root)
    if beside(output, root) != output:
        raise ValueError(f"{output} is in the data folder: choose another --output, such as {beside(output, root)}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: choose another folder with --output")
    size, channels = data.image_size, getattr(data, "channels", 3)

    def pretrained(name: str) -> bool:
        wanted = weights_at_hand(name) if config.pretrained is None else bool(config.pretrained)
        return wanted and channels == 3

    common = {"seed_everything": config.seed, "data": description}
    photos = _photos_of(data)

    student: dict[str, Any] = sizing.student_for(size, channels)
    if config.student:
        arguments = {"name": config.student, "pretrained": pretrained(config.student)}
        student = {"class_path": "lit_distill.TimmStudent", "init_args": arguments}
        student["init_args"] |= {} if channels == 3 else {"in_chans": channels}
    teacher: Stage | None = None
    if config.teacher:
        source, whose = Path(config.teacher).resolve(), _digest_of_file(config.teacher)
    else:
        start = pretrained(config.teacher_net)
        net = sizing.teacher_for(config.teacher_net, size, channels, start)
        _try(net, data)
        first = {**common, "model": {"student": net, "optimizer": _adamw(3e-4 if start else 1e-3)}}
        teacher = Stage(output, "teacher", first, config.teacher_epochs, both, {"photos": photos})
        source, whose = Path("<teacher>"), teacher.folder.name
    from_weights = student["init_args"].get("pretrained", False)
    network = _try(student, data)
    model: dict[str, Any] = {
        "student": student,
        "teacher": {"class_path": "lit_distill.FrozenTeacher", "init_args": {"model": str(source)}},
        "criterion": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}},
        "distillation": {"class_path": "lit_distill.HardDistillation"},
        "optimizer": _adamw(2e-4 if from_weights else 1e-3),
    }
    recipe = {**common, "model": model}
    if config.epochs >= 10:
        recipe["retrospection"] = {
            "class_path": "lit_distill.callbacks.LearningWithRetrospection",
            "init_args": {"interval": 5},
        }
    # What of it is wrong is to be said before a teacher is trained.
    second = Stage(output, "student", recipe, config.epochs, [*both, *students], {"photos": photos, "teacher": whose})

    count = len(data.splits["train"].files) if isinstance(data, FilesDataModule) else None
    print(
        f"{printable(str(config.data.init_args.get('root', type(data).__name__)))}: "
        + (f"{count} images to train on, " if count else "")
        + _about(data)
    )
    seconds: dict[str, float] = {}
    stages = [stage for stage in (teacher, second) if stage is not None]
    if teacher is not None:
        how = "from timm's pretrained weights" if start else "from random weights"
        hint = "" if start or config.pretrained is False else " (--pretrained=true downloads better ones)"
        title = f"1 of {len(stages)}: teacher {config.teacher_net}, {how}{hint}"
        if steps:
            seconds["teacher"] = teacher.try_out(title, first, steps)
        else:
            teacher.run(title, first)
        model["teacher"]["init_args"]["model"] = str(teacher.checkpoint.absolute())
    name = config.student or "DistillableViT"
    parameters = sum(p.numel() for p in network.parameters())
    title = f"{len(stages)} of {len(stages)}: student {name}, {parameters:,} parameters"
    if steps:
        seconds["student"] = second.try_out(title, recipe, steps)
        parts = ", ".join(f"the {name} {_duration(part)}" for name, part in seconds.items())
        print(
            f"\ndry run: every stage works, and the whole would take about {_duration(sum(seconds.values()))}: {parts}"
        )
        return
    second.run(title, recipe)

    exported = second.folder / "exported"
    files = (
        json.loads((exported / "student.json").read_text())["files"] if (exported / "student.json").is_file() else []
    )
    if not files or (config.onnx and "student.onnx" not in files):
        print("\nexport", flush=True)
        with second.held():
            for unfinished in second.folder.glob(f".{exported.name}-*"):  # of a command that was killed
                shutil.rmtree(unfinished)
            export(second.checkpoint, exported, onnx=config.onnx, overwrite=bool(files))
    print("\n" + _table(teacher, second, exported, data, both))
    print(f"{time.monotonic() - began:.0f} seconds in all; the same command again does only what is new")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="lit-distill distill",
        description="Make a teacher for a folder of photos, distil it into a vision transformer, and export that. What "
        "is done already, from the same photos and with the same choices, is not done again; what was cut off goes on. "
        "Flags of fit go on to the runs: --trainer. to both, --model., --retrospection and --checkpoint. to the "
        "student's. --trainer.fast_dev_run=true takes a few steps of each run and says how long all of it takes. The "
        "folder may come first: distill PHOTOS.",
        exit_on_error=False,
        formatter_class=DefaultHelpFormatter,
    )
    parser.add_subclass_arguments(
        LightningDataModule,
        "data",
        help="The images; ImageFolderDataModule unless another class is given. --data.root is the folder; "
        "--data.help=ImageFolderDataModule lists all choices.",
    )
    parser.add_argument(
        "--teacher", type=str | None, help="Checkpoint or export of a trained teacher; by default one is trained."
    )
    parser.add_argument(
        "--teacher_net", default="resnet18", help="timm's name of the network that becomes the teacher."
    )
    parser.add_argument("--teacher_epochs", type=int, default=20, help="Epochs of the teacher.")
    parser.add_argument(
        "--student", type=str | None, help="timm's name of the student; by default a ViT for images of this size."
    )
    parser.add_argument("--epochs", type=int, default=50, help="Epochs of the student.")
    parser.add_argument(
        "--pretrained",
        type=bool | None,
        help="Begin from timm's pretrained weights; by default if they are on this machine, and true downloads them.",
    )
    parser.add_argument(
        "--output", type=Path | None, help="Folder for everything; by default distilled/ and the name of --data.root."
    )
    parser.add_argument("--onnx", type=bool, default=False, help="Export ONNX too; needs lit-distill[onnx].")
    parser.add_argument("--seed", type=int, default=42, help="Seed of everything random.")
    parser.add_argument("--trust", **TRUST)
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _data(chosen: Any, given: set[str]) -> tuple[dict[str, Any], Any]:
    """Return the description of the data, complete with what nobody has chosen, and the data module."""
    description = chosen.as_dict()
    arguments = description["init_args"]

    def make() -> Any:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningDataModule, "data")
        return instantiated(parser, {"data": description}).data

    data = make()
    if isinstance(data, FilesDataModule):
        if "--data.image_size" not in given:
            arguments["image_size"] = sizing.image_size_of(data)
        if not any(flag.startswith("--data.augmentation") for flag in given):
            arguments["augmentation"] = sizing.augmentation_for(arguments["image_size"])
        if "--data.batch_size" not in given:
            arguments["batch_size"] = sizing.batch_size_for(len(data.splits["train"].files))
        data = make()
    for name, value in arguments.items():
        if value is not None and (name == "root" or name.endswith("_root")):
            arguments[name] = str(Path(value).resolve())  # so that a run that was cut off goes on from any folder
    for name in ("num_classes", "image_size"):
        if getattr(data, name, None) is None:
            raise ValueError(f"{type(data).__name__} has no {name}, from which the networks are sized")
    return description, data


def _photos_of(data: Any) -> dict[str, dict[str, str]]:
    """Return a digest of each photo by split and name, after they have been read once."""
    if not isinstance(data, FilesDataModule):
        return {}
    return {split: data.contents(split) for split in data.splits if split in ("train", "val")}


def _digest_of_file(path: str) -> str:
    """Return what changes when a checkpoint or an exported folder does."""
    file = Path(path) / "student.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"there is no teacher at {path}: expected a checkpoint or an exported folder")
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _adamw(rate: float) -> dict[str, Any]:
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": rate, "weight_decay": 0.05}}


def _try(network: Mapping[str, Any], data: Any) -> Any:
    """Make a network, so that a name or a size that does not exist is found out now."""
    arguments = {**network["init_args"], "num_classes": data.num_classes}
    if network["class_path"].endswith("TimmStudent"):
        extra = {key: value for key, value in arguments.items() if key == "in_chans"}
        return timm_net(arguments["name"], data.num_classes, args=extra)
    return build({**network, "init_args": {**arguments, "image_size": data.image_size}}, "this command")


def _duration(seconds: float) -> str:
    """Return a time in its two largest units."""
    for unit, size, part, smaller in (("days", 86400, "hours", 3600), ("hours", 3600, "minutes", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // smaller:.0f} {part}"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _about(data: Any) -> str:
    names = [str(name) for name in getattr(data, "class_names", None) or []]
    shown = ", ".join(names[:5]) + (f", ... {len(names)} in all" if len(names) > 5 else "")
    return f"{data.num_classes} classes{f' ({shown})' if shown else ''}, seen at {data.image_size} px"


def _table(teacher: Stage | None, student: Stage, exported: Path, data: Any, flags: Sequence[str]) -> str:
    """Return what came of it, and where it is."""
    metrics = card_of(load_safely(student.checkpoint, "checkpoint"), student.checkpoint)["metrics"]
    served: Any = load_student(exported)
    head = served.card["head"]
    flag = next((flag for flag in flags if flag.startswith("--trainer.accelerator=")), "=auto")
    quiet: Any = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator=flag.partition("=")[2], devices=1, **quiet)
    # With a distillation loss, both heads are measured as they answer.
    module = LitDistiller(served, distillation=HardDistillation(), head=head)
    (validated,) = trainer.validate(module, datamodule=data, verbose=False)
    rows = [
        ("teacher", metrics.get("val/teacher_accuracy")),
        ("student", validated[f"val/accuracy_{head}"]),
        ("agreement of both", metrics.get("val/agreement")),
    ]
    if isinstance(data, FilesDataModule) and "test" in data.splits:
        (tested,) = trainer.test(module, datamodule=data, verbose=False)
        rows.append(("student, on the test folder", tested[f"test/accuracy_{head}"]))
    lines = [f"{'accuracy on the validation images':<38}{'last epoch':>12}", "-" * 50]
    lines += [f"{label:<38}{value:>12.2%}" for label, value in rows if value is not None]
    places = {"student": exported, "checkpoint": student.checkpoint, "configuration": student.config}
    if teacher is not None:
        places |= {"teacher": teacher.checkpoint}
    lines += ["", *(f"{name:<15}{path}" for name, path in places.items())]
    lines.append(f"{'of photos':<15}lit-distill predict {shlex.quote(str(exported))} photo.jpg")
    return "\n".join([*lines, f"{'in Python':<15}lit_distill.load_student({str(exported)!r})"])
