"""What the callbacks share that change a criterion's value in training."""

from abc import ABC, abstractmethod
import inspect
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override


class CriterionCallback(Callback, ABC):
    """Base of callbacks that replace a criterion's value in training, in any Lightning project.

    All it needs of the module is a submodule ``pl_module.<criterion>(logits, target)`` that returns a scalar and is
    called once a training step, automatic or manual. A subclass says in `mix` what becomes of the value. Validation,
    testing, the sanity check and calls without gradient get the criterion's own value.

    Args:
        criterion: Dotted name of the criterion among the module's submodules.

    Raises:
        ValueError: Before the first step if the criterion is no submodule, or has such a callback already; in a step
            that calls it twice or not at all, or if it returns no scalar.
    """

    def __init__(self, criterion: str = "criterion") -> None:
        super().__init__()
        self.criterion = criterion
        self._handle: RemovableHandle | None = None
        self._module: LightningModule | None = None
        self._calls: int | None = None  # of the criterion in this step; None outside of steps
        self._ever_called = False
        self._loaded = False  # True once this run has restored the state of a checkpoint

    @abstractmethod
    def mix(self, loss: Tensor, logits: Tensor, target: Tensor, epoch: int) -> Tensor | None:
        """Return the scalar that training uses instead of ``loss``, or None to leave it.

        Args:
            loss: What the criterion returned.
            logits: ``(B, K)``.
            target: ``(B,)`` classes, or ``(B, K)`` probabilities.
            epoch: Counted from 1.
        """

    def prepare(self, module: LightningModule, logits: Tensor, target: Tensor) -> Tensor:
        """Check what `mix` is about to be called with, and return the logits for it."""
        return logits

    @property
    def state_key(self) -> str:
        """Two of these on two criteria of one module keep a state each."""
        return self._generate_state_key(criterion=self.criterion)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._loaded = False
        criterion = find_submodule(pl_module, self.criterion, "criterion")
        for hook in list(criterion._forward_hooks.values()):
            other = getattr(hook, "callback", None)
            if other is not None and other is not self and other in trainer.callbacks:  # type: ignore[attr-defined]
                names = f"{type(other).__name__} and {type(self).__name__}"
                raise ValueError(
                    f"two retrospection callbacks on one criterion {self.criterion!r}, {names}: remove one"
                )
            if other is not None:  # left behind by a fit that failed before it could clean up
                other._release()
        self._module = pl_module

        # A function, not a method: copying the module (to average its weights, say) must not copy callback and state.
        def call_mix(*args: Any) -> Tensor | None:
            return self._mix(*args)

        call_mix.callback = self  # type: ignore[attr-defined]
        self._handle = criterion.register_forward_hook(call_mix, with_kwargs=True)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":  # a validation between two fits must not bring an older state back
            checkpoint.get("callbacks", {}).pop(self.state_key, None)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning restores what a checkpoint has; a callback that has been through another run may have more.
        loaded, self._loaded = self._loaded, False
        # Steps of a manual optimization need not count in `global_step`.
        begins = trainer.fit_loop.epoch_loop.batch_progress.total.ready == 0
        if not loaded and (begins or trainer.fit_loop.restarting):
            self.forget()

    def forget(self) -> None:
        """Begin a new run without what another has left."""

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = True

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._calls = 0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._calls = None
        if not self._ever_called:  # a single step without may be one that the module skips
            raise ValueError(
                f"the training step did not call {self.criterion!r}: have it compute the loss with "
                f"self.{self.criterion}(logits, target), or name its criterion with criterion="
            )

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._module = self._calls = None
        self._ever_called = False

    def _mix(self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Tensor) -> Tensor | None:
        """Forward hook of the criterion; inert unless a training batch was announced."""
        module = self._module
        if module is None or self._calls is None or not module.training or not torch.is_grad_enabled():
            return None
        self._calls, self._ever_called = self._calls + 1, True
        if self._calls > 1:
            raise ValueError(
                f"the training step called {self.criterion!r} twice, so which prediction counts is open: compute the "
                "other loss with a criterion of its own, and use no optimizer that repeats a step, such as LBFGS"
            )
        logits, target = _logits_and_target(criterion, args, kwargs)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"{type(self).__name__} needs a criterion that returns a scalar, got {got}: set its reduction to 'mean'"
            )
        return self.mix(loss, self.prepare(module, logits, target), target, module.current_epoch + 1)


def find_submodule(pl_module: nn.Module, name: str, option: str) -> nn.Module:
    """Return the submodule of that dotted name, which the callback was given as ``option``.

    Raises:
        ValueError: If there is none; names those there are.
    """
    try:
        found = pl_module.get_submodule(name) if name else None
    except AttributeError:
        found = None
    if found is None:
        there = [child for child, _ in pl_module.named_children()]
        raise ValueError(
            f"{type(pl_module).__name__} has no submodule {name!r} to hook; name its {option} with {option}=, "
            f"of its submodules {', '.join(there) or 'none'}"
        )
    return found


def say_if_too_late(name: str, option: str, begin: int, epochs: int | None) -> None:
    """Say so if what begins after ``begin`` epochs never does."""
    if epochs is not None and 0 < epochs <= begin:
        rank_zero_info(f"{name} has no effect: its {option} {begin} is not below the run's {epochs} epochs")


def _logits_and_target(criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    if len(args) < 2:
        args = tuple(inspect.signature(criterion.forward).bind(*args, **kwargs).arguments.values())
    if len(args) < 2 or not all(isinstance(arg, Tensor) for arg in args[:2]):
        got = ", ".join(type(arg).__name__ for arg in args)
        raise ValueError(f"retrospection needs a criterion that is called with (logits, target), got ({got})")
    logits, target = args[:2]
    return logits, target if target.is_floating_point() else target.long()
