"""Learning with Retrospection as a callback."""

from collections.abc import Mapping
import inspect
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lit_distill.callbacks.memory import SoftLabelMemory
from lit_distill.losses import retrospection_loss, retrospection_weight


class LearningWithRetrospection(Callback):
    r"""Replace a criterion by its mixture with the model's own remembered predictions, in any Lightning project.

    In epoch i, counted from 1, of M, with interval k:

    - for i <= k the criterion is left alone;
    - afterwards it becomes
      :math:`a_i\,\mathrm{criterion}(z, y) + (1 - a_i)\,\tau^2\,\mathrm{KL}(p \,\|\, \mathrm{softmax}(z/\tau))`,
      batch mean, with the schedule of `retrospection_weight`; a row without remembered p has
      :math:`\mathrm{CE}(z, y)` in place of the KL;
    - whenever i % k == 0, the ordinary training forward (training mode, augmented images) is recorded as
      :math:`p = \mathrm{softmax}(z/\tau)`, readable from the next epoch on.

    All it needs is a submodule ``pl_module.<criterion>(logits, target)`` that returns a scalar and is called once a
    training step, and the samples' rows in the batch. Validation, testing and the sanity check never read, write or
    count. The memory is part of the checkpoint. Logs ``retrospection/weight``, ``retrospection/kl`` and
    ``retrospection/unrecorded`` (the share of rows without remembered p), means over the epoch.

    Args:
        interval: k >= 1 epochs between two recordings.
        temperature: tau > 0.
        update_rate: How far the true labels' weight falls by the last epoch, in 0..1.
        max_epochs: M >= 1; by default the trainer's.
        criterion: Dotted name of the criterion among the module's submodules.
        index: Where the batch has the samples' rows: an attribute or key, or a position.
        num_samples: Rows of the training set; by default its length.
        dtype: What a remembered probability is stored as.

    Raises:
        ValueError: At construction for a value out of range; before the first step if the criterion is no submodule,
            the number of epochs or of samples cannot be told, the batch has no index, or training is distributed.

    Source:
        Deng and Zhang, "Learning with Retrospection", AAAI 2021, arXiv 2012.13098, Algorithm 1.

    Example:
        >>> trainer = Trainer(max_epochs=20, callbacks=LearningWithRetrospection(interval=5), logger=False)
    """

    def __init__(
        self,
        interval: int = 5,
        temperature: float = 5.0,
        update_rate: float = 0.9,
        max_epochs: int | None = None,
        *,
        criterion: str = "criterion",
        index: int | str = "index",
        num_samples: int | None = None,
        dtype: Literal["float16", "float32"] = "float16",
    ) -> None:
        super().__init__()
        for name, value in {"interval": interval, "max_epochs": max_epochs, "num_samples": num_samples}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be > 0, got {temperature}")
        if not 0 <= update_rate <= 1:
            raise ValueError(f"update_rate must be in [0, 1], got {update_rate}")
        if dtype not in ("float16", "float32"):
            raise ValueError(f"dtype must be 'float16' or 'float32', got {dtype!r}")
        self.interval = interval
        self.temperature = temperature
        self.update_rate = update_rate
        self.max_epochs = max_epochs
        self.criterion = criterion
        self.index = index
        self.num_samples = num_samples
        self.dtype = torch.float16 if dtype == "float16" else torch.float32
        self.memory: SoftLabelMemory | None = None
        self._handle: RemovableHandle | None = None
        self._epochs = 0  # M
        self._rows = 0  # N
        self._module: LightningModule | None = None
        self._sums: Tensor | None = None  # over the epoch: the KL of recorded rows, their number, the number of rows
        self._announced: Tensor | None = None  # the batch's rows, between the step's start and the criterion

    @property
    def state_key(self) -> str:
        """Two of these on two criteria of one module keep a memory each."""
        return self._generate_state_key(criterion=self.criterion)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        epochs = self.max_epochs if self.max_epochs is not None else trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                f"retrospection needs the number of epochs for its schedule, got max_epochs={epochs}: "
                "set the trainer's max_epochs, or max_epochs of LearningWithRetrospection"
            )
        if trainer.world_size > 1:
            raise ValueError(
                f"LearningWithRetrospection remembers in one process, got {trainer.world_size}: set devices=1"
            )
        self._epochs = epochs
        if self.interval >= epochs:
            rank_zero_info(
                f"retrospection has no effect: its interval {self.interval} is not below max_epochs {epochs}"
            )
        criterion = _submodule(pl_module, self.criterion)
        for hook in list(criterion._forward_hooks.values()):
            other = getattr(hook, "retrospection", None)
            if other is not None and other is not self and other in trainer.callbacks:  # type: ignore[attr-defined]
                raise ValueError(f"two retrospection callbacks on one criterion {self.criterion!r}: remove one of them")
            if other is not None:  # left behind by a fit that failed before it could clean up
                other._release()
        self._module = pl_module

        # A function, not a method: copying the module (to average its weights, say) must not copy callback and memory.
        def mix(*args: Any) -> Tensor | None:
            return self._mix(*args)

        mix.retrospection = self  # type: ignore[attr-defined]
        self._handle = criterion.register_forward_hook(mix, with_kwargs=True)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = self.num_samples or _length_of_training_set(trainer)
        if trainer.global_step == 0:  # a new run, also where the callback has been through another
            self.memory = None
        if self.memory is not None:
            self.memory = self.memory.resize(self._rows).to(pl_module.device)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("retrospection/weight", self._weight(trainer.current_epoch + 1), on_step=False, on_epoch=True)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._sums is not None:
            kl, recorded, rows = self._sums
            values = {"retrospection/kl": kl / recorded.clamp(min=1), "retrospection/unrecorded": 1 - recorded / rows}
            pl_module.log_dict(values, on_step=False, on_epoch=True)
        self._sums = None

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        index = _index_of(batch, self.index)
        if index.device.type == "cpu" and len(index):  # elsewhere a look at the values would stop the device
            lowest, highest = int(index.min()), int(index.max())
            if lowest < 0 or highest >= self._rows:
                raise ValueError(
                    f"index must be in 0..{self._rows - 1}, the training set's rows, got {lowest}..{highest}"
                )
        self._announced = index

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._announced is not None and self.memory is None:  # nothing to remember was ever seen
            raise ValueError(
                f"the training step did not call {self.criterion!r}: have it compute the loss with "
                f"self.{self.criterion}(logits, target), or name its criterion with criterion="
            )
        self._announced = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.memory is None else self.memory.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.memory = SoftLabelMemory.from_state_dict(state_dict)

    def _release(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._module = self._announced = self._sums = None

    def _weight(self, epoch: int) -> float:
        return retrospection_weight(epoch, self.interval, self._epochs, self.update_rate)

    def _mix(self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Tensor) -> Tensor | None:
        """Forward hook of the criterion; inert unless a training batch was announced."""
        module, index = self._module, self._announced
        if module is None or index is None or not module.training:
            return None
        epoch = module.current_epoch + 1
        logits, target = _logits_and_target(criterion, args, kwargs)
        _check_call(loss, logits, index)
        if self.memory is None:
            self.memory = SoftLabelMemory(self._rows, logits.shape[1], self.dtype, logits.device)
        elif self.memory.num_classes != logits.shape[1]:
            raise ValueError(
                f"the remembered soft labels have {self.memory.num_classes} classes, the logits {logits.shape[1]}"
            )
        mixed = None
        if epoch > self.interval:
            weight = self._weight(epoch)
            soft_labels, recorded = self.memory.read(index, epoch)
            rows = retrospection_loss(logits, soft_labels, self.temperature, reduction="none")
            truth = F.cross_entropy(logits.float(), target, reduction="none")
            mixed = weight * loss + (1 - weight) * torch.where(recorded, rows, truth).mean()
            self._count(rows.detach(), recorded)
        if epoch % self.interval == 0:
            with torch.no_grad():
                self.memory.record(index, torch.softmax(logits.float() / self.temperature, dim=1), epoch)
        return mixed

    def _count(self, rows: Tensor, recorded: Tensor) -> None:
        # Summed here and logged once an epoch: Lightning's log would cost more than all the rest of the step's work.
        sums = torch.stack([torch.where(recorded, rows, 0.0), recorded.to(rows.dtype), torch.ones_like(rows)]).sum(
            dim=1
        )
        self._sums = sums if self._sums is None else self._sums + sums


def _submodule(pl_module: LightningModule, name: str) -> nn.Module:
    try:
        found = pl_module.get_submodule(name) if name else None
    except AttributeError:
        found = None
    if found is None:
        there = [child for child, _ in pl_module.named_children()]
        raise ValueError(
            f"{type(pl_module).__name__} has no submodule {name!r} to hook; "
            f"its submodules are {', '.join(there) or 'none'}"
        )
    return found


def _length_of_training_set(trainer: Trainer) -> int:
    loader = trainer.train_dataloader
    dataset = loader.dataset if isinstance(loader, DataLoader) else None
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        what = f"{type(dataset).__name__} data set" if dataset is not None else f"{type(loader).__name__} of loaders"
        raise ValueError(
            f"retrospection remembers by sample, but the training {what} has no length and so no sample indices: use a "
            "map-style data set wrapped in lit_distill.datamodules.IndexedDataset, or yield the sample's row in the "
            "batch and set num_samples of LearningWithRetrospection"
        ) from None


def _index_of(batch: Any, where: str | int) -> Tensor:
    index: Any = None
    if isinstance(where, int):
        index = batch[where] if isinstance(batch, (tuple, list)) and -len(batch) <= where < len(batch) else None
    elif isinstance(batch, Mapping):
        index = batch.get(where)
    else:
        index = getattr(batch, where, None)
    if not isinstance(index, Tensor):  # a plain tuple has a *method* called index
        raise ValueError(
            f"the training batch, a {type(batch).__name__}, has no tensor at index={where!r}: wrap the training set in "
            "lit_distill.datamodules.IndexedDataset(dataset), or say with index= where the batch has the samples' rows"
        )
    if index.dim() != 1 or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"index must be integers of shape (B,), got {index.dtype} of shape {tuple(index.shape)}")
    return index.long()


def _logits_and_target(criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    if len(args) < 2:
        args = tuple(inspect.signature(criterion.forward).bind(*args, **kwargs).arguments.values())
    return args[0], args[1]


def _check_call(loss: Any, logits: Tensor, index: Tensor) -> None:
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"retrospection needs a criterion that returns a scalar, got {got}: set its reduction to 'mean'"
        )
    if logits.dim() != 2 or len(logits) != len(index):
        raise ValueError(
            f"retrospection needs logits (B, K) with one row for each of the batch's {len(index)} indices, "
            f"got {tuple(logits.shape)}"
        )
