"""Tables of predictions, and how they are written."""

from collections.abc import Iterable, Mapping, Sequence
import csv
from pathlib import Path

from torch import Tensor

from lit_distill.datamodules.walk import printable
from lit_distill.files import write_atomically


def write_csv(path: Path, head: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file of UTF-8 that is whole or not there; texts are written as `printable` makes them."""
    with write_atomically(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for row in (head, *rows):
            writer.writerow([printable(value) if isinstance(value, str) else value for value in row])


def table_of(
    columns: Mapping[str, Sequence[object]], names: Sequence[str], probabilities: Tensor
) -> tuple[list[str], Iterable[list[object]]]:
    """Return the head and the rows of a table of predictions.

    Args:
        columns: Name and values of what comes first in each row, such as the file.
        names: The classes, K.
        probabilities: ``(N, K)``.
    """
    head = [*columns, "class", "probability", *(f"p({name})" for name in names)]
    confidence, decided = probabilities.max(dim=1)
    table = zip(*columns.values(), decided.tolist(), confidence.tolist(), probabilities.tolist(), strict=True)
    return head, ([*first, names[k], f"{p:.6f}", *(f"{value:.6f}" for value in rest)] for *first, k, p, rest in table)
