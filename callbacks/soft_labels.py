"""What the callbacks share that remember the model's predictions by sample."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
import torch
from torch import Tensor
from typing_extensions import override

from lit_distill.callbacks.criterion import CriterionCallback
from lit_distill.callbacks.memory import Fetched, SoftLabelMemory, check_index
from lit_distill.callbacks.row_targets import RowTargets
from lit_distill.callbacks.training_rows import TrainingRows
from lit_distill.checkpoint import AtomicCheckpointIO
from lit_distill.processes import leave_at_exit


class SoftLabelCallback(CriterionCallback):
    """Base of callbacks that train on remembered predictions, one soft label a training sample.

    A subclass is a method of its own: in `mix` it asks for what was remembered with `recall`, has something remembered
    with `remember`, and returns the new loss; `weight` is its schedule. This class keeps the table: what is remembered
    in an epoch can be recalled from the next one on. Under several processes the rows are exchanged when the epoch
    ends, and all processes then recall what a single one would. The table is part of the checkpoint, whenever it is
    saved; and unless the trainer has a checkpoint plugin of its own, it is given `AtomicCheckpointIO`.

    A row must stay the same sample. Where the data set can tell what its rows are, as one of files can, a resumed run
    takes each soft label over to the row that its sample has now. And the table keeps each row's target: a row whose
    target changes is reported when the epoch ends, and what was remembered for it is not used and forgotten.

    The module must have a criterion as `CriterionCallback` asks for it, and the batch must have the samples' rows.

    Logs, as means over the epoch and all processes, ``retrospection/weight``, what the subclass passes to `count`, and
    ``retrospection/unrecorded``, the share of rows that nothing was remembered for.

    Args:
        top_k: Remember the ``top_k`` >= 1 largest probabilities and spread the rest evenly; None remembers all.
        criterion: Dotted name of the criterion among the module's submodules.
        index: Where the batch has the samples' rows, integers in 0..N-1: an attribute or key, or a position.
        num_samples: Rows N of the training set; by default its length.
        dtype: What a remembered probability is stored as.
        storage: Where the table lies: on the training ``"device"``, in ``"host"`` memory, from where a batch's rows
            are sent ahead of it; ``"auto"`` takes the device if that fills no more than half of its free memory.
        soft_targets: Accept targets ``(B, K)`` of probabilities. They are refused otherwise, since mixup and cutmix
            make such targets, and a mixed image is no row's; set it where labels are soft but images are not mixed.

    Raises:
        ValueError: At construction for a value out of range; before the first step if the number of samples cannot be
            told, the batch has no index, or the checkpoint is damaged or of another data set; at an index outside the
            table, in the step where the host knows the index, else at the end of the epoch.
    """

    def __init__(
        self,
        *,
        top_k: int | None = None,
        criterion: str = "criterion",
        index: int | str = "index",
        num_samples: int | None = None,
        dtype: Literal["float16", "float32"] = "float16",
        storage: Literal["auto", "device", "host"] = "auto",
        soft_targets: bool = False,
    ) -> None:
        super().__init__(criterion)
        for name, value in {"top_k": top_k, "num_samples": num_samples}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if dtype not in ("float16", "float32"):
            raise ValueError(f"dtype must be 'float16' or 'float32', got {dtype!r}")
        if storage not in ("auto", "device", "host"):
            raise ValueError(f"storage must be 'auto', 'device' or 'host', got {storage!r}")
        self.top_k = top_k
        self.index = index
        self.num_samples = num_samples
        self.dtype = torch.float16 if dtype == "float16" else torch.float32
        self.storage = storage
        self.soft_targets = soft_targets
        self.memory: SoftLabelMemory | None = None
        self.targets: RowTargets | None = None
        self._training_rows = TrainingRows(0)
        self._epoch = 0  # the one that the sums are of, counted from 1
        self._names: tuple[str, ...] = ()  # of what is summed
        self._sums: Tensor | None = None  # one of each name
        self._rows = 0  # that the sums are of
        self._pending: tuple[tuple[str, ...], Tensor, int] | None = None  # the same of the step under way
        self._world_size = 0  # that the state was saved with
        # The batch's rows, what was fetched ahead for them, and the rows as the batch has them when it is trained on.
        self._step: tuple[Tensor, Fetched | None, Tensor] | None = None
        self._ahead: tuple[Tensor, Fetched] | None = None
        self._unhook: Any = None
        self._outside = 0  # indices that only the device could tell
        self._told_not_finite = False
        self._recalled = False  # in this step
        self._finite = torch.ones(1, dtype=torch.bool)  # which rows of this batch have finite logits
        self._same = torch.ones(1, dtype=torch.bool)  # and which the target that they had before

    @abstractmethod
    def weight(self, epoch: int) -> float:
        """Return the true labels' weight in ``epoch``, counted from 1, for the log and for `mix`."""

    def recall(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return what was remembered for this batch before ``epoch``.

        Returns:
            Soft labels ``(B, K)``, float32, zeros where nothing was, or for another target; and ``(B,)`` bool, True
            where something was.
        """
        memory, index, fetched = self._now()
        self._recalled = True
        fetched = memory.fetch(index, epoch, self._finite.device) if fetched is None else fetched
        return memory.expand(fetched._replace(recorded=fetched.recorded & self._same))

    def remember(self, soft_labels: Tensor, epoch: int) -> None:
        """Have ``soft_labels`` ``(B, K)`` remembered for this batch; rows of logits not finite are left out."""
        memory, index, _ = self._now()
        if soft_labels.shape != (len(index), memory.num_classes):
            expected = (len(index), memory.num_classes)
            raise ValueError(f"soft labels to remember must be (B, K) = {expected}, got {tuple(soft_labels.shape)}")
        memory.record(index, soft_labels.detach(), epoch, self._finite)

    def count(self, recorded: Tensor, **rows: Tensor) -> None:
        """Add to the epoch's means: ``recorded`` ``(B,)`` bool, and values by row ``(B,)``, averaged where recorded."""
        # Summed here and logged once an epoch: Lightning's log would cost more than all the rest of the step's work.
        ones = torch.ones_like(recorded, dtype=torch.float32)
        columns = torch.where(recorded, torch.stack([*(value.detach() for value in rows.values()), ones]), 0)
        exact = torch.float32 if recorded.device.type == "mps" else torch.float64
        self._pending = (*rows, "recorded"), columns.sum(dim=1, dtype=exact), len(recorded)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # So that a table is not lost to a crash while it is written, nor read from a damaged file.
        if stage == "fit" and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        leave_at_exit()
        before, self._training_rows = self._training_rows, TrainingRows.of(trainer, self.num_samples)
        if self.memory is None:
            return
        if self._world_size not in (0, trainer.world_size):
            rank_zero_info(
                f"the checkpoint is from {self._world_size} processes, this run has {trainer.world_size}: its "
                "remembered soft labels are all there, but the run will not repeat the other one's bits"
            )
        source = self._training_rows.source(before)
        if source is not None:
            self.memory = self.memory.rearranged(source)
            self.targets = None if self.targets is None else self.targets.rearranged(source)
        self.memory = self._place(self._as_asked(self.memory), trainer, pl_module)
        if self.targets is not None:
            self.targets = self.targets.to(pl_module.device)
        if self._sums is not None:
            self._sums = self._sums.to(pl_module.device)
        self._leave_to_rank_0(trainer)

    @override
    def forget(self) -> None:
        self.memory, self.targets, self._pending = None, None, None
        self._names, self._sums, self._rows = (), None, 0
        self._epoch, self._outside, self._told_not_finite = 0, 0, False

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        epoch = trainer.current_epoch + 1
        # After a checkpoint of an epoch's last step Lightning does not call the hook of that epoch's end any more.
        if self._epoch not in (0, epoch):
            self._finish(trainer, pl_module)
        self._epoch = epoch
        index = index_of(batch, self.index)
        check_index(index, self._training_rows.count)
        self._step, self._ahead = (*(self._ahead or (index, None)), index), None

    @override
    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self._step = None
        # Only now is the step done, and part of what a checkpoint has behind it.
        if self._pending is not None:
            self._names, sums, rows = self._pending
            self._sums, self._rows = sums if self._sums is None else self._sums + sums, self._rows + rows
            self._pending = None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        sums = self._finish(trainer, pl_module)
        means = {"weight": torch.tensor(self.weight(epoch))}
        if sums:
            recorded, rows = sums.pop("recorded"), sums.pop("rows")
            means |= {name: value / recorded.clamp(min=1) for name, value in sums.items()}
            means["unrecorded"] = 1 - recorded / rows
        prefix = "retrospection" if self.criterion == "criterion" else f"retrospection/{self.criterion}"
        for name, value in means.items():
            pl_module.log(f"{prefix}/{name}", value.float(), on_step=False, on_epoch=True, sync_dist=True)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch:
            self._finish(trainer, pl_module)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.memory is None:
            return
        # Every process comes here, but the state that is written is the first one's.
        sums = self._gather(trainer, pl_module)
        self._take_over(sums)
        self._leave_to_rank_0(trainer)
        checkpoint["callbacks"][self.state_key] = {**self.state_dict(), "sums": sums, "world_size": trainer.world_size}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        # Taken out of the checkpoint, which Lightning would copy for `load_state_dict`: the table is there once only.
        state = checkpoint.get("callbacks", {}).pop(self.state_key, None)
        if state:
            self.load_state_dict(state)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.memory is None:
            return {}
        targets = {} if self.targets is None else self.targets.state_dict()
        return {**self.memory.state_dict(), **targets, **self._training_rows.state_dict(), "epoch": self._epoch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.memory = SoftLabelMemory.from_state_dict(state_dict)
        self.targets = RowTargets.from_state_dict(state_dict)
        self._training_rows = TrainingRows(self.memory.num_samples, state_dict.get("identities"))
        self._epoch = state_dict.get("epoch", 0)
        self._take_over(state_dict.get("sums", {}))
        self._world_size = state_dict.get("world_size", 0)

    @override
    def _release(self) -> None:
        super()._release()
        self._step = self._ahead = None
        if self._unhook is not None:
            self._unhook()
            self._unhook = None

    @override
    def _mix(self, *args: Any) -> Tensor | None:
        self._recalled = False
        mixed = super()._mix(*args)
        if mixed is None and self._recalled:
            raise ValueError(
                f"{type(self).__name__}.mix recalled soft labels but returned no loss: is a return missing?"
            )
        return mixed

    @override
    def prepare(self, module: LightningModule, logits: Tensor, target: Tensor) -> Tensor:
        rows = 0 if self._step is None else len(self._step[0])
        if logits.dim() != 2 or len(logits) != rows:
            raise ValueError(
                f"{type(self).__name__} needs logits (B, K) with one row for each of the batch's {rows} indices, "
                f"got {tuple(logits.shape)}"
            )
        if target.dim() != 1 and not self.soft_targets:
            raise ValueError(
                f"{type(self).__name__} got targets of shape {tuple(target.shape)}, as mixup and cutmix make them, and "
                "a mixed image is nobody's row: leave out mixing or this callback, or set soft_targets=True if the "
                "images are not mixed"
            )
        classes = logits.shape[1]
        if self.memory is None:
            memory = SoftLabelMemory(self._training_rows.count, classes, self.top_k, self.dtype)
            self.memory = self._place(memory, module.trainer, module)
        elif self.memory.num_classes != classes:
            raise ValueError(f"the remembered soft labels have {self.memory.num_classes} classes, the logits {classes}")
        if self.targets is None:
            self.targets = RowTargets(self._training_rows.count, logits.device)
        if self._step is not None:
            self._same = self.targets.check(self._step[2], target)
        # What is not finite is the criterion's to answer for: here such a row has no gradient, nor is it remembered.
        self._finite = logits.detach().sum(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32)).isfinite()
        return torch.where(self._finite[:, None], logits, 0)

    def _now(self) -> tuple[SoftLabelMemory, Tensor, Fetched | None]:
        if self.memory is None or self._step is None:
            raise RuntimeError("recall and remember are for mix, within a training step")
        index, fetched, _ = self._step
        return self.memory, index, fetched

    def _take_over(self, sums: dict[str, Tensor]) -> None:
        self._names = tuple(name for name in sums if name != "rows")
        self._sums = torch.stack([sums[name] for name in self._names]) if sums else None
        self._rows = int(sums["rows"]) if sums else 0

    def _leave_to_rank_0(self, trainer: Trainer) -> None:
        """Leave the sums over all processes to the first of them."""
        if trainer.global_rank > 0 and self._sums is not None:
            self._sums, self._rows = torch.zeros_like(self._sums), 0

    def _as_asked(self, memory: SoftLabelMemory) -> SoftLabelMemory:
        """Return the checkpoint's table as this callback would have made it."""
        asked = memory.converted(self.top_k, self.dtype)
        if asked is not memory:
            kept = [f"top_k={table.top_k} of {table.num_classes} in {table.dtype}" for table in (memory, asked)]
            rank_zero_info(f"the remembered soft labels go on as {kept[1]}; the checkpoint has {kept[0]}")
        return asked

    def _place(self, memory: SoftLabelMemory, trainer: Trainer, pl_module: LightningModule) -> SoftLabelMemory:
        memory.shared = trainer.world_size > 1
        device, host = pl_module.device, self.storage == "host"
        if self.storage == "auto" and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            host = memory.nbytes > free / 2
        if not host:
            return memory.to(device)
        if self._unhook is None:
            self._send_ahead(trainer, pl_module)
        return memory.pin()

    def _send_ahead(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have each batch's rows on their way before the batch, whose index Lightning is about to move off the host."""
        name = "on_before_batch_transfer"
        data: Any = getattr(trainer, "datamodule", None)
        owner: Any = data if data is not None and is_overridden(name, data) else pl_module
        shared = vars(owner).get(name)
        listeners = getattr(shared, "listeners", None)
        before = shared if listeners is None else shared.before
        if listeners is None:  # one for all callbacks that send ahead
            hook, listeners = getattr(owner, name), []

            def ahead(batch: Any, dataloader_idx: int) -> Any:
                for listener in listeners:
                    listener(batch)
                return hook(batch, dataloader_idx)

            ahead.listeners, ahead.before = listeners, before  # type: ignore[attr-defined]
            setattr(owner, name, ahead)

        def fetch(batch: Any) -> None:
            if trainer.training and self.memory is not None:
                index = index_of(batch, self.index)
                self._ahead = index, self.memory.fetch(index, trainer.current_epoch + 1, pl_module.device)

        def unhook() -> None:
            listeners.remove(fetch)
            if not listeners:
                delattr(owner, name)
                if before is not None:
                    setattr(owner, name, before)

        listeners.append(fetch)
        self._unhook = unhook

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """End the epoch: exchange its rows, and return the sums over all processes."""
        sums = self._gather(trainer, pl_module)
        if self.memory is not None and self.targets is not None:
            changed = self.targets.settle()
            self.memory.forget(changed)
            self._training_rows.report(int(changed.sum()), self._epoch - 1)
        self._epoch, self._sums, self._rows = 0, None, 0
        return sums

    def _gather(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Bring the rows and sums of all processes together, which all of them do at the same point."""
        if self.memory is None:
            return {}
        exact = torch.float32 if pl_module.device.type == "mps" else torch.float64
        sums = torch.zeros(0) if self._sums is None else torch.cat([self._sums, self._sums.new_tensor([self._rows])])
        mine = torch.cat([self.memory.refused().to(pl_module.device, exact), sums.to(pl_module.device, exact)])
        refused, sums = trainer.strategy.reduce(mine, reduce_op="sum").split([2, len(sums)])
        outside, not_finite = (int(count) for count in refused.tolist())
        self._outside += outside  # for good: nothing of this table is to be saved
        self.memory.raise_outside(self._outside)
        if not_finite and not self._told_not_finite:
            self._told_not_finite = True
            rank_zero_warn(
                f"{not_finite} predictions of epoch {trainer.current_epoch} had NaN or infinity among their logits: "
                "such predictions are not remembered; this is said once"
            )
        self.memory.exchange()
        if self.targets is not None:
            self.targets.merge()
        return dict(zip((*self._names, "rows"), sums, strict=True)) if len(sums) else {}


class ScheduledCallback(SoftLabelCallback):
    """A `SoftLabelCallback` whose schedule runs over the epochs of the run.

    Args:
        max_epochs: M >= 1; by default the trainer's.
        kwargs: Arguments of `SoftLabelCallback`.

    Raises:
        ValueError: If ``max_epochs`` is < 1; before the first step, if the number of epochs cannot be told.
    """

    def __init__(self, max_epochs: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_epochs is not None and max_epochs < 1:
            raise ValueError(f"max_epochs must be >= 1, got {max_epochs}")
        self.max_epochs = max_epochs
        self._epochs = 1  # M

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        epochs = trainer.max_epochs if self.max_epochs is None else self.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                f"retrospection needs the number of epochs for its schedule, got max_epochs={epochs}: "
                "set the trainer's max_epochs, or max_epochs of the callback"
            )
        self._epochs = epochs


def tempered_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``softmax(logits / temperature)`` ``(B, K)``, float32, without gradient, to be remembered.

    Example:
        >>> tempered_softmax(torch.tensor([[2.0, 2.0]]), temperature=5.0)
        tensor([[0.5000, 0.5000]])
    """
    return torch.softmax(logits.detach().float() / temperature, dim=1)


def index_of(batch: Any, where: str | int) -> Tensor:
    """Return the tensor of the batch's rows, ``(B,)``, on the batch's device.

    Args:
        batch: A tuple, mapping or object.
        where: Its position, key or attribute.

    Raises:
        ValueError: If there is no such tensor.

    Example:
        >>> index_of({"image": torch.zeros(2, 3), "row": torch.tensor([7, 1])}, "row")
        tensor([7, 1])
    """
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
            "lit_distill.datamodules.IndexedDataset(dataset), or say where the batch has the samples' rows, by "
            "position (index=2), key or attribute"
        )
    return index
