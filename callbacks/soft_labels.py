"""What the callbacks share that remember the model's predictions by sample."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
import torch
from torch import Tensor
from typing_extensions import override

from lit_distill.callbacks.criterion import CriterionHook, begins_run, take_state
from lit_distill.callbacks.exchange import RowExchange
from lit_distill.callbacks.label_history import HistoryState, LabelHistory
from lit_distill.callbacks.memory import MemoryState, SoftLabelMemory
from lit_distill.callbacks.row_targets import RowTargets, TargetState
from lit_distill.callbacks.training_rows import TrainingRows, index_of
from lit_distill.checkpoint import AtomicCheckpointIO
from lit_distill.checks import check_at_least, check_choice
from lit_distill.processes import leave_at_exit
from lit_distill.sums import EpochSums, log_gathered

DType = Literal["float16", "float32"]


@dataclass
class _Step:
    """The training step under way."""

    index: Tensor  # (B,), the rows
    finite: Tensor | None = None  # (B,) bool: whose logits are finite
    same_target: Tensor | None = None  # (B,) bool: whose target is the one that the row had before
    recalled: bool = False


class _State(MemoryState, TargetState, HistoryState, total=False):
    """What a checkpoint keeps of the callback."""

    identities: Tensor
    epoch: int
    sums: dict[str, Tensor]
    world_size: int


class SoftLabelCallback(Callback, ABC):
    """Base of callbacks that train on remembered predictions, one soft label a training sample.

    A subclass implements `mix`, which returns the new loss and calls `recall` and `remember`, and `weight`, its
    schedule. This class keeps the table: what is remembered in an epoch can be recalled from the next one on. With
    several processes the rows are exchanged when the epoch ends, and every process then recalls what a single one
    would. The table is part of the checkpoint, whenever it is saved. Unless the trainer has a checkpoint plugin of its
    own, it is given `AtomicCheckpointIO`.

    A row must stay the same sample. If the data set can tell what its rows are, as one of files can, a resumed run
    moves each soft label to the row that its sample has now. And the table keeps each row's target: a row whose target
    changes is reported when the epoch ends, and what was remembered for it is not used and forgotten. When an epoch
    ends, the table's probabilities of the targets are added to a `LabelHistory`, from which ``lit-distill audit`` tells
    which labels are probably wrong.

    The module must have a criterion as `CriterionHook` describes it, and the batch must have the samples' rows.

    Logs under `log_name`, as means over the epoch and all processes: ``weight``, what the subclass passes to `count`,
    and ``unrecorded``, the share of rows that nothing was remembered for.

    Args:
        top_k: Remember the ``top_k`` >= 1 largest probabilities and spread the rest evenly; None remembers all. The
            table lies on the training device; `SoftLabelMemory` says how large it is.
        criterion: Dotted name of the criterion among the module's submodules.
        index: Where the batch has the samples' rows, integers in 0..N-1: an attribute or key, or a position.
        num_samples: Rows N of the training set; by default its length.
        dtype: What a remembered probability is stored as.
        soft_targets: Accept targets ``(B, K)`` of probabilities. They are refused otherwise: mixup and cutmix make
            such targets, and a mixed image is no row's. Set it if labels are soft but images are not mixed.

    Raises:
        ValueError: At construction for a value out of range; before the first step if the number of samples cannot be
            told, the batch has no index, or the checkpoint is damaged or of another data set; at an index outside the
            table, in the step if the host knows the index, else at the end of the epoch.
    """

    log_name: ClassVar[str] = "soft_labels"
    temperature: float = 1.0  # of the soft labels that are remembered

    def __init__(
        self,
        *,
        top_k: int | None = None,
        criterion: str = "criterion",
        index: int | str = "index",
        num_samples: int | None = None,
        dtype: DType = "float16",
        soft_targets: bool = False,
    ) -> None:
        super().__init__()
        check_at_least(1, top_k=top_k, num_samples=num_samples)
        check_choice(DType, dtype=dtype)
        self.top_k = top_k
        self.criterion = criterion
        self.index = index
        self.num_samples = num_samples
        self.dtype = torch.float16 if dtype == "float16" else torch.float32
        self.soft_targets = soft_targets
        self._hook = CriterionHook(self, criterion, self._mix)
        self.forget()

    def forget(self) -> None:
        """Drop what a former run left, before a new one begins."""
        self.memory: SoftLabelMemory | None = None
        self.targets = RowTargets(0)
        self.history = LabelHistory(0)
        self._rows = TrainingRows(0)
        self._exchange: RowExchange | None = None
        self._sums = EpochSums()
        self._epoch = 0  # the one under way, counted from 1; 0 once it is finished
        self._step: _Step | None = None
        self._world_size = 0  # of the run that saved the state
        self._warned_not_finite = False

    # For subclasses.

    @abstractmethod
    def weight(self, epoch: int) -> float:
        """Return the true labels' weight in ``epoch``, counted from 1, for the log and for `mix`."""

    @abstractmethod
    def mix(self, loss: Tensor, logits: Tensor, target: Tensor, epoch: int) -> Tensor | None:
        """Return the scalar that training uses instead of ``loss``, or None to leave it.

        Args:
            loss: What the criterion returned.
            logits: ``(B, K)``.
            target: ``(B,)`` classes, or ``(B, K)`` probabilities.
            epoch: Counted from 1.
        """

    def recall(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return what was remembered for this batch before ``epoch``.

        Returns:
            Soft labels ``(B, K)``, float32, zeros where nothing was, or for another target; and ``(B,)`` bool, True
            where something was.
        """
        memory, step = self._table_and_step()
        step.recalled = True
        return memory.read(step.index, epoch, step.same_target)

    def remember(self, soft_labels: Tensor, epoch: int) -> None:
        """Have ``soft_labels`` ``(B, K)`` remembered for this batch; rows of logits not finite are left out."""
        memory, step = self._table_and_step()
        expected = (len(step.index), memory.num_classes)
        if soft_labels.shape != expected:
            raise ValueError(f"soft labels to remember must be (B, K) = {expected}, got {tuple(soft_labels.shape)}")
        recorded = memory.record(step.index, soft_labels.detach(), epoch, step.finite)
        if self._exchange is not None:
            self._exchange.note(step.index, recorded, epoch)

    def count(self, recorded: Tensor, **values: Tensor) -> None:
        """Add to the epoch's means: ``recorded`` ``(B,)`` bool, and values by row ``(B,)``, averaged where recorded."""
        counted = {name: torch.where(recorded, value, 0) for name, value in values.items()}
        self._sums.add({**counted, "recorded": recorded})

    def _table_and_step(self) -> tuple[SoftLabelMemory, _Step]:
        if self.memory is None or self._step is None:
            raise RuntimeError("recall and remember are for mix, within a training step")
        return self.memory, self._step

    # The step.

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        epoch = trainer.current_epoch + 1
        self._hook.begin_step(epoch)
        # After a checkpoint of an epoch's last step Lightning does not call the hook of that epoch's end any more.
        if self._epoch not in (0, epoch):
            self._finish_epoch(trainer)
        self._epoch = epoch
        self._step = _Step(index_of(batch, self.index, self._rows.count))

    def _mix(self, loss: Tensor, logits: Tensor, target: Tensor, epoch: int) -> Tensor | None:
        """Validate the batch, make the table in the first step, and call `mix` with 0 in rows that are not finite."""
        step = self._step
        if step is None or logits.dim() != 2 or len(logits) != len(step.index):
            rows = 0 if step is None else len(step.index)
            raise ValueError(
                f"{type(self).__name__} needs logits (B, K) with one row for each of the batch's {rows} indices, "
                f"got {tuple(logits.shape)}"
            )
        if target.dim() != 1 and not self.soft_targets:
            raise ValueError(
                f"{type(self).__name__} got targets of shape {tuple(target.shape)}, as mixup and cutmix make them, and "
                "a mixed image belongs to no row: leave out mixing or this callback, or set soft_targets=True if the "
                "images are not mixed"
            )
        classes = logits.shape[1]
        if self.memory is None:
            self.memory = SoftLabelMemory(self._rows.count, classes, self.top_k, self.dtype, logits.device)
        if self.memory.num_classes != classes:
            raise ValueError(f"the remembered soft labels have {self.memory.num_classes} classes, the logits {classes}")
        step.same_target = self.targets.check(step.index, target)
        # Rows with NaN or infinite logits get no gradient from this callback and are not recorded.
        step.finite = logits.detach().sum(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32)).isfinite()
        mixed = self.mix(loss, torch.where(step.finite[:, None], logits, 0), target, epoch)
        if mixed is None and step.recalled:
            raise ValueError(
                f"{type(self).__name__}.mix recalled soft labels but returned no loss: is a return missing?"
            )
        return mixed

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._hook.end_step()
        self._sums.end_step()
        self._step = None

    # The epoch.

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        sums = self._finish_epoch(trainer, is_whole=trainer.is_last_batch)
        means = {"weight": torch.tensor(self.weight(epoch))}
        if sums:
            recorded, rows = sums.pop("recorded"), sums.pop("rows")
            means |= {name: value / recorded.clamp(min=1) for name, value in sums.items()}
            means["unrecorded"] = 1 - recorded / rows
        prefix = self.log_name if self.criterion == "criterion" else f"{self.log_name}/{self.criterion}"
        for name, value in means.items():
            log_gathered(pl_module, f"{prefix}/{name}", value.float())

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch:
            self._finish_epoch(trainer)

    def _finish_epoch(self, trainer: Trainer, is_whole: bool = True) -> dict[str, Tensor]:
        """Exchange the epoch's rows, forget those that changed, add the others up; return the sums of all processes.

        An epoch that a limit cuts off is added up when a resumed run has ended it.
        """
        sums = self._gather(trainer)
        if self.memory is not None:
            changed = self.targets.settle()
            self.memory.forget(changed)
            self.history.forget(changed)
            if self._epoch and is_whole:
                self.history.add(self.memory, self.targets.known, self._epoch, self.temperature)
            self._rows.report(int(changed.sum()), self._epoch - 1)
        self._epoch, self._sums = 0, EpochSums()
        return sums

    def _gather(self, trainer: Trainer) -> dict[str, Tensor]:
        """Bring the rows, targets and sums of all processes together; collective."""
        if self.memory is None:
            return {}
        refused = trainer.strategy.reduce(self.memory.refused.clone(), reduce_op="sum")
        outside, not_finite = refused.tolist()
        if outside:  # again whenever it is asked: nothing of this table may be saved
            raise ValueError(
                f"index must be in 0..{self._rows.count - 1}, the training set's rows: {outside} were outside"
            )
        if not_finite and not self._warned_not_finite:
            self._warned_not_finite = True
            rank_zero_warn(
                f"{not_finite} predictions of epoch {trainer.current_epoch} had NaN or infinity among their logits: "
                "such predictions are not remembered; this is said once"
            )
        if self._exchange is not None:
            self._exchange.run(self.memory)
        self.targets.merge()
        return self._sums.gather(trainer)

    # The run.

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if begins_run(trainer):
            self.forget()
        # So that a table is not lost to a crash while it is written, nor read from a damaged file.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self._hook.attach(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        leave_at_exit()
        rows_before, self._rows = self._rows, TrainingRows.of(trainer, self.num_samples)
        self._exchange = RowExchange() if trainer.world_size > 1 else None
        if self.memory is None:
            self.targets = RowTargets(self._rows.count, pl_module.device)
            self.history = LabelHistory(self._rows.count, pl_module.device)
            return
        if self._world_size not in (0, trainer.world_size):
            rank_zero_info(
                f"the checkpoint is from {self._world_size} processes, this run has {trainer.world_size}: its "
                "remembered soft labels are all there, but the run will not repeat the other one's bits"
            )
        source = self._rows.previous_rows(rows_before)
        if source is not None:
            self.memory, self.targets = self.memory.rearranged(source), self.targets.rearranged(source)
            self.history = self.history.rearranged(source)
        converted = self.memory.converted(self.top_k, self.dtype)
        if converted is not self.memory:
            before, after = (f"top_k={m.top_k} of {m.num_classes} in {m.dtype}" for m in (self.memory, converted))
            rank_zero_info(f"the remembered soft labels go on as {after}; the checkpoint has {before}")
        self.memory, self.targets = converted.to(pl_module.device), self.targets.to(pl_module.device)
        self.history.to(pl_module.device)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._hook.remove()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._hook.remove()
        self._step = None

    # The checkpoint.

    @property
    def state_key(self) -> str:
        """Two of these on two criteria of one module have a state each."""
        return self._generate_state_key(criterion=self.criterion)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        if self.memory is not None:
            # Every process comes here, but the state that is written is the first one's.
            sums = self._gather(trainer)
            state = {**self.state_dict(), "sums": sums, "world_size": trainer.world_size}
            cast(dict[str, object], checkpoint["callbacks"])[self.state_key] = state

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        take_state(self, self.forget, trainer, checkpoint)

    @override
    def state_dict(self) -> dict[str, object]:
        if self.memory is None:
            return {}
        return {
            **self.memory.state_dict(),
            **self.targets.state_dict(),
            **self.history.state_dict(),
            **self._rows.state_dict(),
            "epoch": self._epoch,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        state = cast(_State, state_dict)
        self.memory = SoftLabelMemory.from_state_dict(state)
        # Older checkpoints have no targets and no history.
        rows = self.memory.num_samples
        self.targets = RowTargets.from_state_dict(state) if "targets" in state else RowTargets(rows)
        self.history = LabelHistory.from_state_dict(state) if "label_sums" in state else LabelHistory(rows)
        self._rows = TrainingRows(self.memory.num_samples, state.get("identities"))
        self._epoch = state.get("epoch", 0)
        self._sums.load(state.get("sums", {}))
        self._world_size = state.get("world_size", 0)


def count_epochs(trainer: Trainer, max_epochs: int | None) -> int:
    """Return the number of epochs of a schedule: ``max_epochs``, else the trainer's.

    Raises:
        ValueError: If neither tells.
    """
    epochs = trainer.max_epochs if max_epochs is None else max_epochs
    if epochs is None or epochs < 1:
        raise ValueError(
            f"retrospection needs the number of epochs for its schedule, got max_epochs={epochs}: "
            "set the trainer's max_epochs, or max_epochs of the callback"
        )
    return epochs


def tempered_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``softmax(logits / temperature)`` ``(B, K)``, float32, without gradient, to be remembered.

    Example:
        >>> tempered_softmax(torch.tensor([[2.0, 2.0]]), temperature=5.0)
        tensor([[0.5000, 0.5000]])
    """
    return torch.softmax(logits.detach().float() / temperature, dim=1)
