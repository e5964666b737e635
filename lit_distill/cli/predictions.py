"""What ``predict`` writes."""

from collections.abc import Iterable, Mapping, Sequence
import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
import torch
from torch import Tensor, distributed
from typing_extensions import override

from lit_distill.batch import Batch, IndexedSample
from lit_distill.checkpoint import whole_file
from lit_distill.datamodules.walk import printable


def write_predictions(trainer: Trainer, output: Path | None, **kwargs: Any) -> Path:
    """Predict with ``trainer`` and write one CSV row a sample: its row, the class, its probability, all probabilities.

    Where the data module has ``names("predict")``, a column has the file of each sample. Where it has
    ``submission(probabilities)`` and that returns a head and rows, not None, these are written instead. Rows are in the
    data set's order, whatever the number of processes.

    Args:
        trainer: Runs ``predict``.
        output: The file to write, or None for a new ``predictions.csv`` beside the checkpoint.
        **kwargs: Arguments of ``Trainer.predict``.

    Raises:
        ValueError: If ``output`` exists, or its folder does not; if a prediction is not finite; if there are several
            processes that each started by itself and cannot put their parts together.
    """
    beside = Path(kwargs.get("ckpt_path") or "predictions.csv").with_name("predictions.csv")
    path = _free(beside) if output is None else output
    if path.exists():
        raise ValueError(f"{path} exists and is not overwritten: choose another --output")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for {path.name}: make it first, or choose another --output")
    rows = _Rows()
    trainer.callbacks.append(rows)  # type: ignore[attr-defined]
    batches = trainer.predict(**kwargs)
    numbers, probabilities = _in_order(torch.cat(batches), rows.seen, trainer)  # type: ignore[arg-type]
    broken = (~probabilities.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(probabilities)} predictions are NaN or infinite, the first of row "
            f"{numbers[broken[0]]}: nothing was written; if the precision is of 16 bits, set --trainer.precision=32"
        )
    if trainer.is_global_zero:
        write_csv(path, *_table(kwargs.get("datamodule"), numbers, probabilities))
        print(f"wrote {len(probabilities)} predictions to {path}")
    return path


def write_csv(path: Path, head: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file of UTF-8 that is whole or not there; texts are written as `printable` makes them."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
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


class _Rows(Callback):
    """Notes which rows of the data set this process predicts."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    @override
    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if isinstance(batch, (Batch, IndexedSample)) and batch.index is not None:
            self.seen.append(batch.index.cpu())


def _in_order(probabilities: Tensor, seen: list[Tensor], trainer: Trainer) -> tuple[list[int], Tensor]:
    """Return the rows predicted by all processes, in order and each once, and the predictions."""
    # Lightning deals the data set out to the processes, and leaves to each its own part.
    rows = torch.cat(seen) if seen else None
    if trainer.world_size > 1:
        if rows is None or not distributed.is_initialized():
            raise ValueError("the parts of several processes cannot be put together here: predict with one device")
        parts: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(parts, (rows, probabilities))
        rows, probabilities = (torch.cat(part) for part in zip(*parts, strict=True))
    if rows is None:
        return list(range(len(probabilities))), probabilities
    ordered, first = np.unique(rows.numpy(), return_index=True)
    return ordered.tolist(), probabilities[torch.from_numpy(first)]


def _table(data: Any, rows: list[int], probabilities: Tensor) -> tuple[Iterable[object], Iterable[Iterable[object]]]:
    own = data.submission(probabilities) if hasattr(data, "submission") else None
    if own is not None:
        return own  # type: ignore[no-any-return]
    files = data.names("predict") if hasattr(data, "names") else None
    names = getattr(data, "class_names", None) or [str(k) for k in range(probabilities.shape[1])]
    columns: dict[str, Sequence[object]] = {"index": rows} | ({"file": [files[row] for row in rows]} if files else {})
    return table_of(columns, names, probabilities)


def _free(path: Path) -> Path:
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in range(1, 10_000))
    return path if not path.exists() else next(name for name in numbered if not name.exists())
