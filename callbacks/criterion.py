"""Replacing the value of a criterion in training."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
import inspect
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
import torch
from torch import Tensor, nn
from typing_extensions import override

Args = tuple[object, ...]
KwArgs = Mapping[str, object]

# What replaces the value: called with (loss, logits, target, epoch), the epoch counted from 1; None leaves the value.
Replace = Callable[[Tensor, Tensor, Tensor, int], Tensor | None]


class CriterionHook:
    """The part of a callback that replaces its criterion's value in training steps.

    The callback calls `attach` when it is set up, `begin_step` and `end_step` around each batch, and `remove` at the
    end. In between, `replace` gets what the criterion returned and was called with. The value stays as it is outside of
    training steps, and in calls without gradient.

    Args:
        owner: The callback.
        criterion: Dotted name of the criterion among the module's submodules.
        replace: Returns the new value, a scalar, or None.

    Attributes:
        handles: What `remove` undoes; the callback may add hooks of its own.
    """

    def __init__(self, owner: Callback, criterion: str, replace: Replace) -> None:
        self.owner = owner
        self.criterion = criterion
        self.replace = replace
        self.handles = ExitStack()
        self._epoch = 0  # of the step under way, counted from 1; 0 outside of steps
        self._calls = 0  # of the criterion in this step
        self._ever_called = False

    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the criterion of ``pl_module``.

        Raises:
            ValueError: If there is no such submodule, or another callback of ``trainer`` replaces its value.
        """
        self.remove()  # after a fit that failed before it could clean up
        criterion = find_submodule(pl_module, self.criterion, "criterion")
        hooks = [getattr(callback, "_hook", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]  # set late
        ours = [hook for hook in hooks if isinstance(hook, CriterionHook) and hook.criterion == self.criterion]
        owners = [type(hook.owner).__name__ for hook in ours]
        if len(owners) > 1:
            raise ValueError(
                f"two callbacks replace the value of criterion {self.criterion!r}, {' and '.join(owners)}: remove one"
            )

        # A plain function: deep copies of the module share it, such as those that average weights. Copying a bound
        # method would copy the callback and its table.
        def replace(criterion: nn.Module, args: Args, kwargs: KwArgs, loss: Tensor) -> Tensor | None:
            return self._replace(criterion, args, kwargs, loss)

        self.handles.enter_context(criterion.register_forward_hook(replace, with_kwargs=True))

    def begin_step(self, epoch: int) -> None:
        """Announce a training step of ``epoch``, counted from 1; without that the hook does nothing."""
        self._epoch, self._calls = epoch, 0

    def end_step(self) -> None:
        """End the step.

        Raises:
            ValueError: If no step has called the criterion so far. A module may skip a single step.
        """
        self._epoch = 0
        if not self._ever_called:
            raise ValueError(
                f"the training step did not call {self.criterion!r}: have it compute the loss with "
                f"self.{self.criterion}(logits, target), or name its criterion with criterion="
            )

    def remove(self) -> None:
        """Remove the hook."""
        self.handles.close()
        self._epoch, self._ever_called = 0, False

    def _replace(self, criterion: nn.Module, args: Args, kwargs: KwArgs, loss: Tensor) -> Tensor | None:
        if not self._epoch or not torch.is_grad_enabled():
            return None
        self._calls, self._ever_called = self._calls + 1, True
        if self._calls > 1:
            raise ValueError(
                f"the training step called {self.criterion!r} twice, so which prediction counts is open: compute the "
                "other loss with a criterion of its own, and use no optimizer that repeats a step, such as LBFGS"
            )
        logits, target = _logits_and_target(criterion, args, kwargs)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise ValueError(
                f"{type(self.owner).__name__} needs a criterion that returns a scalar, got {describe(loss)}: "
                "set its reduction to 'mean'"
            )
        return self.replace(loss, logits, target, self._epoch)


class CriterionCallback(Callback, ABC):
    """Base of callbacks that replace a criterion's value in training, in any Lightning project.

    The module needs a submodule ``pl_module.<criterion>(logits, target)`` that returns a scalar and is called once in a
    training step, with automatic or manual optimization. A subclass implements `mix`, which returns the new value.
    Validation, testing, the sanity check and calls without gradient get the criterion's own value.

    Args:
        criterion: Dotted name of the criterion among the module's submodules.

    Raises:
        ValueError: Before the first step if the criterion is no submodule, or has such a callback already; in a step
            that calls it twice or not at all, or if it returns no scalar.
    """

    def __init__(self, criterion: str = "criterion") -> None:
        super().__init__()
        self._hook = CriterionHook(self, criterion, self.mix)

    @abstractmethod
    def mix(self, loss: Tensor, logits: Tensor, target: Tensor, epoch: int) -> Tensor | None:
        """Return the scalar that training uses instead of ``loss``, or None to leave it.

        Args:
            loss: What the criterion returned.
            logits: ``(B, K)``.
            target: ``(B,)`` classes, or ``(B, K)`` probabilities.
            epoch: Counted from 1.
        """

    def forget(self) -> None:
        """Drop what a former run left, before a new one begins."""

    @property
    def criterion(self) -> str:
        """Dotted name of the criterion."""
        return self._hook.criterion

    @property
    def state_key(self) -> str:
        """Two of these on two criteria of one module have a state each."""
        return self._generate_state_key(criterion=self.criterion)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            if begins_run(trainer):
                self.forget()
            self._hook.attach(trainer, pl_module)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        take_state(self, self.forget, trainer, checkpoint)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self._hook.begin_step(trainer.current_epoch + 1)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._hook.end_step()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._hook.remove()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._hook.remove()


def begins_run(trainer: Trainer) -> bool:
    """Tell in ``setup`` whether ``fit`` begins a run, rather than going on where the trainer's last fit ended."""
    # Not `global_step`, which stays 0 if a manual optimization steps the optimizer behind Lightning's back.
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready == 0


def take_state(callback: Callback, forget: Callable[[], None], trainer: Trainer, checkpoint: dict[str, object]) -> None:
    """Load a callback's state and take it out of the checkpoint: Lightning would copy what it finds there."""
    states = cast(dict[str, dict[str, object]], checkpoint.get("callbacks", {}))
    state = states.pop(callback.state_key, None)
    if trainer.state.fn == "fit":  # a validation between two fits must not bring an older state back
        forget()
        if state:
            callback.load_state_dict(state)


def find_submodule(pl_module: nn.Module, name: str, option: str) -> nn.Module:
    """Return the submodule of that dotted name, which the callback was given as ``option``.

    Raises:
        ValueError: If there is none; names those there are.
    """
    try:
        return pl_module.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in pl_module.named_children()) or "none"
        raise ValueError(
            f"{type(pl_module).__name__} has no submodule {name!r} to hook; name its {option} with {option}=, "
            f"of its submodules {children}"
        ) from None


def warn_if_too_late(name: str, option: str, begin: int, epochs: int | None) -> None:
    """Say so if a method that begins after ``begin`` epochs never begins."""
    if epochs is not None and 0 < epochs <= begin:
        rank_zero_info(f"{name} has no effect: its {option} {begin} is not below the run's {epochs} epochs")


def describe(value: object) -> str:
    """Return the shape of a tensor, or the type of anything else."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _logits_and_target(criterion: nn.Module, args: Args, kwargs: KwArgs) -> tuple[Tensor, Tensor]:
    if kwargs:
        args = tuple(inspect.signature(criterion.forward).bind(*args, **kwargs).arguments.values())
    match args:
        case (Tensor() as logits, Tensor() as target, *_):
            return logits, target if target.is_floating_point() else target.long()
    types = ", ".join(type(argument).__name__ for argument in args)
    raise ValueError(f"retrospection needs a criterion that is called with (logits, target), got ({types})")
