"""The training loop as a whole: no step reads on the host what the device has yet to compute."""

from collections import Counter
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
import traceback
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toys import QUIET, FewDigits

from lit_distill import DKD, DigitsCNN, DistillableViT, HardDistillation, LitDistiller, SoftDistillation
from lit_distill.callbacks import (
    DistillationWarmup,
    DivergenceCheck,
    LearningWithRetrospection,
    StepSeed,
    TeacherCaching,
)
from lit_distill.datamodules import DigitsDataModule

ROOT = Path(__file__).parents[1]

# `numpy` is not among them: it reads host memory alone, and raises for a tensor on a GPU.
METHODS = {"item", "tolist", "cpu", "nonzero", "equal", "allclose", "__bool__", "__float__", "__int__", "__index__"}
OPERATIONS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}
# The data are read on the host. And in validation torchmetrics looks at the range of probabilities on the CPU;
# on other devices it does not.
ON_THE_HOST = ("datamodules/", "torchmetrics/utilities/compute.py: normalize_logits_if_needed")


def caller() -> str:
    """Return the innermost function outside of torch that is under way."""
    frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
    path = Path(frames[-1].filename)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else '/'.join(path.parts[-3:])}: {frames[-1].name}"


class Reads(TorchFunctionMode):
    """Counts what waits for the device by who calls it, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: Counter[tuple[str, str]] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in METHODS:
            self.callers[func.__name__, caller()] += 1
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Counts those that no method shows, such as an index of booleans."""

    def __init__(self, callers: Counter[tuple[str, str]]) -> None:
        super().__init__()
        self.callers = callers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name.startswith("aten::index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for part in args
            for index in (part if isinstance(part, (list, tuple)) else [])
        )
        if name in OPERATIONS or by_mask:
            self.callers[name, caller()] += 1
        return func(*args, **(kwargs or {}))


def reads_in_steps(
    folder: Path, module: LitDistiller, *more: Callback, data: LightningDataModule | None = None, **options: Any
) -> Counter[tuple[str, str]]:
    """Return what reads in the second epoch's steps, with the logger and progress bar of Lightning's defaults.

    In the first epoch the network looks once at the range of its images.
    """
    reads = Reads()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if run.current_epoch == 0:
                return function(*args, **kwargs)
            with reads, Operations(reads.callers):
                return function(*args, **kwargs)

        return call

    callbacks = [LearningWithRetrospection(interval=1), StepSeed(), DivergenceCheck(), DistillationWarmup(2), *more]
    defaults = {**QUIET, "logger": True, "enable_progress_bar": True, "default_root_dir": folder}
    run = Trainer(**{**defaults, "max_epochs": 2, "limit_train_batches": 5, "callbacks": callbacks, **options})
    loop = run.fit_loop.epoch_loop
    loop.advance = counted(loop.advance)  # type: ignore[method-assign]  # a batch, from its hooks to its logging
    module.validation_step = counted(module.validation_step)  # type: ignore[method-assign]
    run.fit(module, datamodule=data or DigitsDataModule(batch_size=16))
    assert {"train/loss", "train/criterion", "retrospection/kl", "val/nll"} < set(run.callback_metrics)
    return Counter({key: count for key, count in reads.callers.items() if not key[1].startswith(ON_THE_HOST)})


def distiller(**kwargs: Any) -> LitDistiller:
    student = DistillableViT(8, 4, 10, dim=16, depth=1, heads=2, mlp_dim=16, dim_head=8, channels=1)
    arguments = {"student": student, "teacher": DigitsCNN(), "distillation": HardDistillation(), **kwargs}
    return LitDistiller(**arguments)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "precision": "bf16-mixed"},
        {"log_every_n_steps": 1},
    ],
    ids=["default", "accumulated and clipped", "logged often"],
)
def test_no_step_waits_for_the_device(tmp_path: Path, options: dict[str, Any]) -> None:
    """Neither our code nor Lightning's does, whatever is logged."""
    losses = {"dkd": {"loss": DKD()}, "soft": {"loss": SoftDistillation(3.0)}}
    assert reads_in_steps(tmp_path, distiller(distillation=losses), **options) == Counter()


def test_no_step_with_a_warm_teacher_cache_waits(tmp_path: Path) -> None:
    caching = TeacherCaching(views=1, single_view=True, folder=tmp_path / "cache")
    module, data = distiller(), FewDigits(rows=80, batch_size=16)
    assert reads_in_steps(tmp_path, module, caching, data=data) == Counter()
    assert len(list(tmp_path.glob("cache/train-*/00000.answers"))) == 1


def test_a_step_that_waits_is_counted(tmp_path: Path) -> None:
    class Waits(nn.Module):
        def forward(self, student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return student[target > 4].sum() * 0 + float(student.detach().sum()) * 0

    callers = reads_in_steps(tmp_path, distiller(distillation=Waits()))
    assert {name for name, _ in callers} >= {"__float__", "aten::index"}


@pytest.mark.gpu
def test_no_step_synchronises_a_gpu(tmp_path: Path) -> None:
    strict_steps = 0

    def strict(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, in which a synchronisation is an error."""
        nonlocal strict_steps
        strict_steps += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    module = distiller()
    module.training_step = partial(strict, module.training_step)  # type: ignore[method-assign]
    callbacks = [LearningWithRetrospection(interval=1), StepSeed(), DivergenceCheck()]
    options = {**QUIET, "accelerator": "cuda", "max_epochs": 3, "callbacks": callbacks}
    run = Trainer(**options)
    run.fit(module, datamodule=DigitsDataModule(batch_size=16))
    assert strict_steps == run.global_step > 0
