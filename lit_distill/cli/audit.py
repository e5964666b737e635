"""``lit-distill audit``: which training labels are probably wrong, from the soft labels that a run has remembered."""

from collections.abc import Iterable, Mapping, Sequence
import copy
from itertools import islice
import json
from pathlib import Path
import sys
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule
from PIL import Image

from lit_distill._lazy import import_all
from lit_distill.checks import counted, knows_little_below
from lit_distill.cli.arguments import command_parser, parse, take
from lit_distill.cli.audit_sheet import picture, write_sheet
from lit_distill.cli.audit_table import Ranking, Remembered, TrainingData
from lit_distill.cli.csv_table import write_csv
from lit_distill.cli.from_checkpoint import from_checkpoint, instantiated
from lit_distill.cli.outputs import beside
from lit_distill.datamodules.walk import printable
from lit_distill.models import load_safely
from lit_distill.models.card import ABOUT
from lit_distill.models.trust import described_by, trusting

import_all("lit_distill.datamodules")  # so that --data may name them without their module

_ON_SHEET, _SHOWN = 64, 10
_WIDTH = 40  # of a file's name in the printed table


def run(args: Sequence[str]) -> None:
    """Run the command with the arguments that follow ``lit-distill audit``.

    Raises:
        ValueError: If there is no such run, it has remembered no soft labels or those of another data set, or an output
            exists.
    """
    place = next((arg for arg in args[:1] if not arg.startswith("-")), None)
    if place is None and not {"-h", "--help"} & set(args):
        raise ValueError(f"expected lit-distill audit RUN, a checkpoint or a run's folder, got {' '.join(args) or '-'}")
    checkpoint = None if place is None else find_checkpoint(Path(place))
    trusted = [f"--trust={value}" for value in take(args, "--trust")[0].trust]
    origin, _ = from_checkpoint(["predict", *trusted, *([f"--ckpt_path={checkpoint}"] if checkpoint else [])])
    described = [f"--data={json.dumps(origin.config['data'])}"] if "data" in origin.config else []
    with described_by(origin.foreign):
        config = parse(_parser(), [*args[:1], *described, *args[1:]])
    if checkpoint is not None:
        with trusting(config.trust), described_by(origin.foreign):
            audit(checkpoint, config.data, config.output, config.overwrite)


def _parser() -> ArgumentParser:
    parser = command_parser(
        "audit",
        "Rank the labels of a training set, those first that are probably wrong, by what a run has remembered of them: "
        "a table (CSV) and a sheet of the worst images. Nothing is trained. The data are the run's; --data. flags say "
        "where they are now.",
    )
    parser.add_argument("run", type=Path, help="A checkpoint, or the folder of a run, whose last checkpoint is taken.")
    parser.add_subclass_arguments(LightningDataModule, "data", required=False)
    parser.add_argument("--output", type=Path | None, help="Folder to write to; by default audit, in the run's folder.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what an earlier audit has written there.")
    return parser


def find_checkpoint(place: Path) -> Path:
    """Return the checkpoint at a place, or the newest ``last.ckpt`` of a folder.

    Raises:
        ValueError: If there is none.
    """
    if place.is_file():
        return place
    found = sorted(place.rglob("*.ckpt"), key=lambda path: (path.name.startswith("last"), path.stat().st_mtime))
    if not found:
        raise ValueError(f"there is no checkpoint at {place}: give the checkpoint, or the folder, of a run of fit")
    rivals = [path for path in found if path.name.startswith("last")][:-1]
    if rivals:
        print(f"note: of {len(rivals) + 1} runs in {place} this is of the last, {found[-1]}", file=sys.stderr)
    return found[-1]


def audit(checkpoint: Path, description: Namespace | None, output: Path | None, overwrite: bool = False) -> Ranking:
    """Write the table and the sheet of a run, print the worst labels, and return the ranking.

    Args:
        checkpoint: Of the run.
        description: Class and arguments of its data module; None leaves out what is not in the checkpoint.
        output: Folder to write to; by default ``audit`` in the run's folder.
        overwrite: Replace an earlier audit.

    Raises:
        ValueError: As `run`.
    """
    content = load_safely(checkpoint, "checkpoint", mmap=True)
    remembered = Remembered.of(content, checkpoint)
    data_module = None if description is None else _data_module(description)
    run_folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    output = beside(output or run_folder / "audit", getattr(data_module, "root", None))
    table, sheet = output / "labels.csv", output / "worst.png"
    there = [path for path in (table, sheet) if path.exists()]
    if there and not overwrite:
        raise ValueError(f"{there[0]} exists and is not overwritten: choose another --output, or say --overwrite")
    data = TrainingData.of(data_module, remembered.memory.num_samples)
    ranking = Ranking.of(remembered, data)
    for note in remembered.notes:
        print(f"note: {note}", file=sys.stderr)
    numbers = [str(number) for number in range(remembered.memory.num_classes)]
    names = remembered.class_names or data.class_names or numbers
    write_csv(table, *ranking.table(names, data.files))
    if data_module is not None:
        write_sheet(sheet, _cells(ranking, names, data))
    lines = [*_report(ranking, names, data.files, _accuracy(content)), *_planted(ranking, description, data), ""]
    print("\n".join(lines))
    print(f"{'all labels':<12}{table}")
    if data_module is not None:
        print(f"{f'worst {min(_ON_SHEET, len(ranking.rows))}':<12}{sheet}")
    return ranking


def _cells(ranking: Ranking, names: Sequence[str], data: TrainingData) -> Iterable[tuple[Image.Image, Sequence[str]]]:
    """Yield the image of each of the worst labels, and what to write below it."""
    labels = zip(ranking.rows.tolist(), ranking.given.tolist(), ranking.suggested.tolist(), strict=True)
    for rank, (row, given, suggested) in enumerate(islice(labels, _ON_SHEET), 1):
        lines = [f"{rank}. given {names[given]}", f"rather {names[suggested]}"]
        if data.files:
            lines.append(Path(data.files[row]).name)
        yield picture(data.dataset, row), lines


def _data_module(description: Namespace, **changes: object) -> LightningDataModule:
    """Make the data module, which here need not keep any image in memory."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    plain: dict[str, Any] = copy.deepcopy(description.as_dict())
    arguments = plain.setdefault("init_args", {})
    arguments |= {name: value for name, value in changes.items() if name in arguments}
    arguments |= {name: "files" for name in ("storage",) if name in arguments}
    made: LightningDataModule = instantiated(parser, {"data": plain}).data
    return made


def _accuracy(checkpoint: Mapping[str, Any]) -> float | None:
    """Return the accuracy on the run's validation images, in 0..1, of the head that predicts, if it is known."""
    measured = checkpoint.get("callbacks", {}).get("RunSummary", {}).get("last", {})
    accuracy: float | None = measured.get(f"val/accuracy_{checkpoint.get(ABOUT, {}).get('head')}")
    return accuracy


def _report(ranking: Ranking, names: Sequence[str], files: Sequence[str], accuracy: float | None) -> Iterable[str]:
    """Yield the lines of the table of the worst labels, and how many are probably wrong."""
    count, epochs = len(ranking.rows), int(ranking.epochs.max())
    left_out = "".join(f"; {number} {reason}" for reason, number in ranking.left_out.items())
    yield f"ranked {count} labels by their probability, remembered in {counted(epochs, 'epoch')}{left_out}\n"
    head, rows = ranking.table(names, files)
    lines: list[Sequence[object]] = [head, *islice(rows, _SHOWN)]
    texts = [[printable(str(value))[-_WIDTH:] for value in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for line in texts:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
    advice = "look at the first of the table, and stop where most are right"
    if ranking.wrong is None:
        yield (
            "\nhow many are wrong is not known: self-adaptive training remembers averages that begin at the given "
            f"label; {advice}"
        )
        return
    chance = 1 / len(names)
    if accuracy is not None and accuracy < knows_little_below(chance):
        yield (
            f"\nwarning: the network is right on {accuracy:.1%} of its validation images, where chance is "
            f"{chance:.1%}: what it thinks of a label says little; train it for longer, on more images or from weights"
        )
        return
    low, high = ranking.wrong
    right = "" if accuracy is None else f"the network is right on {accuracy:.1%} of its validation images; "
    yield (
        f"\nconfident learning counts {low} to {high} of {count} labels as wrong ({low / count:.1%} to "
        f"{high / count:.1%}); {right}the weaker the network, the more right labels are among them: {advice}"
    )


def _planted(ranking: Ranking, description: Namespace | None, data: TrainingData) -> Iterable[str]:
    """Yield how many of the labels that the data module itself has made wrong are where they belong."""
    share = 0 if description is None else description.get("init_args", {}).get("wrong_labels", 0)
    if description is None or not share:
        return
    clean = TrainingData.of(_data_module(description, wrong_labels=0.0), data.num_rows)
    if clean.labels is None:
        return
    true = dict(zip(clean.files or range(clean.num_rows), clean.labels.tolist(), strict=True))
    samples = [data.files[row] if data.files else row for row in ranking.rows.tolist()]
    is_wrong = [true[sample] != label for sample, label in zip(samples, ranking.given.tolist(), strict=True)]
    count = sum(is_wrong)
    found = sum(is_wrong[:count])
    yield (
        f"--data.wrong_labels={share} has planted {count} wrong labels: {found} of them are among the first {count} "
        f"({found / max(1, count):.1%})"
    )
