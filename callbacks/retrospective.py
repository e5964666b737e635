"""The retrospective loss against a snapshot of the network, as a callback."""

import copy
from typing import TypedDict, cast

from lightning.pytorch import LightningModule, Trainer
import torch
from torch import Tensor, distributed, nn
from typing_extensions import override

from lit_distill.callbacks.criterion import (
    Args,
    CriterionCallback,
    KwArgs,
    describe,
    find_submodule,
    warn_if_too_late,
)
from lit_distill.checks import check_at_least
from lit_distill.losses import retrospective_loss


class _State(TypedDict):
    """What a checkpoint keeps of the callback."""

    taken: int
    snapshot: dict[str, Tensor]


class RetrospectiveLoss(CriterionCallback):
    r"""Add `retrospective_loss` to a criterion, against a frozen snapshot of the network on the same images.

    In epoch i, counted from 1, with interval k: for i <= k the criterion is left alone. A snapshot of the network is
    taken when the epochs k + 1, 2 k + 1, ... begin. From then on it gets the network's inputs of each step, in eval
    mode and without gradient, and the criterion's value becomes

    .. math:: \mathrm{criterion}(z, y) + (\kappa + 1)\,\lVert p - \mathrm{onehot}(y) \rVert_1
        - \kappa\,\lVert p - p_\text{past} \rVert_1

    The snapshot is part of the checkpoint, but not of the module, its optimizer or DDP.

    Args:
        interval: k >= 1 epochs between two snapshots.
        kappa: >= 0; larger pushes further away from the past.
        network: Dotted name of the submodule that makes the logits, once a step.
        criterion: Dotted name of the criterion among the module's submodules.

    Raises:
        ValueError: At construction for a value out of range; before the first step if network or criterion is no
            submodule; in a step that does not call the network, or whose network returns no logits.

    Source:
        Jandial et al., KDD 2020, arXiv 2006.13593.

    Example:
        >>> trainer = Trainer(max_epochs=20, callbacks=RetrospectiveLoss(interval=3), logger=False)
    """

    def __init__(
        self, interval: int = 5, kappa: float = 4.0, network: str = "student", criterion: str = "criterion"
    ) -> None:
        super().__init__(criterion)
        check_at_least(1, interval=interval)
        check_at_least(0, kappa=kappa)
        self.interval = interval
        self.kappa = kappa
        self.network = network
        self.forget()

    @override
    def forget(self) -> None:
        self.snapshot: nn.Module | None = None
        self._snapshot_epoch = 0  # at the end of which the snapshot's weights were the network's
        self._restored_weights: dict[str, Tensor] = {}
        self._inputs: list[tuple[Args, KwArgs]] = []  # of the network in this step

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        warn_if_too_late(type(self).__name__, "interval", self.interval, trainer.max_epochs)

        # The snapshot copies the hook with the network, but is called without gradient.
        def listen(network: nn.Module, args: Args, kwargs: KwArgs) -> None:
            if network.training and torch.is_grad_enabled():
                self._inputs.append((args, kwargs))

        network = find_submodule(pl_module, self.network, "network")
        self._hook.handles.enter_context(network.register_forward_pre_hook(listen, with_kwargs=True))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored_weights:
            self._take_snapshot(pl_module, self._restored_weights)
            self._restored_weights = {}

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._inputs = []
        # By number: after a checkpoint of an epoch's last step Lightning calls no hook of that epoch's end.
        due = trainer.current_epoch // self.interval * self.interval
        if due > self._snapshot_epoch:
            self._snapshot_epoch = due
            self._take_snapshot(pl_module, find_submodule(pl_module, self.network, "network").state_dict())

    @override
    def mix(self, loss: Tensor, logits: Tensor, target: Tensor, epoch: int) -> Tensor | None:
        if self.snapshot is None:
            return None
        if len(self._inputs) != 1:
            calls = "twice, and a snapshot can follow one call" if self._inputs else "not at all"
            raise ValueError(f"the training step called {self.network!r} {calls}: name its network with network=")
        args, kwargs = self._inputs[0]
        with torch.no_grad():
            past = self.snapshot(*args, **kwargs)
        past = getattr(past, "logits", past)
        if not isinstance(past, Tensor) or past.shape != logits.shape:
            raise ValueError(
                f"{self.network!r} must return the criterion's logits {tuple(logits.shape)}, got {describe(past)}"
            )
        return loss + retrospective_loss(logits, past, target, self.kappa)

    @override
    def state_dict(self) -> dict[str, object]:
        return {} if self.snapshot is None else {"taken": self._snapshot_epoch, "snapshot": self.snapshot.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        state = cast(_State, state_dict)
        self._snapshot_epoch, self._restored_weights = state["taken"], state["snapshot"]

    def _take_snapshot(self, pl_module: LightningModule, weights: dict[str, Tensor]) -> None:
        if self.snapshot is None:
            network = find_submodule(pl_module, self.network, "network")
            self.snapshot = copy.deepcopy(network).eval().requires_grad_(False)
        self.snapshot.load_state_dict(weights)
        if pl_module.trainer.world_size > 1:
            for buffer in self.snapshot.buffers():  # those of a norm differ between processes until DDP's next step
                distributed.broadcast(buffer, src=0)
