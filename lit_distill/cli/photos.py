"""``lit-distill predict STUDENT PHOTO ...``: what a trained student says of photos."""

from collections.abc import Iterable, Sequence
from pathlib import Path
import sys
from typing import Any

import torch
from torch import Tensor

from lit_distill.cli.arguments import command_parser, parse
from lit_distill.cli.predictions import table_of, write_csv
from lit_distill.datamodules.walk import photos_in, printable
from lit_distill.models import load_student
from lit_distill.models.serving import predict, preprocessing_of
from lit_distill.photos import as_image

_SHOWN = 3  # classes a photo
_BATCH = 64


def run(args: Sequence[str]) -> None:
    """Run the command with the arguments that follow ``lit-distill predict``."""
    parser = command_parser(
        "predict",
        "Print the class of photos, and the probabilities of the likeliest classes, by a trained student. With "
        "--ckpt_path instead, predict is Lightning's: it predicts a data set.",
    )
    parser.add_argument("student", type=Path, help="An exported folder, or a checkpoint.")
    parser.add_argument("photos", type=Path, nargs="+", help="Photos, and folders of photos at any depth.")
    parser.add_argument("--output", type=Path | None, help="CSV file for all probabilities, which must not exist.")
    config = parse(parser, args)
    predict_photos(config.student, config.photos, config.output, config.trust)


def predict_photos(
    student_path: Path, places: Iterable[Path], output: Path | None = None, trust: Iterable[str] = ()
) -> None:
    """Print the class of each photo, or write all probabilities to a CSV file.

    A damaged photo in a folder is named on standard error and left out. `photos_in` says which files are photos.

    Args:
        student_path: As of `load_student`.
        places: Photos, and folders of photos.
        output: The file to write.
        trust: As of `load_student`.

    Raises:
        ValueError: If there is no such student or photo, a folder has none, none can be read, or ``output`` exists.
    """
    if output is not None and output.exists():
        raise ValueError(f"{output} exists and is not overwritten: choose another --output")
    student = load_student(student_path, trust=trust)
    mode = preprocessing_of(student).mode
    files = [file for place in places for file in _photos(place)]
    card: Any = student.card
    names = [_printable(name) for name in card.get("class_names") or []]
    good: list[str] = []
    parts = []
    for start in range(0, len(files), _BATCH):
        images = []
        for file, alone in files[start : start + _BATCH]:
            try:
                images.append(as_image(file, mode))
                good.append(printable(str(file)))
            except ValueError as error:
                if alone:
                    raise
                print(f"left out: {error}", file=sys.stderr)
        if images:
            parts.append(predict(student, images).probabilities)
            names = names or [str(k) for k in range(parts[-1].shape[1])]
            if output is None:
                _show(good[-len(images) :], names, parts[-1], width=max(len(printable(str(file))) for file, _ in files))
    if not parts:
        raise ValueError(f"none of the {len(files)} files can be read as a photo")
    if output is not None:
        write_csv(output, *table_of({"file": good}, names, torch.cat(parts)))
        print(f"wrote {len(good)} predictions to {output}")


def _printable(name: object) -> str:
    """Return a class name without what a terminal would take for a command."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(name))


def _photos(place: Path) -> list[tuple[Path, bool]]:
    """Return a photo, or the photos in a folder, and whether each was named by itself."""
    if not place.is_dir():
        return [(place, True)]
    found = photos_in(place, place)
    left_out = found.told()
    if not found.names:
        raise ValueError(f"there are no images in the folder {place}" + (f" ({left_out})" if left_out else ""))
    if left_out:
        print(f"{place}: {left_out}", file=sys.stderr)
    return [(place / name, False) for name in found.names]


def _show(files: Sequence[str], names: Sequence[str], probabilities: Tensor, width: int) -> None:
    values, order = probabilities.topk(min(_SHOWN, probabilities.shape[1]), dim=1)
    for file, row, places in zip(files, values.tolist(), order.tolist(), strict=True):
        shown = "  ".join(f"{names[k]} {value:.2%}" for k, value in zip(places, row, strict=True))
        print(f"{file:<{width}}  {shown}", flush=True)
