"""Kill training runs from outside at random moments, resume them, and compare their ends with runs never killed.

    python tests/kill_and_resume.py --trials 200

A trial forks a run from this process, which has imported everything, kills its whole process group with SIGKILL after a
random time (a quarter of them while a checkpoint is being written), resumes from the last checkpoint, kills again with
probability 1/3, and so on. At the end weights, optimizer, schedule, remembered soft labels and the retrospection
metrics of the last epoch must be the same bits as those of the run that was not killed, every batch that was trained
must have been of the same samples, and no row may be missing from the memory. The run: a small ViT with dropout on the
digits, hard distillation and retrospection, one schedule step a batch, validation and checkpoints within the epoch,
one or two processes, with and without workers, dense and top-k.
"""

import argparse
from collections.abc import Callable
from functools import partial
import itertools
import os
from pathlib import Path
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from typing import Any, NamedTuple
import warnings

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
import torch
from torch.utils.data import Subset

from lit_distill import DigitsCNN, DistillableViT, HardDistillation, LitDistiller
from lit_distill.callbacks import LearningWithRetrospection, StepSeed
from lit_distill.checkpoint import AtomicCheckpointIO
from lit_distill.datamodules import DigitsDataModule

ROWS, GLOBAL_BATCH, EPOCHS = 45, 8, 4


class Case(NamedTuple):
    ranks: int
    workers: int
    top_k: int | None

    def __str__(self) -> str:
        return f"{self.ranks} ranks, {self.workers} workers, top_k={self.top_k}"


CASES = [Case(*case) for case in itertools.product((1, 2), (0, 2), (None, 3))]


class FewDigits(DigitsDataModule):
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set, self.val_set = Subset(self.train_set, range(ROWS)), Subset(self.val_set, range(36))


class Order(Callback):
    """Appends the samples of every trained batch to a file of each rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with (self.folder / f"order-{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{trainer.current_epoch} {batch_idx}: {batch.index.tolist()}\n")


class Die(Callback):
    """Ends the process after some steps, in the next one or in the validation between them."""

    def __init__(self, after: int, validating: bool) -> None:
        self.after, self.validating = after, validating

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.after and not self.validating:
            os._exit(9)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.after and self.validating and not trainer.sanity_checking:
            os._exit(9)


class End(Callback):
    """Writes what the run ends with; the metrics are there unless the last epoch ended before the resume."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 0:
            metrics = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("retrospection")}
            torch.save(metrics, self.folder / "part.pt")
            (self.folder / "part.pt").replace(self.folder / "metrics.pt")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / "end.ckpt")


class Last(ModelCheckpoint):
    """``last.ckpt``, written after every epoch or, as a class of its own, after some steps."""


def train(folder: Path, case: Case, *more: Callback) -> None:
    """Run the case in ``folder``, from its last checkpoint if there is one; leaves ``end.ckpt``."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    student = DistillableViT(8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1, dropout=0.1)
    module = LitDistiller(student, DigitsCNN(pretrained=True), distillation=HardDistillation())
    data = FewDigits(GLOBAL_BATCH // case.ranks, eval_batch_size=20, num_workers=case.workers, seed=3)
    name: dict[str, Any] = {"filename": "last", "enable_version_counter": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=case.ranks,
        strategy="ddp_fork" if case.ranks > 1 else "auto",
        max_epochs=EPOCHS,
        val_check_interval=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            StepSeed(5),
            LearningWithRetrospection(interval=1, top_k=case.top_k),
            Order(folder),
            *more,
            ModelCheckpoint(folder, every_n_train_steps=2, **name),
            Last(folder, save_on_train_epoch_end=True, **name),
            End(folder),
        ],
    )
    last = folder / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)


def forked(work: Callable[[], None], log: Path) -> int:
    """Return the id of a new process group that does the work."""
    with log.open("a") as file:
        file.write("-- a new process\n")
    pid = os.fork()
    if pid:
        os.setpgid(pid, pid)  # here too: whichever comes first
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        status = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def ended(folder: Path) -> dict[str, Any]:
    """Return what must not depend on whether the run was killed."""
    end: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=True)
    kept = {key: end[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}
    (memory,) = (state for key, state in end["callbacks"].items() if key.startswith("LearningWithRetrospection"))
    return {**kept, "memory": memory}


def metrics_of(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "metrics.pt"
    return torch.load(file, weights_only=True) if file.exists() else {}


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Name every place where two nested values are not the same bits."""
    if isinstance(ours, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [path]
    if isinstance(ours, dict) and ours.keys() == theirs.keys():
        return [d for key in ours for d in differences(ours[key], theirs[key], f"{path}/{key}")]
    if isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}/{i}")]
    return [] if ours == theirs else [f"{path}: {ours} instead of {theirs}"]


def orders(folder: Path, case: Case) -> list[list[str]]:
    files = [folder / f"order-{rank}.txt" for rank in range(case.ranks)]
    return [file.read_text().splitlines() if file.exists() else [] for file in files]


def gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def trial(case: Case, reference: Path, seconds: float, rng: random.Random, folder: Path) -> tuple[int, list[str]]:
    """Return how often the run was killed, at least once, and what differs from the reference at its end."""
    kills = 0
    while kills == 0:  # a run that came to its end before it was killed is no trial
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        while not (folder / "end.ckpt").exists():
            pid = forked(partial(train, folder, case), folder / "log.txt")
            if kills == 0 or rng.random() < 1 / 3:
                kills += killed(pid, rng.uniform(0, seconds), folder if rng.random() < 1 / 4 else None)
            status = os.waitpid(pid, 0)[1]
            if status and not os.WIFSIGNALED(status):
                return kills, [f"the resumed run failed: {(folder / 'log.txt').read_text()[-2000:]}"]
            while not gone(pid):
                time.sleep(0.001)
    return kills, compare(case, folder, reference)


def compare(case: Case, folder: Path, reference: Path) -> list[str]:
    """Say what differs between the end of a run that was cut off and of one that was not."""
    ours, theirs = ended(folder), ended(reference)
    found = differences(ours, theirs)
    found += differences({**metrics_of(reference), **metrics_of(folder)}, metrics_of(reference), "metrics")
    for mine, other in zip(orders(folder, case), orders(reference, case), strict=True):
        found += [f"other samples: {line}" for line in mine if line not in other]
        found += [f"never trained: {line}" for line in other if line not in mine]
    missing = int((ours["memory"]["epochs"].max(dim=0).values < EPOCHS).sum())
    return found + ([f"{missing} rows lost"] if missing else [])


def killed(pid: int, seconds: float, writing_in: Path | None) -> bool:
    """Kill the process group after the time, or when it next writes there; return whether it had not ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end or not (writing_in is None or any(writing_in.glob(".last.ckpt.*.part"))):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.0002)
    os.killpg(pid, signal.SIGKILL)
    return True


def run(case: Case, folder: Path, *more: Callback) -> int:
    """Run the case in ``folder`` to its end, whichever that is, and return its status."""
    pid = forked(partial(train, folder, case, *more), folder / "log.txt")
    _, status = os.waitpid(pid, 0)
    while not gone(pid):
        time.sleep(0.001)
    return status


def references(folder: Path, cases: list[Case]) -> dict[Case, tuple[Path, float]]:
    """Run each case without killing it; return its folder and the seconds it took."""
    runs = {}
    for i, case in enumerate(cases):
        path, start = folder / f"reference-{i}", time.monotonic()
        path.mkdir()
        if run(case, path):
            raise RuntimeError((path / "log.txt").read_text())
        runs[case] = path, time.monotonic() - start
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, kills, diverged = random.Random(options.seed), 0, 0
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = references(folder, CASES)
        for number in range(options.trials):
            case = CASES[number % len(CASES)]
            times, found = trial(case, *runs[case], rng, folder / f"trial-{number}")
            kills, diverged = kills + times, diverged + bool(found)
            if found:
                print(f"trial {number} ({case}): {len(found)} differences: {found[:2]} ... {found[-4:]}", flush=True)
                print((folder / f"trial-{number}" / "log.txt").read_text(), flush=True)
            if number % 20 == 19:
                print(f"{number + 1} trials, {kills} kills, {diverged} divergences", flush=True)
    print(f"{options.trials} trials, {kills} kills, {diverged} divergences")
    sys.exit(diverged > 0)


if __name__ == "__main__":
    main()
