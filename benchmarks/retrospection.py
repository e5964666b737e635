"""What Learning with Retrospection costs a training step.

    python benchmarks/retrospection.py
    python benchmarks/retrospection.py --targets

Steps with and without the callback alternate in one process, within one Lightning run, and each pair's order is drawn
by lot. With interval 1 every measured step both reads and records, which is the most that a step can do; with interval
5 all read and a fifth record. Two networks: timm's deit_tiny at 224 px, batch 16, for the share of a real step; and a
bare table of logits with K = 1000, for the cost by itself. Dense and with the 5 largest probabilities. Prints the
median of the pairs with a 95 % bootstrap interval.

With ``--targets``, the cost of comparing each row's target with the one it had: steps of the whole callback with and
without the comparison alternate in one run of the bare table, with classes and with soft targets, in processor time of
the training thread, which other programs do not disturb; and by itself, for a table as large as ImageNet-1k.
"""

import argparse
import itertools
import random
from typing import Any

from lightning.pytorch import LightningModule, Trainer, seed_everything
from measure import Clock, Interval, Report, median_of, options_of, quiet, scaled
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.callbacks.row_targets import RowTargets
from lit_distill.datamodules import IndexedDataset, KeyedSampler

BATCH, CLASSES, ROWS = 16, 1000, 1_281_167


class Images(Dataset[Any]):
    def __init__(self, size: int, rows: int, soft: bool) -> None:
        self.images, self.rows = torch.rand(rows, 3, size, size), rows
        self.targets = torch.rand(rows, CLASSES).softmax(1) if soft else torch.arange(rows) % CLASSES

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.targets[index]


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(BATCH, CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        return self.logits[: len(image)] * 1.0


class Module(LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.criterion = net, nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.criterion(self.net(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Timed(LearningWithRetrospection):
    """The callback itself on one step of every pair, nothing on the other; the clock runs in both."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pairs: list[dict[bool, float]] = []
        self.first = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % 2 == 0:
            self.first = random.random() < 0.5
            self.pairs.append({})
        self.active = self.first == (batch_idx % 2 == 0) or trainer.current_epoch < self.interval
        self.clock = Clock(pl_module.device.type)
        if self.active:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self.active:
            super().on_train_batch_end(trainer, *args)
        if trainer.current_epoch >= self.interval:  # the first epochs fill the memory and warm up
            self.pairs[-1][self.active] = self.clock.read().wall


def measure(
    net: nn.Module,
    size: int,
    pairs: int,
    every: int,
    top_k: int | None,
    options: argparse.Namespace,
    kind: type[Timed] = Timed,
    soft: bool = False,
) -> list[dict[bool, float]]:
    """Return the seconds of the steps with and without, pair by pair."""
    seed_everything(options.seed, verbose=False)
    data = IndexedDataset(Images(size, 2 * BATCH * 10, soft))
    callback = kind(interval=every, max_epochs=10_000, top_k=top_k, soft_targets=soft)
    trainer = Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        max_epochs=every + -(-pairs // 10),
        callbacks=callback,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(net), DataLoader(data, BATCH, sampler=KeyedSampler(data)))
    return [pair for pair in callback.pairs if len(pair) == 2]


class TimedTargets(Timed):
    """The callback on every step; on one step of every pair it compares no targets."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % 2 == 0:
            self.first = random.random() < 0.5
            self.pairs.append({})
        self.active = self.first == (batch_idx % 2 == 0)
        if self.targets is not None and not isinstance(self.targets, Switch):
            self.targets = Switch(self.targets)
        if isinstance(self.targets, Switch):
            self.targets.on = self.active
        self.clock = Clock(pl_module.device.type)
        LearningWithRetrospection.on_train_batch_start(self, trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        LearningWithRetrospection.on_train_batch_end(self, trainer, *args)
        if trainer.current_epoch >= self.interval:
            self.pairs[-1][self.active] = self.clock.read().thread


class Switch:
    """The targets of the rows, on or off."""

    def __init__(self, targets: RowTargets) -> None:
        self.targets, self.on = targets, True

    def check(self, index: Tensor, target: Tensor) -> Tensor:
        return self.targets.check(index, target) if self.on else torch.ones(1, dtype=torch.bool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.targets, name)


def by_itself(rows: int, batch: int, soft: bool, steps: int) -> Interval:
    """Return the milliseconds of comparing a batch's targets."""
    targets, milliseconds = RowTargets(rows), []
    for _ in range(steps):
        index = torch.randint(rows, (batch,))
        target = torch.rand(batch, CLASSES) if soft else torch.randint(CLASSES, (batch,))
        clock = Clock("cpu")
        targets.check(index, target)
        milliseconds.append(1000 * clock.read().thread)
    return median_of(milliseconds)


def measure_targets(report: Report, options: argparse.Namespace) -> None:
    for soft in (False, True):
        kind = "soft targets" if soft else "classes"
        pairs = measure(Bare(), 1, scaled(20 * options.pairs, options, 10), 1, None, options, TimedTargets, soft)
        milliseconds = median_of(1000 * (pair[True] - pair[False]) for pair in pairs)
        report.row("comparing targets, thread's ms a step", f"in a run, {BATCH} rows, {kind}", ms=milliseconds)
        for batch in (16, 128):
            name = f"by itself, {batch} of {ROWS} rows, {kind}"
            milliseconds = by_itself(ROWS, batch, soft, scaled(2000, options, 10))
            report.row("comparing targets, thread's ms a step", name, ms=milliseconds)


def measure_steps(report: Report, options: argparse.Namespace) -> None:
    pairs = scaled(options.pairs, options, 4)
    for top_k, every in itertools.product((None, 5), (1, 5) if options.length == 1 else (1,)):

        def of_deit(top_k: int | None = top_k, every: int = every) -> dict[str, Any]:
            size = 224 if options.length == 1 else 64
            net = timm.create_model("deit_tiny_patch16_224", img_size=size)
            seconds = measure(net, size, pairs, every, top_k, options)
            without = median_of(1000 * pair[False] for pair in seconds)
            return {"with / without": median_of(pair[True] / pair[False] for pair in seconds), "ms without": without}

        remembered = "dense" if top_k is None else f"top {top_k}"
        report.once("a step of deit_tiny, batch 16", f"{remembered}, interval {every}", of_deit)
    for top_k in (None, 5):

        def alone(top_k: int | None = top_k) -> dict[str, Any]:
            seconds = measure(Bare(), 1, 20 * pairs, 1, top_k, options)
            return {
                "ms a step": median_of(1000 * (pair[True] - pair[False]) for pair in seconds),
                "pairs": len(seconds),
            }

        report.once(
            f"by itself, {BATCH} rows of {CLASSES} classes", "dense" if top_k is None else f"top {top_k}", alone
        )


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--pairs", type=int, default=60)
        parser.add_argument("--targets", action="store_true", help="the comparison of targets only")

    options = options_of(__doc__, add)
    report = Report(__file__, options, "remembered")
    with quiet():
        (measure_targets if options.targets else measure_steps)(report, options)
    report.finish()


if __name__ == "__main__":
    main()
