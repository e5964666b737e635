"""The end of a run whose weights are lost."""

from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
import torch
from torch import Tensor
from typing_extensions import override

from lit_distill.callbacks.summary import checkpoint_paths
from lit_distill.models.finite import not_finite

_BATCHES = 2**40  # more than an epoch has
_NEVER = torch.iinfo(torch.int64).max


class DivergenceCheck(Callback):
    """End a run whose weights have become NaN or infinite, before a checkpoint holds them.

    The loss of every step is looked at on the device, and the verdict copied to the host without waiting: on a CPU the
    run ends at the very step, on a GPU a few steps later, and with several ranks before the next validation, checkpoint
    or epoch, which are moments when all ranks look at their weights too. A loss that is not finite while the weights
    are, as when a gradient scaler skips the step, is a warning, once an epoch.

    Raises:
        ValueError: If the weights are lost; in training it names the epoch, the batch and the last checkpoint before.

    Example:
        >>> trainer = Trainer(callbacks=DivergenceCheck(), logger=False)
    """

    def __init__(self) -> None:
        super().__init__()
        # Epoch and batch of the first loss that is not finite, or `_NEVER`; on the device.
        self._first = torch.tensor(_NEVER)
        self._first_on_host = self._first  # the same, perhaps a few steps old
        self._warned_in = -1  # epoch

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        lost = not_finite(pl_module)
        if lost is not None:
            raise ValueError(f"the weights to begin from are not finite ({lost}): take an earlier checkpoint")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        self._first = torch.tensor(_NEVER, device=device)
        self._first_on_host = torch.tensor(_NEVER, pin_memory=device.type == "cuda")
        self._warned_in = -1

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return
        place = trainer.current_epoch * _BATCHES + batch_idx
        self._first = torch.where(loss.detach().isfinite().all(), self._first, self._first.clamp(max=place))
        self._first_on_host.copy_(self._first, non_blocking=True)
        # `numpy` is of host memory alone: it cannot wait for the device.
        if trainer.world_size == 1 and self._first_on_host.numpy() < _NEVER:
            self._check_weights(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_weights(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check_weights(trainer, pl_module)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        if trainer.training:
            self._check_weights(trainer, pl_module, this_rank_only=True)

    def _check_weights(self, trainer: Trainer, pl_module: LightningModule, this_rank_only: bool = False) -> None:
        """End the run if the weights are NaN or infinite, else warn once an epoch of such a loss.

        All ranks decide together, unless ``this_rank_only``: Lightning may save a checkpoint on one of them.
        """
        name = not_finite(pl_module)
        first, lost = self._first, name is not None
        if not this_rank_only:
            first = trainer.strategy.reduce(first.clone(), reduce_op="min")
            lost = trainer.strategy.reduce_boolean_decision(lost, all=False)
        epoch, batch = divmod(int(first), _BATCHES)
        loss_was_bad = int(first) < _NEVER
        place = f"epoch {epoch}, batch {batch}" if loss_was_bad else f"epoch {trainer.current_epoch}"
        if lost:
            paths = sorted(checkpoint_paths(trainer).items())
            saved = f"the last checkpoint before is {paths[-1][1]}" if paths else "no checkpoint was saved before"
            lost_first = "loss became NaN or infinite, and with it the weights"
            event = lost_first if loss_was_bad else "weights became NaN or infinite"
            raise ValueError(
                f"the run has diverged: in {place} (counted from 0) the {event}{f' ({name})' if name else ''}; "
                f"lower the learning rate or set the trainer's gradient_clip_val=1; {saved}"
            )
        if loss_was_bad:
            self._first = torch.full_like(self._first, _NEVER)
            self._first_on_host.fill_(_NEVER)
            if self._warned_in != epoch:
                self._warned_in = epoch
                rank_zero_warn(
                    f"the loss was NaN or infinite in {place} (counted from 0); the weights are still finite"
                )
