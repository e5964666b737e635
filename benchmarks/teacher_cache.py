"""What the teacher's cache costs and saves, and whether it ever serves a wrong answer.

    python benchmarks/teacher_cache.py --threads 2
    python benchmarks/teacher_cache.py --only answers weights bytes kills       # no timings
    python benchmarks/teacher_cache.py --device cuda --batch 256 --only steps   # and memory, and waits

answers: 10,000 images, all views, with and without mixing and repeats, on one process and two. In epochs with a warm
cache each answer is compared with that of the live teacher to the same batch. The unit is the distance of neighbouring
numbers in float16 at the answer: rounding alone differs by half of it, and by a little more where a batch of other rows
was asked.
weights: one run fills a cache, two read it, one has none and the same views; the weights of the students at the end.
bytes: of files on the disk.
kills: a process that fills a cache is killed with SIGKILL at a random moment, in each trial in a folder of its own.
Then every row that can be read is compared with what was answered. Rows in memory at that moment are lost.
epochs: training epochs with a warm cache beside those without a teacher and a distillation loss, in pairs, in
Lightning's Trainer. Random images.
steps: benchmarks/peers.py's contestants beside this project with a warm cache, all at their best; see there.
memory: the peak of a process in such steps, above what lay there before any network; the floor has its teacher there.
waits: reads on the host of what a device has yet to compute, in steps with a warm cache.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
import os
from pathlib import Path
import random
import signal
import tempfile
import time
from typing import Any

from gpu import SyncCounter
from lightning.pytorch import Callback, LightningModule, Trainer
from measure import Clock, Report, Timing, interleave, options_of, quiet, ratio, scaled, thread, wall
from memory import alone, forget_peak, resident
import peers
import torch
from torch import Tensor, multiprocessing, nn
from torch.utils.data import Dataset

from lit_distill import (
    DistillableViT,
    FrozenTeacher,
    HardDistillation,
    LitDistiller,
    SoftDistillation,
    TeacherOutput,
    TimmStudent,
)
from lit_distill.batch import Batch
from lit_distill.callbacks import TeacherCaching
from lit_distill.datamodules import Augmentation, ImageDataModule, Mixing
from lit_distill.datamodules.batched.forms import batch_form
from lit_distill.datamodules.stacked import StackedImages
from lit_distill.models.answer_rows import AnswerRows
from lit_distill.models.answers import Answers
from lit_distill.models.output_rows import OutputRows
from lit_distill.models.teacher_cache import Source, TeacherCache

PARTS = ("answers", "weights", "bytes", "kills", "epochs", "steps", "memory", "waits")
CLASSES, VIEWS = 10, 4
TRAINER: dict[str, Any] = {
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Pictures(Dataset[tuple[Tensor, int]]):
    """Noise of one size, augmented as batches."""

    def __init__(self, count: int, size: int) -> None:
        generator = torch.Generator().manual_seed(count)
        self.images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        self.targets = torch.randint(0, CLASSES, (count,), generator=generator)
        self.transform = Augmentation(crop="padded", crop_pct=1.0).train(size)

    def __len__(self) -> int:
        return len(self.images)

    def stacked(self) -> StackedImages | str:
        form = batch_form(self.transform)
        return form if isinstance(form, str) else StackedImages(self.images, self.targets, form)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])


class PicturesData(ImageDataModule):
    num_classes = CLASSES

    def __init__(self, count: int, size: int, **kwargs: Any) -> None:
        super().__init__(seed=1, num_workers=0, **kwargs)
        self.count, self.size = count, size

    def setup(self, stage: str | None = None) -> None:
        self.train_set = Pictures(self.count, self.size)
        self.val_set = self.train_set


class SmallNet(nn.Module):
    """A teacher with convolutions and BatchNorm."""

    num_classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(16, CLASSES)
        self.layers[1].running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return 9 * self.head(self.layers(image).mean(dim=(2, 3)))


def small_student() -> DistillableViT:
    torch.manual_seed(4)
    return DistillableViT(16, 8, CLASSES, dim=16, depth=1, heads=1, mlp_dim=16)


# Answers


class Compared(Callback):
    """Compares answers of a warm cache with the live teacher's, and writes what it found into a file of the rank."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.live = folder, FrozenTeacher(SmallNet())
        self.found = {"compared": 0, "largest": 0.0, "beyond": 0}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        cache: TeacherCache = pl_module.teacher
        if cache.source is None or not cache.source.is_warm:
            return
        cached, live = cache(batch).logits, self.live(batch).logits
        assert cached is not None
        assert live is not None
        spacing = 2.0 ** (live.abs().clamp(min=2.0**-14).log2().floor() - 10)
        units = (cached - live).abs() / spacing
        self.found["compared"] += len(live)
        self.found["largest"] = max(self.found["largest"], float(units.max()))
        self.found["beyond"] += int((units > 1).any(dim=1).sum())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(self.found, self.folder / f"compared{trainer.global_rank}.pt")


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixup and cutmix": {"mixing": {"mixup": 0.8, "cutmix": 1.0}},
    "2 repeats, mixup": {"repeats": 2, "mixing": {"mixup": 0.8}},
}


def fit_small(folder: Path, count: int, *callbacks: Callback, caches: bool = True, **kwargs: Any) -> nn.Module:
    """Train a small student on small images, and return it."""
    settings = kwargs.pop("settings", {})
    if "mixing" in settings:
        settings = {**settings, "mixing": Mixing(**settings["mixing"])}
    options = {"accelerator": "cpu", "max_epochs": 2 * VIEWS, "limit_val_batches": 0, **kwargs}
    data = PicturesData(count, 16, batch_size=100 // options.get("devices", 1), **settings)
    if caches:
        callbacks = (TeacherCaching(views=VIEWS, folder=folder / "cache"), *callbacks)
    else:
        data.views = VIEWS
    module = LitDistiller(small_student(), FrozenTeacher(SmallNet()), distillation=SoftDistillation(2.0))
    with quiet():
        Trainer(**{**TRAINER, **options}, callbacks=[*callbacks]).fit(module, datamodule=data)
    return module.student


def compare_answers(count: int, ranks: int, name: str) -> dict[str, float]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto"}
        fit_small(place, count, Compared(place), settings=SETTINGS[name], **strategy)
        found = [torch.load(place / f"compared{rank}.pt", weights_only=True) for rank in range(ranks)]
    return {
        "compared": sum(each["compared"] for each in found),
        "largest": max(each["largest"] for each in found),
        "beyond": sum(each["beyond"] for each in found),
    }


def measure_answers(options: argparse.Namespace, report: Report) -> None:
    count = scaled(options.images, options, 400)
    for name in SETTINGS:
        for ranks in (1, 2):

            def compare(name: str = name, ranks: int = ranks) -> dict[str, Any]:
                found = alone(compare_answers, count, ranks, name)[0]
                return {
                    "answers compared": found["compared"],
                    "largest difference (float16 units)": found["largest"],
                    "of more than one unit": found["beyond"],
                }

            title = f"answers beside a live teacher's, {count} images, {VIEWS} views"
            report.once(title, f"{name}, {ranks} rank{'s' * (ranks > 1)}", compare)


# Weights


def weights_of(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def measure_weights(options: argparse.Namespace, report: Report) -> None:
    count = scaled(options.images, options, 400)

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            fit = partial(fit_small, Path(folder), count)
            filling, warm, again = (weights_of(fit()) for _ in range(3))
            uncached = weights_of(fit(caches=False))
        return {
            "warm beside filling": float((warm - filling).abs().max()),
            "two warm runs": "the same bits" if torch.equal(warm, again) else float((warm - again).abs().max()),
            "filling beside no cache": float((filling - uncached).abs().max()),
            "largest weight": float(uncached.abs().max()),
        }

    report.once(f"largest difference of the final weights, {count} images", f"{2 * VIEWS} epochs", measure)


# Bytes


def measure_bytes(options: argparse.Namespace, report: Report) -> None:
    images = scaled(25_000, options)
    for name, rows, views in (("top 8 of 1000 classes", AnswerRows(1000, 8), 1), ("2 classes", AnswerRows(2), 100)):

        def measure(rows: AnswerRows = rows, views: int = views) -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                answers = Answers(Path(folder), "train", {}, images, rows.stride)
                for view in range(views):
                    for part in torch.arange(images).split(4096):
                        answers.write(view, part, rows.pack(torch.randn(len(part), rows.num_classes)))
                    answers.merge(view)
                size = sum(path.stat().st_size for path in answers.folder.iterdir())
            return {"MB": size / 1e6, "bytes a view and image": size / images / views}

        report.once(f"bytes of {images} images", f"{name}, {views} view{'s' * (views > 1)}", measure)


# Kills

KILL_ROWS, SHARD = 2000, 100


def right(view: int, index: Tensor) -> Tensor:
    """The logits that belong to these keys, each row unlike any other."""
    return torch.stack([index % 1000, index // 1000, torch.full_like(index, view % 1000)], dim=1).float()


def kill_source(folder: Path) -> Source:
    rows = OutputRows(AnswerRows(3))
    return Source(Answers(folder, "train", {}, KILL_ROWS, rows.stride, shard_rows=SHARD), rows, keyed=True)


def fill_for_ever(folder: Path, noted: Any) -> None:
    torch.set_num_threads(1)
    source, image = kill_source(folder), torch.zeros(0)
    for view in range(10**9):
        for index in torch.arange(KILL_ROWS).split(20):
            packed = source.rows.pack(TeacherOutput(right(view, index)))
            source.note(Batch(image, index, index, torch.full_like(index, view)), packed)
            noted.value += len(index)
        source.flush()
        source.merge([view])


def kill_once(folder: Path, seconds: float) -> tuple[int, int, int]:
    """Return how many rows a process had been answered when it was killed, how many are there, how many are wrong."""
    context = multiprocessing.get_context("fork")
    noted = context.Value("q", 0)
    process = context.Process(target=fill_for_ever, args=(folder, noted), daemon=True)
    process.start()
    while noted.value == 0:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    source, there, wrong = kill_source(folder), 0, 0
    for view in source.answers.views():
        source.answers.merge(view)
        part = source.answers.part(view)
        if part is None:
            continue
        rows, known = part
        logits = source.rows.unpack(rows).logits
        assert logits is not None
        there += int(known.sum())
        wrong += int((logits != right(view, torch.arange(KILL_ROWS))).any(dim=1)[known].sum())
    return noted.value, there, wrong


def measure_kills(options: argparse.Namespace, report: Report) -> None:
    times, draws = scaled(100, options, 5), random.Random(options.seed)

    def measure() -> dict[str, Any]:
        found = []
        for _ in range(times):
            with tempfile.TemporaryDirectory() as folder:
                found.append(kill_once(Path(folder), draws.uniform(0, 0.3)))
        noted, there, wrong = (sum(column) for column in zip(*found, strict=True))
        return {
            "answered": noted,
            "there afterwards": there,
            "wrong": wrong,
            "lost at most in a kill": max(answered - kept for answered, kept, _ in found),
            "rows of a shard": SHARD,
        }

    report.once("SIGKILL while a cache is filled, rows", f"{times} kills", measure)


# Epochs


class Epochs(Callback):
    """Times the training epochs after the first."""

    def __init__(self, device: str) -> None:
        self.device, self.timings = device, [Timing(0.0, 0.0, 0.0)]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock = Clock(self.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch:
            self.timings.append(self.clock.read())


def measure_epochs(options: argparse.Namespace, report: Report) -> None:
    def small() -> nn.Module:
        return DistillableViT(32, 4, CLASSES, dim=64, depth=3, heads=2, mlp_dim=128)

    def deit() -> nn.Module:
        return TimmStudent("deit_tiny_distilled_patch16_224", CLASSES, img_size=224)

    jobs: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {
        "ViT (dim 64, depth 3), 32 px, batches of 64": (small, scaled(2048, options, 128), 32, 64),
        "DeiT-Ti, 224 px, batches of 16": (deit, scaled(160, options, 32), 224, 16),
    }
    for name, (make, count, size, batch_size) in jobs.items():
        measure = partial(compare_epochs, options, make, count, size, batch_size)
        report.once("training epochs: a warm cache beside no teacher", name, measure)


def compare_epochs(
    options: argparse.Namespace, make: Callable[[], nn.Module], count: int, size: int, batch_size: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:

        def fit(cached: bool, epochs: int = 3) -> Timing:
            torch.manual_seed(options.seed)
            epoch_times = Epochs(options.device)
            callbacks: list[Callback] = [TeacherCaching(2, folder), epoch_times] if cached else [epoch_times]
            teacher = {"teacher": SmallNet(), "distillation": HardDistillation()} if cached else {}
            accelerator = "gpu" if options.device == "cuda" else "cpu"
            run = Trainer(
                **TRAINER, accelerator=accelerator, max_epochs=epochs, limit_val_batches=0, callbacks=callbacks
            )
            with quiet():
                data = PicturesData(count, size, batch_size=batch_size, views=2)
                run.fit(LitDistiller(make(), **teacher), datamodule=data)
            return Timing(*(sum(part) for part in zip(*epoch_times.timings, strict=True))) / (epochs - 1)

        fit(True, 2)  # fills it
        works = {"warm": partial(fit, True), "without": partial(fit, False)}
        timings = interleave(works, scaled(options.rounds, options, 2), options.seed, options.device)
    seconds = thread if options.device == "cpu" else wall
    return {
        "ratio": ratio(seconds(timings["warm"]), seconds(timings["without"])),
        "on the clock": ratio(wall(timings["warm"]), wall(timings["without"])),
        "ms an epoch without": 1000 * min(seconds(timings["without"])),
    }


# Steps


@contextmanager
def warm_module(bench: peers.Bench) -> Iterator[tuple[LitDistiller, Batch]]:
    """Yield a module with a teacher whose answers to a batch are cached, and which is put away, and that batch."""
    options = bench.options
    index = torch.arange(options.batch, device=bench.device)
    batch = Batch(bench.pixels, bench.target, index, torch.zeros_like(index))
    cache = TeacherCache(FrozenTeacher(bench.teacher(), mean=peers.MEAN, std=peers.STD))
    rows = OutputRows(AnswerRows(options.classes))
    with tempfile.TemporaryDirectory() as folder:
        source = Source(Answers(Path(folder), "train", {}, options.batch, rows.stride), rows, keyed=True)
        source.begin([0], torch.device(bench.device))
        with cache.reading(source):
            cache(batch)
        source.flush()
        source.merge([0])
        source.begin([0], torch.device(bench.device))
        assert source.is_warm
        cache.source = source
        cache.put_away(Path(folder))
        student = TimmStudent(options.student, options.classes, img_size=options.size)
        module = LitDistiller(student, cache, distillation=HardDistillation())
        if options.compile:
            module.student.compile()
        yield module, batch
        assert cache.is_away


def warm_steps(bench: peers.Bench, module: LitDistiller, batch: Batch) -> peers.StepTimer:
    with quiet():
        return peers.fit_steps(module, batch, bench.steps, bench.device, "bf16-mixed")


def measure_steps(options: argparse.Namespace, report: Report) -> None:
    for teacher in options.teachers:
        options.teacher = teacher
        bench = peers.Bench(options)
        makers = peers.contestants(bench)
        peaks: dict[str, float] = {}
        others = ("floor", "timm.task", "this project")
        wanted = [key for key in makers if key[0] in (*others, "student alone") and "best" in key[1]]
        table = f"a step, {options.student} from {teacher}, {options.size} px, batches of {options.batch}"
        if report.has(table, WARM):
            continue
        works = {", ".join(key): peers.timed(bench, ", ".join(key), makers[key][1](), peaks) for key in wanted}
        with warm_module(bench) as (module, batch):
            works[WARM] = peers.timed(bench, WARM, partial(warm_steps, bench, module, batch), peaks)
            timings = interleave(works, scaled(options.rounds, options, 2), options.seed, options.device)
        best = [peers.fastest(timings, who) for who in others]
        shown = [name for name in timings if name in best or name.startswith("timm.task")]
        for name, measured in timings.items():
            columns: dict[str, Any] = {"ms": 1000 * min(wall(measured))}
            for other in shown if name == WARM or name.startswith("student alone") else ():
                columns[f"times as fast as {other}"] = ratio(wall(timings[other]), wall(measured))
            if options.device == "cuda":
                columns["MB"] = peaks[name]
            report.row(table, name, **columns)
        for note in dict.fromkeys(bench.notes):
            report.note(note)


WARM = "warm cache"

# Memory and waits


class ForgetPeak(Callback):
    """Forgets the peak of this process when the second step begins."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            forget_peak()


def peak_of_steps(options: argparse.Namespace, is_warm: bool) -> float:
    """Return the MB that a process has at most in some steps, above those that it had before it made a network."""
    torch.set_num_threads(options.threads)
    warm_up = nn.Conv2d(3, 8, 3)  # what torch takes with its first work
    warm_up(torch.rand(2, 3, 8, 8)).sum().backward()
    torch.optim.AdamW(warm_up.parameters(), fused=True).step()
    bench = peers.Bench(options)
    before = resident()
    if is_warm:
        with warm_module(bench) as (module, batch), quiet():
            peers.fit_steps(module, batch, 3, "cpu", "bf16-mixed", [ForgetPeak()])
            return resident(peak=True) - before
    step = peers.floor(bench, True)
    step()
    forget_peak()
    for _ in range(3):
        step()
    return resident(peak=True) - before


def measure_memory(options: argparse.Namespace, report: Report) -> None:
    if options.device == "cuda":
        report.note("On a GPU the column MB of the steps is the peak of their allocations.")
        return
    for teacher in options.teachers:
        options.teacher = teacher

        def measure() -> dict[str, Any]:
            floor, warm = (alone(peak_of_steps, options, is_warm)[0] for is_warm in (False, True))
            return {"floor (MB)": floor, "warm cache (MB)": warm, "ratio": warm / floor}

        report.once("peak memory of steps", f"{options.student} from {teacher}, batches of {options.batch}", measure)


def measure_waits(options: argparse.Namespace, report: Report) -> None:
    steps = scaled(100, options, 2)

    def measure() -> dict[str, Any]:
        options.teacher = options.teachers[0]
        bench = peers.Bench(options)
        counter = SyncCounter(3, 3 + steps, options.device)
        with warm_module(bench) as (module, batch), quiet():
            accelerator = "gpu" if options.device == "cuda" else "cpu"
            run = Trainer(**TRAINER, accelerator=accelerator, max_steps=steps + 5, callbacks=[counter])
            run.fit(module, peers.SameBatch(batch, steps + 5))
        return {"waits": sum(counter.places.values()), "where": ", ".join(counter.places) or "nowhere"}

    report.once("reads that wait for the device", f"{steps} steps with a warm cache", measure)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, help="of these parts alone")
        parser.add_argument("--images", type=int, default=10_000, help="of the answers, by default 10,000")
        parser.add_argument("--teachers", nargs="+", default=["resnet50", "regnety_160"], help="timm's names")
        peers.add_steps(parser)

    options = options_of(__doc__, add)
    report = Report(__file__, options, "what", place=("only",))
    for name in options.only:
        globals()[f"measure_{name}"](options, report)
    report.finish()


if __name__ == "__main__":
    main()
