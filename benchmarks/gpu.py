"""Every GPU test and every GPU figure of this project, in pieces of at most eight minutes that resume.

    python benchmarks/gpu.py FOLDER                  # all that is not done yet
    python benchmarks/gpu.py FOLDER --minutes 9      # as many pieces as fit; the same command goes on
    python benchmarks/gpu.py FOLDER --list           # the pieces, and which are done
    python benchmarks/gpu.py FOLDER --length 0.01 --device cpu    # a trial of every piece without a GPU

What it needs:
  - FOLDER: CIFAR-10 as image files, ``train/<class>/*`` and ``test/<class>/*`` (50,000 and 10,000 images, 250 MB
    unpacked; bring it as an archive, since small files travel slowly). Nothing is downloaded.
  - ``pip install -e ".[test]"``, for the tests; ``pip install vit-pytorch torchdistill``, for the peers, which are left
    out with a line where they are missing. A C++ compiler, for torch.compile.
  - One GPU. About 20 minutes without the CIFAR-10 study, whose length is chosen after the first piece has measured
    images a second: as many epochs, up to 200, as fit ``--study_minutes``.

The pieces run in order, each in a process of its own. A piece that is cut off goes on after its last row, epoch or test
when the command is started again. All figures are in one JSON file, benchmarks/gpu.json, and in one table for each
piece, which is printed at the end. Each piece's log lies in logs/gpu.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any
import warnings

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from measure import ROOT, Clock, Report, load_report, markdown, median_of, options_of, part_of, quiet, scaled
from peers import SameBatch, fit_steps
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_distill import DistillableViT, FrozenTeacher, HardDistillation, LitDistiller
from lit_distill.batch import Batch
from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.datamodules import Augmentation, ImageFolderDataModule
from lit_distill.files import write_atomically

LIMIT = 480.0  # seconds of a piece
PATIENCE = 45.0  # seconds for a piece that is told to stop, such as to write its checkpoint
CIFAR_IMAGES, STUDY_EPOCHS = 50_000, 200
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"}  # operations that make the host wait for a device


@dataclass
class Piece:
    """A part of the work, as a script of this folder and its arguments.

    Args:
        name: Of the piece and of its files.
        script: Of this folder.
        arguments: For the script, beside those that all pieces get.
        attempts: Starts that a piece may take; those that resume may take many.
        folder: Whether FOLDER is the first argument.
    """

    name: str
    script: str
    arguments: list[str] = field(default_factory=list)
    attempts: int = 2
    folder: bool = False


def pieces(options: argparse.Namespace) -> list[Piece]:
    """Return all pieces; those after the first know what it has measured."""
    on_gpu, short = options.device == "cuda", options.length < 1
    small = [] if not short else ["--size=64", "--teacher=resnet18", "--batch=4"]
    compiled = ["--compile"] if on_gpu else []
    two = ["--only", "timm.task", "this project"]
    large = ["--teacher=regnety_160", "--student=deit_small_distilled_patch16_224", "--batch=128"]
    batch = ["--batch=256"] if not short else []
    cached = [each.replace("--teacher=", "--teachers=") for each in small]
    large_cached = [each.replace("--teacher=", "--teachers=") for each in large]
    return [
        Piece("rates", "gpu.py", ["--piece=rates"], 3, folder=True),
        Piece("tests", "gpu.py", ["--piece=tests"], 6, folder=True),
        Piece("synchronisations", "gpu.py", ["--piece=synchronisations"], folder=True),
        Piece("peers", "peers.py", [*batch, *small, "--steps=20"]),
        Piece("peers compiled", "peers.py", [*batch, *small, "--steps=20", *compiled, *two], 4),
        Piece("DeiT-S from RegNetY-16GF", "peers.py", [*(small or large), "--steps=10", *compiled, *two], 4),
        Piece(
            "teacher cache",
            "teacher_cache.py",
            ["--only", "steps", "waits", "epochs", *(cached or batch), "--steps=20"],
            4,
        ),
        Piece(
            "teacher cache, DeiT-S from RegNetY-16GF",
            "teacher_cache.py",
            ["--only", "steps", *(cached or large_cached), "--steps=10", *compiled],
            4,
        ),
        Piece("cost of LWR", "retrospection.py", ["--pairs=300"]),
        Piece("loader", "loader.py", ["--workers=8", "--batch=512"], 2, folder=True),
        Piece("loader by size", "loader.py", ["--workers=8", "--sizes", "--policies=none"], 2, folder=True),
        Piece("CIFAR-10", "cifar10.py", study_arguments(options), 60, folder=True),
        Piece("LWR by its authors", "lwr_authors.py", authors_arguments(options), 60, folder=True),
    ]


def study_arguments(options: argparse.Namespace) -> list[str]:
    """Return the arguments of the CIFAR-10 study, as long as the first piece's rates allow."""
    rates = load_report(place_of(options, "rates"))
    epochs = STUDY_EPOCHS
    if rates is not None and rates["complete"]:
        rows = rates["tables"]["images a second"]
        student, teacher = (rows[name]["with data"] for name in ("hard distillation", "the teacher itself"))
        seeds = len(options.study_seeds)
        seconds_an_epoch = CIFAR_IMAGES * (3 * seeds / student + 0.5 / teacher) * 1.3  # validation, checkpoints
        epochs = max(10, min(STUDY_EPOCHS, int(60 * options.study_minutes / seconds_an_epoch)))
    # A study that has begun keeps the length that it began with.
    begun = load_report(place_of(options, "CIFAR-10"))
    if begun is not None and options.length == 1:
        epochs = begun["settings"]["epochs"]
    flags = ["--trainer.precision=bf16-mixed"] if options.device == "cuda" else ["--num_threads=1"]
    flags.append(f"--trainer.accelerator={'gpu' if options.device == 'cuda' else 'cpu'}")
    lengths = [f"--epochs={epochs}", f"--teacher_epochs={max(1, epochs // 2)}"] if options.length == 1 else []
    return [*lengths, "--seeds", *map(str, options.study_seeds), "--trainer.devices=1", *flags]


def authors_arguments(options: argparse.Namespace) -> list[str]:
    """Return the arguments of LWR by its authors' recipe."""
    precision = ["--trainer.precision=bf16-mixed"] if options.device == "cuda" else []
    return ["--seeds", *map(str, options.study_seeds), *precision]


def place_of(options: argparse.Namespace, name: str) -> Path:
    """Return the file of a piece's figures."""
    return folder_of(options) / f"{name.replace(' ', '_')}.json"


def folder_of(options: argparse.Namespace) -> Path:
    return ROOT / "logs" / ("gpu" if options.length == 1 else f"gpu-{options.length:g}-{options.device}")


# The pieces of this file


def small_vit() -> DistillableViT:
    """Return the student of configs/cifar10.yaml."""
    statistics = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}
    sizes = {"dim": 192, "depth": 9, "heads": 3, "mlp_dim": 384, "dropout": 0.1}
    return DistillableViT(32, 4, 10, **sizes, patch_norm=False, **statistics)


def resnet18(size: int) -> FrozenTeacher:
    """Return a network such as configs/cifar10_teacher.yaml trains, with random weights."""
    net = timm.create_model("resnet18", num_classes=10)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    return FrozenTeacher(net, mean=mean, std=std, input_size=size, channels_last=True)


class Enlarging(nn.Module):
    """The teacher's network as a student: it enlarges the images."""

    def __init__(self, size: int) -> None:
        super().__init__()
        teacher = resnet18(size)
        self.pixels, self.net = teacher.pixels, teacher.model.requires_grad_(True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(self.pixels(image).contiguous(memory_format=torch.channels_last))
        return logits


def modules(options: argparse.Namespace) -> dict[str, Callable[[], tuple[LitDistiller, list[Callback]]]]:
    """Return what makes each kind of run: the module and its callbacks."""
    size = 128 if options.length == 1 else 32

    def lwr() -> list[Callback]:
        return [LearningWithRetrospection(interval=1, max_epochs=1000, num_samples=CIFAR_IMAGES)]

    return {
        "no teacher": lambda: (LitDistiller(small_vit()), []),
        "hard distillation": lambda: (
            LitDistiller(small_vit(), resnet18(size), distillation=HardDistillation()),
            [],
        ),
        "hard distillation + LWR": lambda: (
            LitDistiller(small_vit(), resnet18(size), distillation=HardDistillation()),
            lwr(),
        ),
        "the teacher itself": lambda: (LitDistiller(Enlarging(size)), []),
    }


def random_batch(options: argparse.Namespace, count: int) -> Batch:
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, device=options.device)
    index = torch.arange(count, device=options.device)
    return Batch(pixels, index % 10, index, torch.zeros_like(index))


def precision(options: argparse.Namespace) -> Any:
    return "bf16-mixed" if options.device == "cuda" else "32-true"


class EpochTimer(Callback):
    """The seconds of each epoch's training, the first left out."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock = Clock(self.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch:
            self.seconds.append(self.clock.read().wall)


def rate_with_data(options: argparse.Namespace, make: Callable[[], Any], folder: Path, batch: int) -> float:
    """Return the images a second of training epochs on the folder, after a first one that warms up."""
    module, callbacks = make()
    augmentation = Augmentation(crop="padded", policy="trivial-wide", crop_pct=1.0)
    data = ImageFolderDataModule(folder, image_size=32, augmentation=augmentation, batch_size=batch, val="test")
    data.setup("fit")
    images = len(data.train_set)  # type: ignore[arg-type]
    batches = min(images // batch, 4) if options.length < 1 else images // batch
    timer = EpochTimer(options.device)
    trainer = Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision=precision(options),
        max_epochs=4 if options.length == 1 else 2,
        limit_train_batches=batches,
        limit_val_batches=0,
        callbacks=[*callbacks, timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return batches * batch / median_of(timer.seconds).median


def measure_rates(options: argparse.Namespace, report: Report) -> None:
    """Images a second of the small ViT at 32 px, with images that lie on the device and with the data."""
    batch = 512 if options.device == "cuda" else 4
    steps = scaled(200, options, 2)
    compile_too = options.device == "cuda"
    images = None if options.length == 1 else 100
    temporary = tempfile.TemporaryDirectory()
    folder = part_of(options.folder, {"train": images, "test": images}, Path(temporary.name, "images"))
    for name, make in modules(options).items():

        def rates(make: Callable[[], Any] = make) -> dict[str, Any]:
            module, _ = make()
            with quiet():
                timer = fit_steps(
                    module.to(options.device), random_batch(options, batch), steps, options.device, precision(options)
                )
                assert timer.timing is not None
                columns: dict[str, Any] = {"batch": batch, "without data": batch / timer.timing.wall}
                if compile_too:
                    module, _ = make()
                    module.student.compile()
                    timer = fit_steps(
                        module.to(options.device),
                        random_batch(options, batch),
                        steps,
                        options.device,
                        precision(options),
                    )
                    assert timer.timing is not None
                    columns["compiled, without data"] = batch / timer.timing.wall
                columns["with data"] = rate_with_data(options, make, folder, batch)
            columns["data's share of the epoch"] = 1 - columns["with data"] / columns["without data"]
            if options.device == "cuda":
                columns["peak (MB)"] = timer.peak
            return columns

        report.once("images a second", name, rates)
    temporary.cleanup()


class SyncCounter(Callback):
    """Counts what makes the host wait for the device, from the start of one step to the start of another."""

    def __init__(self, first: int, last: int, device: str) -> None:
        self.first, self.last, self.device = first, last, device
        self.places: dict[str, int] = {}
        self.counting: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.first:
            self.counting = count_on_gpu(self.places) if self.device == "cuda" else count_on_cpu(self.places)
            self.counting.__enter__()
        elif trainer.global_step == self.last:
            self.stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop()

    def stop(self) -> None:
        if self.counting is not None:
            self.counting.__exit__(None, None, None)
            self.counting = None


@contextmanager
def count_on_gpu(places: dict[str, int]) -> Iterator[None]:
    """Count, by line of code, the operations that CUDA reports as synchronising."""

    def show(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if "synchronizing" in str(message):
            place = f"{'/'.join(Path(filename).parts[-2:])}:{lineno}"
            places[place] = places.get(place, 0) + 1

    original = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = original


class HostReads(TorchDispatchMode):
    """Counts the operations that would wait for a GPU, such as `.item()`."""

    def __init__(self, places: dict[str, int]) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name in WAITS:
            frames = [frame for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
            place = f"{name} in {'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}"
            self.places[place] = self.places.get(place, 0) + 1
        return func(*args, **(kwargs or {}))


@contextmanager
def count_on_cpu(places: dict[str, int]) -> Iterator[None]:
    with HostReads(places):
        yield


def measure_synchronisations(options: argparse.Namespace, report: Report) -> None:
    """Synchronisations a step, in Lightning's Trainer with logging; without a GPU the reads that would be some."""
    steps = scaled(100, options, 2)
    batch = random_batch(options, 512 if options.device == "cuda" else 8)
    for name, make in list(modules(options).items())[:3]:

        def count(make: Callable[[], Any] = make) -> dict[str, Any]:
            module, callbacks = make()
            counter = SyncCounter(3, 3 + steps, options.device)
            trainer = Trainer(
                accelerator="gpu" if options.device == "cuda" else "cpu",
                devices=1,
                precision=precision(options),
                max_steps=steps + 5,
                callbacks=[*callbacks, counter],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            with quiet():
                trainer.fit(module, SameBatch(batch, steps + 5))
            total = sum(counter.places.values())
            found = sorted(counter.places.items(), key=lambda pair: -pair[1])[:3]
            places = ", ".join(f"{place} ({number})" for place, number in found)
            return {"a step": total / steps, "steps": steps, "where": places or "nowhere"}

        report.once("synchronisations", name, count)


def run_tests(options: argparse.Namespace, report: Report) -> None:
    """Run every test with the marker gpu that has no result yet, one process for all of them."""
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text())
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist", "-q"]
    collected = subprocess.run(
        [*command, "--collect-only", *files], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    tests = [line for line in collected.splitlines() if "::" in line]
    if not tests:
        sys.exit(f"error: pytest found no test with the marker gpu:\n{collected[-2000:]}")
    remaining = [test for test in tests if not report.has("tests", test)]
    if not remaining:
        return
    command = [*command[:-1], "-v", *remaining]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert running.stdout is not None
    start = time.monotonic()
    for line in running.stdout:  # as they end: what is cut off keeps these
        print(line, end="", flush=True)
        outcome = re.match(r"(\S.*?::.*?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)", line)
        if outcome and outcome[1] in remaining:
            report.row("tests", outcome[1], result=outcome[2].lower(), seconds=time.monotonic() - start)
            start = time.monotonic()
    running.wait()
    unfinished = [test for test in tests if not report.has("tests", test)]
    if unfinished:
        sys.exit(f"error: pytest ended with {running.returncode} and {len(unfinished)} tests have no result")
    results = [row["result"] for row in report.content["tables"]["tests"].values()]
    report.note(", ".join(f"{results.count(result)} {result}" for result in sorted(set(results))))


OWN: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "rates": measure_rates,
    "tests": run_tests,
    "synchronisations": measure_synchronisations,
}


# Running the pieces


def run_piece(piece: Piece, options: argparse.Namespace, seconds: float) -> str:
    """Run a piece for at most so many seconds; return ``""`` if it is complete, else what happened."""
    output = place_of(options, piece.name)
    shared = [f"--length={options.length}", f"--device={options.device}", f"--output={output}"]
    shared += [f"--threads={options.threads}", f"--seed={options.seed}"]
    first = [str(options.folder)] if piece.folder else []
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / piece.script), *first, *piece.arguments, *shared]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    with output.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)
    report = load_report(output)
    if report is not None and report["complete"]:
        return ""
    if code is None:
        return "cut off"
    lines = output.with_suffix(".log").read_text().strip().splitlines() or [""]
    return f"failed with exit code {code}: {lines[-1][:200]}"


def stop(process: "subprocess.Popen[Any]") -> None:
    """End a piece and all that it has started: first politely, so that a run can write its checkpoint."""
    for kind, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, 5.0)):
        if process.poll() is not None and kind is signal.SIGTERM:
            return
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            return
        until = time.monotonic() + patience
        while time.monotonic() < until and group_is_alive(process):
            time.sleep(0.1)


def group_is_alive(process: "subprocess.Popen[Any]") -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def collect(options: argparse.Namespace, status: dict[str, str]) -> dict[str, Any]:
    """Write the figures of all pieces into one file, and return them."""
    reports = {piece.name: load_report(place_of(options, piece.name)) for piece in pieces(options)}
    content = {"status": status, "pieces": {name: report for name, report in reports.items() if report is not None}}
    short = folder_of(options) / "all.json"
    path = options.output or (Path(__file__).with_suffix(".json") if options.length == 1 else short)
    with write_atomically(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")
    return content


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="of CIFAR-10's images")
        parser.add_argument("--minutes", type=float, help="start no piece that could last longer; by default no limit")
        parser.add_argument("--study_minutes", type=float, default=90, help="of the CIFAR-10 study, by default 90")
        parser.add_argument("--study_seeds", type=int, nargs="+", default=[0, 1, 2])
        parser.add_argument("--pieces", nargs="+", help="these alone, by name")
        parser.add_argument("--list", action="store_true", help="print the pieces and which are done")
        parser.add_argument("--piece", choices=sorted(OWN), help=argparse.SUPPRESS)  # in its own process

    options = options_of(__doc__, add)
    if options.piece is not None:
        seed_everything(options.seed, verbose=False)
        report = Report(__file__, options, options.piece, place=("folder", "minutes", "study_minutes", "study_seeds"))
        OWN[options.piece](options, report)
        report.finish()
        return
    options.folder = options.folder.resolve()
    # A piece has a session of its own, so it must be told when this process is stopped: `run_piece` does that at exit.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder_of(options).mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + (60 * options.minutes if options.minutes else float("inf"))
    status: dict[str, str] = {}
    names = [piece.name for piece in pieces(options)]
    unknown = sorted(set(options.pieces or []) - set(names))
    if unknown:
        sys.exit(f"error: no piece is called {unknown[0]!r}: there are {', '.join(names)}")
    for name in options.pieces or names:
        report = load_report(place_of(options, name))
        status[name] = "done" if report is not None and report["complete"] else "not done"
        if options.list or status[name] == "done":
            print(f"{name}: {status[name]}", flush=True)
            continue
        attempts = next(piece.attempts for piece in pieces(options) if piece.name == name)
        for attempt in range(attempts):
            seconds = min(LIMIT - PATIENCE, end - time.monotonic() - PATIENCE)
            if seconds < 30:
                break
            piece = next(piece for piece in pieces(options) if piece.name == name)  # after the first: its rates
            print(f"{name}: {'begun' if attempt == 0 else 'going on'}, {time.strftime('%H:%M:%S')}", flush=True)
            status[name] = run_piece(piece, options, seconds) or "done"
            print(f"{name}: {status[name]}", flush=True)
            collect(options, status)
            if status[name] != "cut off":
                break
    if options.list:
        return
    content = collect(options, status)
    for name, report in content["pieces"].items():
        print(f"\n## {name}: {status.get(name, 'done' if report['complete'] else 'not done')}\n\n{report['command']}\n")
        print(markdown(report))
    left = [name for name, state in status.items() if state != "done"]
    print(
        f"\n{len(status) - len(left)} of {len(status)} pieces are done" + (f"; left: {', '.join(left)}" if left else "")
    )
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
