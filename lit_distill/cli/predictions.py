"""What ``predict`` writes."""

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
import torch


def write_predictions(trainer: Trainer, output: Path | None, **kwargs: Any) -> Path:
    """Predict with ``trainer`` and write one CSV row a sample: its row, the class, its probability, all probabilities.

    Args:
        trainer: Runs ``predict``.
        output: The file to write, or None for a new ``predictions.csv`` beside the checkpoint.
        **kwargs: Arguments of ``Trainer.predict``.

    Raises:
        ValueError: If ``output`` exists, or its folder does not.
    """
    beside = Path(kwargs.get("ckpt_path") or "predictions.csv").with_name("predictions.csv")
    path = _free(beside) if output is None else output
    if path.exists():
        raise ValueError(f"{path} exists and is not overwritten: choose another --output")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for {path.name}: make it first, or choose another --output")
    batches = trainer.predict(**kwargs)
    probabilities = torch.cat(batches)  # type: ignore[arg-type]
    names = getattr(kwargs.get("datamodule"), "class_names", None) or [str(k) for k in range(probabilities.shape[1])]
    confidence, decided = probabilities.max(dim=1)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("x", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "class", "probability", *(f"p({name})" for name in names)])
        for row, (k, p, rest) in enumerate(
            zip(decided.tolist(), confidence.tolist(), probabilities.tolist(), strict=True)
        ):
            writer.writerow([row, names[k], f"{p:.6f}", *(f"{value:.6f}" for value in rest)])
    os.replace(temporary, path)
    print(f"wrote {len(probabilities)} predictions to {path}")
    return path


def _free(path: Path) -> Path:
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in range(1, 10_000))
    return path if not path.exists() else next(name for name in numbered if not name.exists())
