"""What Learning with Retrospection costs a training step.

    python benchmarks/retrospection.py

Steps with and without the callback alternate in one process, within one Lightning run, and each pair's order is drawn
by lot. With interval 1 every measured step both reads and records, which is the most that a step can do; with interval
5 all read and a fifth record. Two networks: timm's deit_tiny at 224 px, batch 16, for the share of a real step; and a
bare table of logits with K = 1000, for the cost by itself. Dense and with the 5 largest probabilities. Prints the
median of the pairs with a 95 % bootstrap interval.
"""

import argparse
import itertools
import platform
import random
import statistics
import time
from typing import Any
import warnings

from lightning.pytorch import LightningModule, Trainer, seed_everything
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.datamodules import IndexedDataset, KeyedSampler

BATCH, CLASSES = 16, 1000


class Images(Dataset[Any]):
    def __init__(self, size: int, rows: int) -> None:
        self.images, self.rows = torch.rand(rows, 3, size, size), rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % CLASSES


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
        self.start = time.perf_counter()
        if self.active:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self.active:
            super().on_train_batch_end(trainer, *args)
        if trainer.current_epoch >= self.interval:  # the first epochs fill the memory and warm up
            self.pairs[-1][self.active] = time.perf_counter() - self.start


def measure(net: nn.Module, size: int, pairs: int, every: int, top_k: int | None) -> list[dict[bool, float]]:
    seed_everything(0, verbose=False)
    data = IndexedDataset(Images(size, 2 * BATCH * 10))
    callback = Timed(interval=every, max_epochs=10_000, top_k=top_k)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=every + -(-pairs // 10),
        callbacks=callback,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(net), DataLoader(data, BATCH, sampler=KeyedSampler(data)))
    return [pair for pair in callback.pairs if len(pair) == 2]


def interval(values: list[float]) -> str:
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(2000))
    return f"{statistics.median(values):.4f} [{medians[50]:.4f}, {medians[1949]:.4f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for top_k, every in itertools.product((None, 5), (1, 5)):
        deit = measure(timm.create_model("deit_tiny_patch16_224"), 224, options.pairs, every, top_k)
        without = statistics.median(pair[False] for pair in deit)
        ratio = interval([pair[True] / pair[False] for pair in deit])
        print(f"deit_tiny 224 px, {top_k=}, interval={every}: {1000 * without:.0f} ms a step; ", end="")
        print(f"with / without over {len(deit)} pairs: {ratio}", flush=True)
    for top_k in (None, 5):
        bare = measure(Bare(), 1, 20 * options.pairs, 1, top_k)
        alone = interval([1000 * (pair[True] - pair[False]) for pair in bare])
        print(f"by itself, {top_k=}: {alone} ms over {len(bare)} pairs", flush=True)
