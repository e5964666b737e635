"""What a table of ImageNet's size takes: memory, loading from a checkpoint, and the exchange between processes.

    python benchmarks/memory.py

1.28 million rows, 1000 classes, the 5 largest probabilities. Every measurement is made in a process of its own, as the
growth of its resident memory (from /proc, so Linux only). The processes of the exchange are joined by gloo on this
machine; each records its share of all rows in batches of 256 before the clock starts.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
import tempfile
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from measure import Report, options_of, quiet, scaled
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader, Dataset

from lit_distill.callbacks import LearningWithRetrospection, SoftLabelMemory
from lit_distill.callbacks.exchange import RowExchange
from lit_distill.datamodules import IndexedDataset, KeyedSampler

ROWS, CLASSES, TOP_K = 1_280_000, 1000, 5


def resident(peak: bool = False) -> float:
    """Return the resident memory of this process, or its peak since `forget_peak`, in MB of 10^6 bytes."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def fill(
    memory: SoftLabelMemory,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    batch: int = 256,
    exchange: RowExchange | None = None,
) -> None:
    """Record every row once, in an order that has each rank's rows everywhere in the table."""
    torch.manual_seed(epoch)
    soft_labels = torch.randn(batch, memory.num_classes).softmax(dim=1)
    for start in range(rank, memory.num_samples, world * batch):
        part = torch.arange(start, min(start + world * batch, memory.num_samples), world)
        recorded = memory.record(part, soft_labels[: len(part)], epoch)
        if exchange is not None:
            exchange.note(part, recorded, epoch)


def table(rows: int, top_k: int) -> dict[str, float]:
    """Return what the table takes when both slots of every row have been written."""
    fill(SoftLabelMemory(300, CLASSES, top_k), 1)  # what torch itself takes with its first work
    resident_before = resident()
    memory = SoftLabelMemory(rows, CLASSES, top_k)
    for epoch in (1, 2):
        fill(memory, epoch)
    resident_after = resident()
    stamps = memory.state_dict()["epochs"].nbytes / 1e6
    per_buffer = (resident_after - resident_before - stamps) / 2
    return {
        "resident": resident_after - resident_before,
        "nbytes": memory.nbytes / 1e6,
        "epochs": stamps,
        "per buffer": per_buffer,
    }


class Rows(Dataset[Any]):
    """A few rows: the sampler of 1.28 million would take memory of its own."""

    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.ones(1), index % CLASSES


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.criterion = nn.Linear(1, CLASSES), nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.criterion(self.net(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(rows: int, top_k: int, epochs: int, **kwargs: Any) -> tuple[Trainer, SoftLabelMemory]:
    callback = LearningWithRetrospection(interval=1, max_epochs=10, top_k=top_k, num_samples=rows)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=1,
        callbacks=callback,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = IndexedDataset(Rows())
    with quiet():
        trainer.fit(Module(), DataLoader(data, 8, sampler=KeyedSampler(data, shuffle=False)), **kwargs)
    assert callback.memory is not None
    return trainer, callback.memory


def save(rows: int, top_k: int, path: str) -> None:
    trainer, memory = fit(rows, top_k, 1)
    for epoch in (2, 3):
        fill(memory, epoch)
    trainer.save_checkpoint(path)


def load(rows: int, top_k: int, path: str) -> dict[str, float]:
    """Return the peak while a run is resumed from the checkpoint, above what a run on a few rows has taken."""
    fit(300, top_k, 2)
    resident_before = resident()
    forget_peak()
    _, memory = fit(rows, top_k, 2, ckpt_path=path, weights_only=True)
    return {
        "peak": resident(peak=True) - resident_before,
        "nbytes": memory.nbytes / 1e6,
        "file": Path(path).stat().st_size / 1e6,
    }


def swap(rows: int, top_k: int, world: int, meet: str, rank: int) -> dict[str, float]:
    """Return what the exchange of an epoch's rows takes on this process."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=world)
    memory = SoftLabelMemory(rows, CLASSES, top_k)
    for epoch in (1, 2):  # so that all of the table is resident before
        fill(memory, epoch)
    exchange = RowExchange()
    fill(memory, 3, rank, world, exchange=exchange)
    resident_before = resident()
    forget_peak()
    distributed.barrier()
    start = time.perf_counter()
    received = exchange.run(memory)
    seconds = time.perf_counter() - start
    peak = resident(peak=True) - resident_before
    checks = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    distributed.all_gather(checks, memory.state_dict()["rows"].view(torch.int16).long().sum().view(1))
    ranks_agree = all(torch.equal(check, checks[0]) for check in checks) and bool(
        (memory.state_dict()["epochs"].max(dim=0).values == 3).all()
    )
    distributed.destroy_process_group()
    return {"seconds": seconds, "received": received / 1e6, "peak": peak, "same": ranks_agree}


def alone(work: Callable[..., Any], *args: Any, world: int = 1) -> list[Any]:
    """Return what the function returns in new processes; of several, each gets its rank after the arguments."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_one, (work, args, world, folder), world)
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(world)]


def _one(rank: int, work: Callable[..., Any], args: tuple[Any, ...], world: int, folder: str) -> None:
    torch.save(work(*args, *([rank] if world > 1 else [])), f"{folder}/{rank}.pt")


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows", type=int, default=ROWS)
        parser.add_argument("--top_k", type=int, default=TOP_K)

    options = options_of(__doc__, add)
    report = Report(__file__, options, "measurement")
    rows, top_k = scaled(options.rows, options), options.top_k
    title = f"{rows} rows, {CLASSES} classes, top {top_k}; MB of 10^6"
    report.once(title, "table", lambda: in_mb(alone(table, rows, top_k)[0]))
    with tempfile.TemporaryDirectory() as folder:

        def loading() -> dict[str, Any]:
            alone(save, rows, top_k, f"{folder}/a.ckpt")
            return in_mb(alone(load, rows, top_k, f"{folder}/a.ckpt")[0])

        report.once(title, "loading", loading)
        for world in (2, 4):

            def exchange(world: int = world) -> dict[str, Any]:
                ranks = alone(swap, rows, top_k, world, f"{folder}/meet{world}", world=world)
                return {
                    "seconds": max(rank["seconds"] for rank in ranks),
                    "received (MB)": ranks[0]["received"],
                    "peak (MB)": max(rank["peak"] for rank in ranks),
                    "all ranks agree": str(all(rank["same"] for rank in ranks)),
                }

            report.once(title, f"exchange, {world} ranks", exchange)
    report.finish()


def in_mb(values: dict[str, float]) -> dict[str, float]:
    return {f"{name} (MB)": value for name, value in values.items()}


if __name__ == "__main__":
    main()
