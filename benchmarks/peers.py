"""A training step of distillation: this project, its peers, plain PyTorch, and the floor.

    pip install vit-pytorch torchdistill
    python benchmarks/peers.py
    python benchmarks/peers.py --device cuda --batch 256 --compile
    python benchmarks/peers.py --device cuda --teacher regnety_160 --student deit_small_distilled_patch16_224 --compile

Needs timm, which comes with this project, and takes up vit-pytorch and torchdistill if they are installed. Downloads
nothing: weights and images are random, which does not change the time of a step. By default DeiT-Ti learns from
ResNet-50 at 224 px, in batches of 16, with hard labels of the teacher. A step is forward, backward and AdamW.

All stand in one process. A round is a few steps of each, in an order drawn anew each round; the ratios are medians over
the rounds with a 95 % bootstrap interval of the rounds. Each comes "as documented" (its README's example, float32), and
"at its best": bfloat16 autocast, channels_last, BatchNorm folded into the teacher's convolutions, fused AdamW, and with
``--compile`` compiled; the floor, timm.task and this project also with bfloat16 weights in the teacher, and the faster
one counts. On a CPU those who train timm's student come with "attention in steps" too, which this project chooses by
itself and timm does with ``fused_attn=False``: torch's fused kernel is slow in bfloat16 there. The floor is a teacher's
forward pass without gradient and a student's step on labels, nothing else.

This project runs in Lightning's Trainer with its data hooks and logging, and normalises ``uint8`` images for student
and teacher; the others get images that are normalised already. torchdistill's loss takes one head, so its student has a
token less. On a GPU, "MB" is the peak of a step's allocations above what lay there before.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
import importlib.metadata
import importlib.util
import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from measure import (
    Clock,
    Interval,
    Report,
    Timing,
    interleave,
    median_of,
    options_of,
    quiet,
    ratio,
    scaled,
    thread,
    wall,
)
import timm
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from lit_distill import FrozenTeacher, HardDistillation, LitDistiller, TimmStudent
from lit_distill.batch import Batch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SKIP = 1  # steps of everyone in a round that are not timed
Step = Callable[[], None]


class StepTimer(Callback):
    """Times ``steps`` steps of a fit, hooks and logging included, after ``skip`` others."""

    def __init__(self, steps: int, skip: int = SKIP, device: str = "cpu") -> None:
        self.steps, self.skip, self.device = steps, skip, device
        self.timing: Timing | None = None  # of one step
        self.peak = 0.0  # MB

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.skip:
            # Others drop their gradients at the end of a step, Lightning at the next backward.
            gradients = sum(p.grad.nbytes for p in pl_module.parameters() if p.grad is not None)
            self.memory = PeakMemory(self.device, gradients)
            self.clock = Clock(self.device)
        if trainer.global_step == self.skip + self.steps:
            self.timing = self.clock.read() / self.steps
            self.peak = self.memory.read()


class PeakMemory:
    """Started when made; `read` returns the MB of 10^6 bytes that were allocated on the GPU at most since then.

    Args:
        device: Without a GPU the figure is 0.
        freed: Bytes that lie there now and belong to the step.
    """

    def __init__(self, device: str, freed: int = 0) -> None:
        self.on_gpu = device == "cuda"
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() - freed

    def read(self) -> float:
        return (torch.cuda.max_memory_allocated() - self.before) / 1e6 if self.on_gpu else 0.0


class SameBatch:
    """A loader that yields one batch again and again."""

    def __init__(self, batch: Batch, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * self.count)


def fit_steps(
    module: LightningModule,
    batch: Batch,
    steps: int,
    device: str,
    precision: Any = "32-true",
    callbacks: list[Callback] | None = None,
) -> StepTimer:
    """Run some steps in Lightning's Trainer, whose start and end are not timed, and return the timer."""
    timer = StepTimer(steps, SKIP, device)
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=precision,
        max_steps=SKIP + steps + 1,
        callbacks=[*(callbacks or []), timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, SameBatch(batch, SKIP + steps + 1))
    if timer.timing is None:
        raise RuntimeError("the run ended before the last step")
    return timer


class Bench:
    """The same networks, images and optimizer for everyone."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        generator = torch.Generator().manual_seed(options.seed)
        shape = (options.batch, 3, options.size, options.size)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.target = torch.randint(0, options.classes, (options.batch,), generator=generator).to(self.device)
        self.pixels = pixels.to(self.device)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        self.image = ((pixels / 255 - mean) / std).to(self.device)
        self.channels_last = self.image.contiguous(memory_format=torch.channels_last)
        self.steps = scaled(options.steps, options)
        self.notes: list[str] = []

    def student(self, distilled: bool = True, in_steps: bool = False) -> nn.Module:
        name = self.options.student if distilled else self.options.student.replace("_distilled", "")
        torch.manual_seed(self.options.seed)
        net = timm.create_model(name, num_classes=self.options.classes, img_size=self.options.size)
        for module in net.modules():
            if in_steps and hasattr(module, "fused_attn"):
                module.fused_attn = False
        return net.to(self.device).train()

    def teacher(self, fast: bool = False, weights: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(self.options.seed)
        net = timm.create_model(self.options.teacher, num_classes=self.options.classes)
        net = net.to(self.device).eval().requires_grad_(False)
        if not fast:
            return net
        try:
            folded = fuse(net)
        except Exception as error:  # whatever tracing a network raises
            self.notes.append(f"BatchNorm of {self.options.teacher} is not folded: {str(error).splitlines()[0]}")
            folded = net
        return folded.to(weights, memory_format=torch.channels_last).eval().requires_grad_(False)

    def optimizer(self, parameters: Any, fast: bool) -> torch.optim.Optimizer:
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, fused=True if fast else None)

    def autocast(self, fast: bool) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16) if fast else nullcontext()

    def compiled(self, net: nn.Module, fast: bool) -> nn.Module:
        if self.options.compile and fast:
            net.compile()
        return net

    def step(self, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], fast: bool) -> Step:
        def step() -> None:
            with self.autocast(fast):
                loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def floor(bench: Bench, fast: bool, weights: torch.dtype = torch.float32, in_steps: bool = False) -> Step:
    student = bench.compiled(bench.student(in_steps=in_steps), fast)
    student.set_distilled_training(True)
    teacher = bench.compiled(bench.teacher(fast, weights), fast)
    image = bench.channels_last if fast else bench.image
    asked = image.to(weights)

    def loss_of() -> Tensor:
        with torch.no_grad():
            teacher(asked)
        return F.cross_entropy(sum(student(image)), bench.target)

    return bench.step(bench.optimizer(student.parameters(), fast), loss_of, fast)


def student_alone(bench: Bench, fast: bool, in_steps: bool = False) -> Step:
    student = bench.compiled(bench.student(in_steps=in_steps), fast)
    student.set_distilled_training(True)

    def loss_of() -> Tensor:
        return F.cross_entropy(sum(student(bench.image)), bench.target)

    return bench.step(bench.optimizer(student.parameters(), fast), loss_of, fast)


def plain_pytorch(bench: Bench, fast: bool, in_steps: bool = False) -> Step:
    student = bench.compiled(bench.student(in_steps=in_steps), fast)
    student.set_distilled_training(True)
    teacher = bench.compiled(bench.teacher(fast), fast)
    image = bench.channels_last if fast else bench.image

    def loss_of() -> Tensor:
        with torch.no_grad():
            taught = teacher(image).argmax(dim=1)
        logits, distill_logits = student(image)
        return 0.5 * F.cross_entropy(logits, bench.target) + 0.5 * F.cross_entropy(distill_logits, taught)

    return bench.step(bench.optimizer(student.parameters(), fast), loss_of, fast)


def timm_task(bench: Bench, fast: bool, weights: torch.dtype = torch.float32, in_steps: bool = False) -> Step:
    from timm.task import TokenDistillationTask

    logging.getLogger("timm.task").setLevel(logging.ERROR)
    task = TokenDistillationTask(
        student_model=bench.student(in_steps=in_steps),
        teacher_model=bench.teacher(fast, weights),
        criterion=nn.CrossEntropyLoss(),
        distill_type="hard",
        task_loss_weight=0.5,
        device=torch.device(bench.device),
        verbose=False,
    ).train()
    optimizer = bench.optimizer(task.trainable_module.parameters(), fast)
    if bench.options.compile and fast:
        task.compile()
    image = bench.channels_last if fast else bench.image
    return bench.step(optimizer, lambda: task(image, bench.target)["loss"], fast)


def distill_wrapper(bench: Bench, fast: bool) -> Step:
    from vit_pytorch.distill import DistillableViT, DistillWrapper

    like = bench.student()
    torch.manual_seed(bench.options.seed)
    student = DistillableViT(
        image_size=bench.options.size,
        patch_size=like.patch_embed.patch_size[0],
        num_classes=bench.options.classes,
        dim=like.embed_dim,
        depth=len(like.blocks),
        heads=like.blocks[0].attn.num_heads,
        mlp_dim=like.blocks[0].mlp.fc1.out_features,
    )
    wrapper = DistillWrapper(student=student, teacher=bench.teacher(fast), hard=True, alpha=0.5).to(bench.device)
    if fast:  # its README's example leaves the teacher in training mode, where its statistics drift
        wrapper.teacher.eval()
    bench.compiled(wrapper, fast)
    image = bench.channels_last if fast else bench.image
    return bench.step(bench.optimizer(wrapper.parameters(), fast), lambda: wrapper(image, bench.target), fast)


def torch_distill(bench: Bench, fast: bool, in_steps: bool = False) -> Step:
    logging.disable(logging.INFO)  # it logs both networks
    from torchdistill.core.distillation import get_distillation_box

    nets: dict[str, Any] = {"forward_proc": "forward_batch_only"}
    paths = {f"{who}_module_{part}": value for who in ("student", "teacher") for part, value in IO.items()}
    kd = {"key": "KDLoss", "kwargs": {**paths, "temperature": 1.0, "alpha": 0.5}}
    config = {
        "num_epochs": 1,
        "teacher": {**nets, "requires_grad": False},
        "student": {**nets},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-3, "weight_decay": 0.05, "fused": True if fast else None}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
    }
    student, teacher = bench.student(distilled=False, in_steps=in_steps), bench.teacher(fast)
    place = torch.device(bench.device)
    box = get_distillation_box(teacher, student, {}, config, place, None, False, 1.0)
    bench.compiled(student, fast), bench.compiled(teacher, fast)
    image = bench.channels_last if fast else bench.image

    def step() -> None:
        with bench.autocast(fast):
            loss = box.forward_process(image, bench.target, None)
        box.post_forward_process(loss=loss)

    return step


IO = {"path": ".", "io": "output"}


def this_project(
    bench: Bench, fast: bool, precision: str, teacher_precision: str | None = None
) -> Callable[[], StepTimer]:
    """Return what runs steps in Lightning's Trainer, and times them itself."""
    options = bench.options
    student = TimmStudent(options.student, options.classes, img_size=options.size)
    arguments: dict[str, Any] = {"precision": teacher_precision, "channels_last": True} if fast else {}
    teacher = FrozenTeacher(bench.teacher(fast), mean=MEAN, std=STD, **arguments)
    module = LitDistiller(student, teacher, distillation=HardDistillation())
    if options.compile and fast:
        module.student.compile()
        teacher.model.compile()
    index = torch.arange(options.batch, device=bench.device)
    batch = Batch(bench.pixels, bench.target, index, torch.zeros_like(index))

    def run() -> StepTimer:
        with quiet():
            return fit_steps(module, batch, bench.steps, bench.device, precision)

    return run


DOCUMENTED, BEST, BF16 = "as documented", "at its best", "at its best, bf16 weights"
STEPS = "at its best, attention in steps"


def contestants(bench: Bench) -> dict[tuple[str, str], tuple[str, Callable[[], Any]]]:
    """Return the package that each needs and what makes it, by who and how."""
    half = torch.bfloat16
    trainers = {
        "floor": ("torch", floor),
        "student alone": ("torch", student_alone),
        "plain PyTorch": ("torch", plain_pytorch),
        "timm.task": ("timm.task", timm_task),
        "torchdistill": ("torchdistill", torch_distill),
    }
    in_steps = {
        (who, STEPS): (package, partial(make, bench, True, in_steps=True))
        for who, (package, make) in trainers.items()
        if bench.device == "cpu"
    }
    return in_steps | {
        ("floor", "float32"): ("torch", partial(floor, bench, False)),
        ("floor", BEST): ("torch", partial(floor, bench, True)),
        ("floor", BF16): ("torch", partial(floor, bench, True, half)),
        ("student alone", BEST): ("torch", partial(student_alone, bench, True)),
        ("plain PyTorch", DOCUMENTED): ("torch", partial(plain_pytorch, bench, False)),
        ("plain PyTorch", BEST): ("torch", partial(plain_pytorch, bench, True)),
        ("timm.task", DOCUMENTED): ("timm.task", partial(timm_task, bench, False)),
        ("timm.task", BEST): ("timm.task", partial(timm_task, bench, True)),
        ("timm.task", BF16): ("timm.task", partial(timm_task, bench, True, half)),
        ("DistillWrapper", DOCUMENTED): ("vit_pytorch", partial(distill_wrapper, bench, False)),
        ("DistillWrapper", BEST): ("vit_pytorch", partial(distill_wrapper, bench, True)),
        ("torchdistill", DOCUMENTED): ("torchdistill", partial(torch_distill, bench, False)),
        ("torchdistill", BEST): ("torchdistill", partial(torch_distill, bench, True)),
        ("this project", DOCUMENTED): ("torch", partial(this_project, bench, False, "32-true")),
        ("this project", "our defaults in bf16-mixed"): ("torch", partial(this_project, bench, False, "bf16-mixed")),
        ("this project", BEST): ("torch", partial(this_project, bench, True, "bf16-mixed")),
        ("this project", BF16): ("torch", partial(this_project, bench, True, "bf16-mixed", "bf16")),
    }


def timed(bench: Bench, name: str, run: Callable[[], Any], peaks: dict[str, float]) -> Callable[[], Timing]:
    """Return a work that runs a round's steps and returns the time of one."""

    def work() -> Timing:
        timer = run()
        if isinstance(timer, StepTimer):  # was a whole fit, not a step
            peaks[name] = timer.peak
            assert timer.timing is not None
            return timer.timing
        for _ in range(SKIP - 1):
            run()
        memory, clock = PeakMemory(bench.device), Clock(bench.device)
        for _ in range(bench.steps):
            run()
        timing = clock.read() / bench.steps
        peaks[name] = memory.read()
        return timing

    return work


def fastest(timings: dict[str, list[Timing]], who: str) -> str | None:
    """Return the fastest of someone's ways."""
    ways = [name for name in timings if name.startswith(f"{who}, ")]
    return min(ways, key=lambda name: median_of(wall(timings[name])).median, default=None)


def add_steps(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what a step is, and how many are timed."""
    parser.add_argument("--student", default="deit_tiny_distilled_patch16_224", help="timm's name, with two heads")
    parser.add_argument("--size", type=int, default=224, help="pixels, by default 224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="of each in a round")
    parser.add_argument("--compile", action="store_true", help="compile what is at its best")


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--teacher", default="resnet50", help="timm's name, by default resnet50")
        add_steps(parser)
        parser.add_argument("--only", nargs="+", default=[], help="of these alone, such as 'timm.task', and the floor")

    options = options_of(__doc__, add)
    report = Report(__file__, options, "who, how")
    bench = Bench(options)
    works: dict[str, Callable[[], Timing]] = {}
    peaks: dict[str, float] = {}
    for (who, how), (package, make) in contestants(bench).items():
        top = package.partition(".")[0]
        if options.only and who not in ("floor", *options.only):
            continue
        if importlib.util.find_spec(top) is None or importlib.util.find_spec(package) is None:
            report.note(f"{who} is left out: pip install {top.replace('_', '-')}")
            continue
        name = f"{who}, {how}"
        works[name] = timed(bench, name, make(), peaks)
    for package in ("vit-pytorch", "torchdistill"):
        if importlib.util.find_spec(package.replace("-", "_")) is not None:
            report.note(f"{package} {importlib.metadata.version(package)}")
    for note in dict.fromkeys(bench.notes):
        report.note(note)
    timings = interleave(works, scaled(options.rounds, options, 2), options.seed, options.device)
    reference = fastest(timings, "floor")
    for name, measured in timings.items():
        milliseconds = median_of(1000 * seconds for seconds in wall(measured))
        columns: dict[str, Interval | float] = {"ms a step": milliseconds, "of the floor": of_floor(timings, name)}
        if options.device == "cpu":
            columns["thread's ms"] = median_of(1000 * seconds for seconds in thread(measured)).median
        else:
            columns["MB"] = peaks[name]
        columns["images/s"] = options.batch * 1000 / milliseconds.median
        report.row("a step", name, **columns)
    report.note(f"The floor is {reference!r}.")
    ours = fastest(timings, "this project")
    for name in timings:
        who = name.partition(", ")[0]
        if ours is not None and who not in ("this project", "floor", "student alone"):
            times_as_fast = ratio(wall(timings[name]), wall(timings[ours]))
            report.row(f"how many times as fast {ours!r} is", name, ratio=times_as_fast)
    report.finish()


def of_floor(timings: dict[str, list[Timing]], name: str) -> Interval:
    reference = fastest(timings, "floor")
    assert reference is not None
    return ratio(wall(timings[name]), wall(timings[reference]))


if __name__ == "__main__":
    main()
