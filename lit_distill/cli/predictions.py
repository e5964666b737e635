"""Write what ``predict`` predicts."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
import torch
from torch import Tensor, distributed
from typing_extensions import override

from lit_distill.batch import Batch, IndexedSample
from lit_distill.cli.csv_table import table_of, write_csv
from lit_distill.cli.progress import all_callbacks

_Table = tuple[Iterable[object], Iterable[Iterable[object]]]  # the head and the rows


def write_predictions(trainer: Trainer, output: Path | None, **kwargs: Any) -> Path:
    """Predict with ``trainer`` and write one CSV row a sample: its row, the class, its probability, all probabilities.

    If the data module has ``names("predict")``, one column holds the file of each sample. If it has
    ``submission(probabilities)``, and that returns a head and rows instead of None, these are written. Rows are in the
    data set's order, whatever the number of processes.

    Args:
        trainer: Runs ``predict``.
        output: The file to write, or None for a new ``predictions.csv`` beside the checkpoint.
        **kwargs: Arguments of ``Trainer.predict``.

    Raises:
        ValueError: If ``output`` exists, or its folder does not; if a prediction is not finite; if there are several
            processes that each started by itself and cannot put their parts together.
    """
    path = output or _free(Path(kwargs.get("ckpt_path") or "predictions.csv").with_name("predictions.csv"))
    if path.exists():
        raise ValueError(f"{path} exists and is not overwritten: choose another --output")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for {path.name}: make it first, or choose another --output")
    rows = _Rows()
    all_callbacks(trainer).append(rows)
    batches = cast(list[Tensor], trainer.predict(**kwargs))
    numbers, probabilities = _in_order(torch.cat(batches), rows.of_batches, trainer)
    broken = [row for row, is_whole in zip(numbers, probabilities.isfinite().all(dim=1), strict=True) if not is_whole]
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(probabilities)} predictions are NaN or infinite, the first of row {broken[0]}: "
            "nothing was written; if the precision is of 16 bits, set --trainer.precision=32"
        )
    if trainer.is_global_zero:
        write_csv(path, *_table(kwargs.get("datamodule"), numbers, probabilities))
        print(f"wrote {len(probabilities)} predictions to {path}")
    return path


class _Rows(Callback):
    """Note which rows of the data set this process predicts."""

    def __init__(self) -> None:
        self.of_batches: list[Tensor] = []

    @override
    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, *args: object
    ) -> None:
        if isinstance(batch, (Batch, IndexedSample)) and batch.index is not None:
            self.of_batches.append(batch.index.cpu())


def _in_order(probabilities: Tensor, row_batches: Sequence[Tensor], trainer: Trainer) -> tuple[list[int], Tensor]:
    """Return the rows predicted by all processes, in order and each once, and the predictions."""
    # Without rows the predictions are in the data set's order, if there is one process.
    rows = torch.cat(list(row_batches)) if row_batches else torch.arange(len(probabilities))
    if trainer.world_size > 1:
        # Lightning deals the data set out to the processes, and leaves its own part to each.
        if not row_batches or not distributed.is_initialized():
            raise ValueError("the parts of several processes cannot be put together here: predict with one device")
        parts: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(parts, (rows, probabilities))
        rows, probabilities = map(torch.cat, zip(*parts, strict=True))
    ordered, first = np.unique(rows.numpy(), return_index=True)
    return ordered.tolist(), probabilities[torch.from_numpy(first)]


def _table(data: object, rows: Sequence[int], probabilities: Tensor) -> _Table:
    submission: Callable[[Tensor], _Table | None] = getattr(data, "submission", lambda probabilities: None)
    names_of: Callable[[str], Sequence[str]] = getattr(data, "names", lambda split: ())
    files = names_of("predict")
    columns: dict[str, Sequence[object]] = {"index": rows}
    if files:
        columns["file"] = [files[row] for row in rows]
    classes = getattr(data, "class_names", None) or list(map(str, range(probabilities.shape[1])))
    return submission(probabilities) or table_of(columns, classes, probabilities)


def _free(path: Path) -> Path:
    """Return the first of ``name.csv``, ``name-1.csv``, ``name-2.csv``, ... that is not there."""
    names = chain([path.stem], map(f"{path.stem}-{{}}".format, count(1)))
    return next(free for free in map(path.with_stem, names) if not free.exists())
