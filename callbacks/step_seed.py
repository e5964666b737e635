"""Keyed randomness of the network."""

from lightning.pytorch import Callback, LightningModule, Trainer
import torch
from typing_extensions import override

from lit_distill.keys import derive_seed, global_seed


class StepSeed(Callback):
    """Seed torch before every training step from ``(seed, epoch, batch, rank)``.

    What dropout and drop path draw in a step then depends on nothing that happened before it: not on the number of
    workers, nor on validation, nor on whether the run was resumed.

    Args:
        seed: By default the one given to ``seed_everything``, else 0.

    Example:
        >>> trainer = Trainer(callbacks=StepSeed(), logger=False)
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.seed = seed

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        seed = global_seed() if self.seed is None else self.seed
        key = derive_seed(seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        # While CUDA is not initialised, torch.manual_seed formats a stack trace for it, at each step.
        on_cpu = pl_module.device.type == "cpu" and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        (torch.default_generator.manual_seed if on_cpu else torch.manual_seed)(key)
