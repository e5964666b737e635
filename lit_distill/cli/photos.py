"""``lit-distill predict STUDENT PHOTO ...``: the classes of photos, by a trained student."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
import sys
from typing import NamedTuple, cast

from PIL.Image import Image
import torch
from torch import Tensor

from lit_distill.cli.arguments import command_parser, parse
from lit_distill.cli.csv_table import table_of, write_csv
from lit_distill.datamodules.walk import photos_in, printable
from lit_distill.models import load_student
from lit_distill.models.serving import predict, preprocessing_of
from lit_distill.photos import Mode, as_image

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
    photos = [photo for place in places for photo in _photos(place)]
    width = max(len(printable(str(photo.file))) for photo in photos)
    readable = _readable(photos, preprocessing_of(student).mode)
    files: list[str] = []
    parts: list[Tensor] = []
    while batch := list(islice(readable, _BATCH)):
        names, images = zip(*batch, strict=True)
        probabilities = predict(student, images).probabilities
        known_classes = cast(Mapping[str, list[object]], student.card).get("class_names")
        classes = list(map(_printable, known_classes or range(probabilities.shape[1])))
        if output is None:
            _show(names, classes, probabilities, width)
        files += names
        parts.append(probabilities)
    if not parts:
        raise ValueError(f"none of the {len(photos)} files can be read as a photo")
    if output is not None:
        write_csv(output, *table_of({"file": files}, classes, torch.cat(parts)))
        print(f"wrote {len(files)} predictions to {output}")


class _Photo(NamedTuple):
    file: Path
    is_named: bool  # by itself, not by its folder


def _photos(place: Path) -> list[_Photo]:
    """Return a photo, or the photos in a folder."""
    if not place.is_dir():
        return [_Photo(place, is_named=True)]
    found = photos_in(place, place)
    if not found.names:
        raise ValueError(found.after(f"there are no images in the folder {place}"))
    if left_out := found.told():
        print(f"{place}: {left_out}", file=sys.stderr)
    return [_Photo(place / name, is_named=False) for name in found.names]


def _readable(photos: Iterable[_Photo], mode: Mode) -> Iterator[tuple[str, Image]]:
    """Yield the name and the image of each photo, and leave damaged ones of folders out with a line about them."""
    for file, is_named in photos:
        try:
            yield printable(str(file)), as_image(file, mode)
        except ValueError as error:
            if is_named:
                raise
            print(f"left out: {error}", file=sys.stderr)


def _printable(name: object) -> str:
    """Return a class name without the characters that a terminal would take for a command."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(name))


def _show(files: Sequence[str], names: Sequence[str], probabilities: Tensor, width: int) -> None:
    values, order = probabilities.topk(min(_SHOWN, probabilities.shape[1]), dim=1)
    for file, row, places in zip(files, values.tolist(), order.tolist(), strict=True):
        shown = "  ".join(f"{names[k]} {value:.2%}" for k, value in zip(places, row, strict=True))
        print(f"{file:<{width}}  {shown}", flush=True)
