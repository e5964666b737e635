"""What a run of a study has learned, measured on the test images, and how long it took."""

from collections.abc import Iterator, Mapping
import hashlib
import json
from pathlib import Path
import threading
import time
from typing import Any, cast

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error
from typing_extensions import override

from lit_distill.cli.from_checkpoint import instantiated
from lit_distill.cli.stage import load_last
from lit_distill.cli.study_stage import RunFailedError
from lit_distill.cli.study_table import Figures, are_finite
from lit_distill.datamodules import FilesDataModule, ImageDataModule
from lit_distill.datamodules.from_files import Split
from lit_distill.datamodules.stacked import stack
from lit_distill.models import load_student
from lit_distill.models.card import card_of, card_on
from lit_distill.models.output import StudentOutput

_HEAD = "mean_probs"  # of a student whose checkpoint names none


class RunSeconds(Callback):
    """Measure how long training and validation take, over all processes that a run had, and keep it in the checkpoint.

    What a killed process did after its last checkpoint is done again, and counts once.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._began: float | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.monotonic()

    @override
    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._before + (0.0 if self._began is None else time.monotonic() - self._began)}

    @override
    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = state_dict["seconds"]


class StudyImages:
    """The images of a data module, for all runs that have it.

    Args:
        description: The class and arguments of the data module, as a configuration has them.

    Raises:
        ValueError: If a class has no image in one of the splits.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningDataModule, "data")
        self.data: ImageDataModule = instantiated(parser, {"data": dict(description)}).data
        self._description = json.dumps(description, sort_keys=True, default=str)
        self._lock = threading.Lock()
        self._digests: dict[tuple[str, ...], str] = {}
        self.check_classes()

    @property
    def is_held_out(self) -> bool:
        """Whether they are not the validation images, which choose the best epoch."""
        if isinstance(self.data, FilesDataModule):
            return "test" in self.data.splits
        return self.data.test_set is not self.data.val_set

    def check_classes(self) -> None:
        """Raise ``ValueError`` if a class has no image in one of the splits."""
        names = list(self.data.class_names or map(str, range(self.data.num_classes)))
        for split, targets in self._targets().items():
            lacking = sorted(set(range(len(names))) - set(targets.tolist()))
            if lacking:
                raise ValueError(f"class {names[lacking[0]]!r} has no image in the split {split!r}: add some")

    def digest(self) -> str:
        """Return what changes when the images to train and validate on do."""
        return self._digest("train", "val")

    def test_digest(self) -> str:
        """Return what changes when the test images do."""
        return self._digest("test")

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the test images and targets, batch by batch."""
        with self._lock:
            self.data.setup("test")
            self.data.num_workers = 0  # runs are measured in threads, and a process is not forked from a thread
            loader = self.data.test_dataloader()
        for batch in loader:
            yield batch.image, batch.target

    def _digest(self, *splits: Split) -> str:
        with self._lock:
            if splits not in self._digests:
                contents: object = self._description
                if isinstance(self.data, FilesDataModule):
                    # The images to train on are for the runs, which decode them: here they would only take memory.
                    decode_memory = self.data.decode_memory
                    self.data.decode_memory = decode_memory if splits == ("test",) else 0.0
                    contents = [self.data.contents(split) for split in splits if split in self.data.splits]
                    self.data.decode_memory = decode_memory
                self._digests[splits] = hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]
            return self._digests[splits]

    def _targets(self) -> dict[str, Tensor]:
        if isinstance(self.data, FilesDataModule):
            return {split: targets for split, (_, targets) in self.data.splits.items() if split != "predict"}
        self.data.setup("fit")
        self.data.setup("test")
        stacked = {split: stack(getattr(self.data, f"{split}_set")) for split in ("train", "val", "test")}
        return {split: images.targets for split, images in stacked.items() if not isinstance(images, str)}


def measure(checkpoint: Path, images: StudyImages, device: str) -> dict[str, float]:
    """Return accuracy, NLL, ECE and AURC of a checkpoint's student on the test images."""
    student = load_student(checkpoint).to(device)
    head = cast(Any, card_on(student)).get("head", _HEAD)
    log_probs, targets = [], []
    with torch.no_grad():
        for image, target in images.batches():
            log_probs.append(StudentOutput.of(student(image.to(device))).log_probs(head).cpu())
            targets.append(target.cpu())
    return scores(torch.cat(log_probs), torch.cat(targets))


def scores(log_probs: Tensor, target: Tensor) -> dict[str, float]:
    r"""Return what predictions are worth.

    ``accuracy`` in 0..1; ``nll``, the negative log-likelihood in nats; ``ece``, the expected calibration error of the
    likeliest class (15 bins, L1); ``aurc``, the area under the risk-coverage curve:

    .. math:: \mathrm{AURC} = \frac{1}{N} \sum_{n=1}^{N} \frac{\text{errors among the } n \text{ most confident}}{n}

    Args:
        log_probs: ``(N, K)``.
        target: ``(N,)``, classes.

    Source:
        Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019.

    Example:
        >>> values = scores(torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log(), torch.tensor([0, 0]))
        >>> {name: round(value, 3) for name, value in values.items()}
        {'accuracy': 0.5, 'nll': 0.511, 'ece': 0.35, 'aurc': 0.25}
    """
    log_probs = log_probs.double()
    confidence, decision = log_probs.max(dim=1)
    right = (decision == target).double()
    order = confidence.argsort(descending=True, stable=True)
    risk = (1 - right[order]).cumsum(0) / torch.arange(1, len(right) + 1)
    ece = binary_calibration_error(confidence.exp().clamp(max=1), right.long(), n_bins=15, norm="l1")
    nll = -log_probs.gather(1, target[:, None]).mean()
    values = {"accuracy": right.mean(), "nll": nll, "ece": ece, "aurc": risk.mean()}
    return {name: float(value) for name, value in values.items()}


def result_of(last: Path, images: StudyImages, device: str) -> Figures:
    """Measure a run by its last epoch and, if the validation images are others, by its best epoch on these.

    Args:
        last: The last checkpoint of the run.
        images: The test images.
        device: Where to measure.

    Raises:
        RunFailedError: If the student has diverged.
    """
    checkpoint = load_last(last)
    callbacks = checkpoint["callbacks"]
    summary = callbacks["RunSummary"]
    best = next((state["best_model_path"] for key, state in callbacks.items() if key.startswith("BestCheckpoint")), "")
    result: Figures = {
        "test": images.test_digest(),
        "head": card_of(checkpoint, last).get("head", _HEAD),
        "validation": {name: values for name, values in summary.items() if values},
        "seconds": callbacks["RunSeconds"]["seconds"],
        "last": measure(last, images, device),
        "best": None,
        "date": time.strftime("%Y-%m-%d"),
    }
    if images.is_held_out and Path(best).is_file():
        result["best"] = measure(Path(best), images, device)
    if not (are_finite(result["last"]) and are_finite(result["best"] or {})):
        raise RunFailedError(
            f"the run has diverged at its last step, and answers with NaN or infinity ({last}); lower the learning "
            "rate or set trainer.gradient_clip_val to 1"
        )
    return result
