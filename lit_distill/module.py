"""The LightningModule: a student, its frozen teacher and the distillation loss."""

from collections.abc import Callable, Iterable, Mapping
import copy
from functools import partial
import inspect
from pathlib import Path
import sys
from typing import Any, Self, get_args

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_distill.agreement import (
    carry_grouping,
    check_class_counts,
    check_learned_names,
    check_teacher,
    refuse_shared_parameters,
)
from lit_distill.batch import Batch, image_of
from lit_distill.checks import check_choice, check_fraction
from lit_distill.distillation import ask_both, distillation_loss, uses_logits
from lit_distill.evaluation import Evaluation
from lit_distill.loading import checked, leave_out_of, save_plain_hyperparameters, takes_teacher
from lit_distill.losses.weighted import WeightedLoss, WeightedLosses
from lit_distill.models.card import ABOUT
from lit_distill.models.classes import count_targets
from lit_distill.models.finite import refuse_not_finite
from lit_distill.models.output import HEADS, Head, StudentOutput
from lit_distill.models.signature import sign
from lit_distill.models.teacher import FrozenTeacher
from lit_distill.models.teacher_base import Teacher
from lit_distill.models.weights import save_under_plain_names
from lit_distill.optimizer import parameter_groups, use_fused_kernel
from lit_distill.schedule import (
    Interval,
    WarmupCosine,
    apply_schedules,
    peak_rate,
    restart,
    scheduler_config,
    set_peak_rate,
)
from lit_distill.sums import EpochSums, log_gathered
from lit_distill.tuning import choices_of, restore_choices, tune


class LitDistiller(LightningModule):
    r"""Train a student on labels and on a frozen teacher.

    .. math:: (1 - \alpha)\, \mathrm{criterion}(z, y)
        + \alpha\, \mathrm{distillation}(z_\text{distill}, z_\text{teacher}, y)

    Without ``distillation`` it is plain training on the criterion, which is also how a teacher is made. Several
    distillation losses are summed with their weights, and each is logged under its name.

    The teacher is a guest: it follows the module's moves and casts, but is in no checkpoint, optimizer or averaged
    copy, and always in eval mode.

    Args:
        student: Images ``(B, C, H, W)`` to `StudentOutput` or to one ``(B, K)`` tensor that serves both losses.
        teacher: A `Teacher`, such as `FrozenTeacher`, which is asked with the whole `Batch`; or any module from images
            to logits, which becomes a `FrozenTeacher`.
        criterion: ``criterion(logits, target)`` to a scalar; by default cross-entropy. Label smoothing is
            ``torch.nn.CrossEntropyLoss(label_smoothing=0.1)``.
        distillation: ``distillation(distill_logits, teacher_logits, target)`` to a scalar, such as `HardDistillation`
            or `SoftDistillation`. Or several by name, each with a weight >= 0 unless that is 1:
            ``{"hard": {"loss": HardDistillation()}, "soft": {"loss": SoftDistillation(3.0), "weight": 0.5}}``; see
            `WeightedLosses`. A loss with the attributes ``student_layer`` and ``teacher_layer``, dotted names of
            submodules, is called with what these return instead of logits. None trains without a teacher, and the
            class head then answers alone.
        alpha: Weight of the distillation loss, in 0..1.
        optimizer: Makes the optimizer from parameter groups. Norms, biases, tokens, position embeddings and all other
            vectors are in a group without weight decay. Adam, AdamW and SGD use their fused kernel unless ``fused`` or
            ``foreach`` says otherwise.
        scheduler: Makes the scheduler from the optimizer; `WarmupCosine` is given the run's length unless it has one.
            None keeps the learning rate.
        scheduler_interval: When the scheduler steps, ``"step"`` or ``"epoch"``. By default `WarmupCosine`,
            ``OneCycleLR`` and ``CyclicLR`` step by step, all others by epoch.
        head: What predicts: the ``"class"`` head, the ``"distill"`` head, or both by ``"mean_logits"`` (DeiT's code) or
            ``"mean_probs"``, the mean of their softmaxes (DeiT's paper).

    Shape:
        ``predict_step`` returns probabilities ``(B, K)``.

    Raises:
        ValueError: If ``alpha`` or the criterion's label smoothing is not in 0..1, or student and teacher share
            parameters; before the first step, if there is a distillation loss without a teacher, student, teacher and
            data differ in their number of classes, nothing is trainable, or the schedule's length is unknown; in the
            first step, if a network lacks a layer that a loss names, or the teacher has no logits for a loss on logits.

    Source:
        Touvron et al., arXiv 2012.12877, section 3.

    Example:
        >>> from lit_distill import DistillableViT, HardDistillation
        >>> student = DistillableViT(image_size=8, patch_size=4, num_classes=10, dim=16, depth=1, heads=1, mlp_dim=16)
        >>> teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> module = LitDistiller(student, teacher, distillation=HardDistillation())
        >>> sorted({name.split(".")[0] for name in module.state_dict()})
        ['student']
    """

    teacher: Teacher | None
    distillation: nn.Module | None
    _teacher_is_tuned: bool

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        criterion: nn.Module | None = None,
        distillation: Mapping[str, WeightedLoss] | nn.Module | None = None,
        alpha: float = 0.5,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05),
        scheduler: LRSchedulerCallable | None = WarmupCosine,
        scheduler_interval: Interval | None = None,
        head: Head = "mean_probs",
    ) -> None:
        super().__init__()
        check_fraction(alpha=alpha, label_smoothing=getattr(criterion, "label_smoothing", 0.0))
        check_choice((*get_args(Interval), None), scheduler_interval=scheduler_interval)
        check_choice(HEADS, head=head)
        save_plain_hyperparameters(self, sys._getframe())
        self.student = student
        self.head: Head = head
        self.teacher = teacher  # type: ignore[assignment]  # `__setattr__` makes it a Teacher
        self.criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        self.distillation = WeightedLosses(distillation) if isinstance(distillation, Mapping) else distillation
        self.alpha = alpha
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.kept_in_checkpoints: dict[str, object] = {}  # by name, beside what Lightning keeps; plain containers
        self._about: dict[str, Any] = {}
        self._sums = EpochSums()  # of the losses in training
        self._rates_were_set = False
        self._schedule_follows_the_run = False
        save_under_plain_names(self)

    @property
    def trains_both_heads(self) -> bool:
        """True if a distillation loss trains the second head, and not only layers inside the student."""
        return self.distillation is not None and uses_logits(self.distillation)

    @property
    def predicts(self) -> Head:
        """The head that predicts: the class head if nothing trains the other one."""
        return self.head if self.trains_both_heads else "class"

    @override
    def forward(self, image: Tensor) -> StudentOutput:
        """Return the student's logits; those of the class head stand in for a second head that nothing trains."""
        output = StudentOutput.of(self.student(image))
        return output if self.trains_both_heads else StudentOutput(output.logits, output.logits)

    @override
    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if not self._teacher_is_tuned:
            tune(self.trainer, self.teacher, batch)
        self._teacher_is_tuned = True

    @override
    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        batch = Batch.of(batch)
        self._note_images(batch.image)
        answer, output = ask_both(self.teacher, self.student, batch, self.distillation)
        loss: Tensor = self.criterion(output.logits.float(), batch.target)
        losses = {"criterion": loss}
        if not self.trains_both_heads:
            # DDP wants every parameter to take part: the sum of no row is 0 with gradient 0, even of infinite logits.
            loss = loss + output.distill_logits[:0].sum()
        if self.distillation is not None and answer is not None:
            distillation, parts = distillation_loss(self.distillation, answer, output, batch.target)
            loss = (1 - self.alpha) * loss + self.alpha * distillation
            losses |= {"distillation": distillation, **parts}
        self._sums.add({"loss": loss, **losses}, weight=len(batch.image))
        self._sums.end_step()
        return loss

    @override
    def on_train_epoch_end(self) -> None:
        sums, self._sums = self._sums.gather(self.trainer), EpochSums()
        rows = sums.pop("rows", torch.tensor(1))
        for name, value in sums.items():
            log_gathered(self, f"train/{name}", (value / rows).float(), prog_bar=name == "loss")

    @override
    def validation_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._measure(self.validation, batch, batch_idx, dataloader_idx)

    @override
    def test_step(self, batch: object, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._measure(self.testing, batch, batch_idx, dataloader_idx)

    @override
    def predict_step(self, batch: object, batch_idx: int = 0) -> Tensor:
        output: StudentOutput = self(image_of(batch))
        return output.log_probs(self.head).exp()

    @override
    def on_validation_start(self) -> None:
        if self.trainer.state.fn != "fit":
            refuse_not_finite(self.student)

    @override
    def on_test_start(self) -> None:
        refuse_not_finite(self.student)

    on_predict_start = on_test_start

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_measured(self.validation, "validation")

    @override
    def on_test_epoch_end(self) -> None:
        self._log_measured(self.testing, "testing")

    @override
    def setup(self, stage: str) -> None:
        data = getattr(self._trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        names = None if names is None else [str(name) for name in names]
        if stage != "fit":
            check_learned_names(self._about.get("class_names"), names)
        if names is not None:
            self._about["class_names"] = names
            if self.teacher is not None:
                self.teacher.set_class_names(names)
        if self.teacher is not None:
            train_set = getattr(data, "train_set", None)
            self.teacher.set_class_counts(partial(count_targets, train_set, self.teacher.num_classes))
        if stage == "fit":
            self._about["preprocessing"] = getattr(data, "preprocessing", None)
            self._about["grouping"] = {} if self.teacher is None else self.teacher.grouping()
            check_teacher(self.teacher, self.distillation, self.head)
        check_class_counts(self.student, self.teacher, data, self.criterion)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.parameter_groups())
        use_fused_kernel(optimizer)
        if self.make_scheduler is None:
            return optimizer
        config, self._schedule_follows_the_run = scheduler_config(
            self.make_scheduler(optimizer), self.trainer, self.scheduler_interval
        )
        return {"optimizer": optimizer, "lr_scheduler": config}

    @property
    def lr(self) -> float:
        """Learning rate of the optimizer at the schedule's peak, which Lightning's ``LearningRateFinder`` sets."""
        return peak_rate(self._trainer)

    @lr.setter
    def lr(self, rate: float) -> None:
        set_peak_rate(self.trainer, rate)
        self._rates_were_set = True

    @override
    def on_train_start(self) -> None:
        self._sums = EpochSums()
        if self._schedule_follows_the_run:  # BatchSizeFinder changes the number of steps after they were counted
            restart(self.trainer)
        if self._rates_were_set:  # after `lr`, LearningRateFinder sets the optimizer's rate past its schedule
            apply_schedules(self.trainer)
            self._rates_were_set = False

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trainable parameters without weight decay, and those with the optimizer's own."""
        return parameter_groups(self)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.kept_in_checkpoints | choices_of(self.teacher)
        signature = sign(checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY))
        heads = ["class", "distill"] if self.trains_both_heads else ["class"]
        checkpoint[ABOUT] = {**self._about, "head": self.predicts, "trained_heads": heads, "signature": signature}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        leave_out_of(checkpoint["state_dict"], self)
        restore_choices(self.teacher, checkpoint)
        about = checkpoint.get(ABOUT) or {}
        if self.teacher is not None:
            carry_grouping(about, self.teacher, self._trainer is not None and self._trainer.state.fn == "fit")
        check_learned_names(about.get("class_names"), self._about.get("class_names"))
        facts = {key: value for key, value in about.items() if key not in ("head", "trained_heads", "signature")}
        self._about = {**facts, **self._about}

    @classmethod
    @override
    def load_from_checkpoint(
        cls, checkpoint_path: Any, *args: Any, trust: str | Iterable[str] = (), **kwargs: Any
    ) -> Self:
        """Load a checkpoint as Lightning does, but without the teacher unless one is given as ``teacher=``.

        Checkpoints of the command line need nothing more; for those of Python code give ``student=``. A checkpoint that
        was not written by you on this machine may only name classes of this package, of torch's and Lightning's, and of
        the packages that you ``trust``.

        Raises:
            ValueError: If there is no such file, it is damaged, or names what it may not name.
        """
        if kwargs.pop("hparams_file", None) is not None or len(args) > 1:
            raise ValueError("hparams_file is not read: give arguments by name")
        path = Path(checkpoint_path)
        with checked(path, cls, [trust] if isinstance(trust, str) else trust) as named:
            if takes_teacher(cls, named):
                kwargs.setdefault("teacher", None)
            return super().load_from_checkpoint(path, *args, **{"weights_only": True, **kwargs})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("student", "teacher"):
            refuse_shared_parameters(value, getattr(self, "teacher" if name == "student" else "student", None))
        if name != "teacher":
            super().__setattr__(name, value)
            return
        # Past nn.Module's registry: a registered teacher would be in every checkpoint, in DDP's buffers and in train().
        if value is not None:
            value = value if isinstance(value, Teacher) else FrozenTeacher(value)
            value.requires_grad_(False).eval()
        object.__setattr__(self, name, value)
        self._teacher_is_tuned = False
        self.validation, self.testing = (Evaluation(stage, value is not None, self.head) for stage in ("val", "test"))

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Copy without the teacher: a copy is there for its weights, and moving it must not move the teacher."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        if self.teacher is not None:
            memo[id(self.teacher)] = None
        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's has no types
        if self.teacher is not None:
            self.teacher._apply(fn)  # type: ignore[no-untyped-call]  # torch's has no types
        return self

    def _note_images(self, image: Tensor) -> None:
        """Note for the checkpoint what the student's images are like."""
        self._about["image_shape"] = list(image.shape[1:])
        self._about["image_dtype"] = "float" if image.is_floating_point() else "uint8"

    def _measure(self, evaluation: Evaluation, batch: object, batch_idx: int, dataloader_idx: int) -> None:
        batch = Batch.of(batch)
        output: StudentOutput = self(batch.image)
        teacher_logits = None if self.teacher is None else self.teacher(batch).logits
        evaluation.update(self._trainer, output, teacher_logits, batch.target, batch_idx, dataloader_idx)

    def _log_measured(self, evaluation: Evaluation, attribute: str) -> None:
        if not evaluation.together["nll"].compute().isfinite():
            message = f"the student's outputs are NaN or infinite on some of the images of {evaluation.stage}"
            if self.trainer.state.fn != "fit":
                raise ValueError(f"{message}: if its precision is of 16 bits, set --trainer.precision=32")
            rank_zero_warn(f"epoch {self.current_epoch}: {message}")
        for name, path, metric in evaluation.named_metrics():
            on_bar = name == f"{evaluation.stage}/accuracy_mean_probs"
            self.log(name, metric, prog_bar=on_bar, metric_attribute=f"{attribute}.{path}", add_dataloader_idx=False)


# Pickle finds this default by its qualified name. The command line reads its arguments in its source, which it does for
# a function that is called "<lambda>" alone.
default_optimizer = inspect.signature(LitDistiller).parameters["optimizer"].default
default_optimizer.__qualname__ = "default_optimizer"
