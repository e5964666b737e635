"""The LightningModule: a student, its frozen teacher and the distillation loss."""

from collections.abc import Callable, Iterable
import copy
import inspect
from pathlib import Path
import sys
from typing import Any, Self

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.parsing import collect_init_args
from lightning.pytorch.utilities.types import OptimizerLRScheduler
import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_distill.metrics import DistillationMetrics
from lit_distill.models import FrozenTeacher, StudentOutput, count_classes
from lit_distill.models.card import ABOUT
from lit_distill.models.described import check_arguments, parameters_of
from lit_distill.models.finite import refuse_not_finite
from lit_distill.models.output import HEADS, Head
from lit_distill.models.signature import is_own, sign
from lit_distill.models.trust import class_named, described_by, trusting, without_weights
from lit_distill.models.weights import load_safely, save_under_plain_names
from lit_distill.optimizer import parameter_groups, use_fused_kernel
from lit_distill.padding import SampleCounter
from lit_distill.schedule import Interval, WarmupCosine, interval_of, length_of

_OBJECTS = ("student", "teacher", "criterion", "distillation", "optimizer", "scheduler")

# Tensors that are arguments of torch's losses.
_CHOSEN = ("criterion.weight", "criterion.pos_weight")


class LitDistiller(LightningModule):
    r"""Train a student on labels and on a frozen teacher.

    .. math:: (1 - \alpha)\, \mathrm{criterion}(z, y)
        + \alpha\, \mathrm{distillation}(z_\text{distill}, z_\text{teacher}, y)

    Without ``distillation`` it is plain training on the criterion, which is also how a teacher is made.

    The teacher is a guest: it follows the module's moves and casts, but is in no checkpoint, optimizer or averaged
    copy, and always in eval mode.

    Args:
        student: Images ``(B, C, H, W)`` to `StudentOutput` or to one ``(B, K)`` tensor that serves both losses.
        teacher: A `FrozenTeacher`, or any module that returns logits, which is then frozen.
        criterion: ``criterion(logits, target)`` to a scalar; by default cross-entropy. Label smoothing is
            ``torch.nn.CrossEntropyLoss(label_smoothing=0.1)``.
        distillation: ``distillation(distill_logits, teacher_logits, target)`` to a scalar, such as `HardDistillation`
            or `SoftDistillation`; None trains without, and the class head then answers alone.
        alpha: Weight of the distillation loss, in 0..1.
        optimizer: Makes the optimizer from parameter groups. Norms, biases, tokens, position embeddings and all other
            vectors are in a group without weight decay. Adam and AdamW use their fused kernel unless ``fused`` or
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
            data differ in their number of classes, nothing is trainable, or the schedule's length is unknown.

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

    teacher: FrozenTeacher | None

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        criterion: nn.Module | None = None,
        distillation: nn.Module | None = None,
        alpha: float = 0.5,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05),
        scheduler: LRSchedulerCallable | None = WarmupCosine,
        scheduler_interval: Interval | None = None,
        head: Head = "mean_probs",
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        smoothing = getattr(criterion, "label_smoothing", 0.0)
        if not 0 <= smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {smoothing}")
        if scheduler_interval not in (None, "step", "epoch"):
            raise ValueError(f"scheduler_interval must be 'step' or 'epoch', got {scheduler_interval!r}")
        if head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
        self._save_hyperparameters()
        self.student = student
        self.head: Head = head
        self.teacher = teacher  # type: ignore[assignment]  # see __setattr__
        self.criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        self.distillation = distillation
        self.alpha = alpha
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.kept_in_checkpoints: dict[str, Any] = {}  # by name, beside what Lightning keeps; plain containers
        self._about: dict[str, Any] = {}
        self._rates_were_set = False
        self._schedule_follows_the_run = False
        self._counter = SampleCounter()
        save_under_plain_names(self)

    @property
    def predicts(self) -> Head:
        """The head that predicts: the class head where nothing has trained the other one."""
        return "class" if self.distillation is None else self.head

    @override
    def forward(self, image: Tensor) -> StudentOutput:
        """Return the student's logits; without distillation nothing trains its second head, which then has no say."""
        output = StudentOutput.of(self.student(image))
        return output if self.distillation is not None else StudentOutput(output.logits, output.logits)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, target = batch[0], _integer_labels(batch[1])
        self._about["image_shape"] = list(image.shape[1:])
        self._about["image_dtype"] = "float" if image.is_floating_point() else "uint8"
        output = StudentOutput.of(self.student(image))
        loss: Tensor = self.criterion(output.logits.float(), target)
        terms = {"train/criterion": loss.detach()}
        if self.distillation is not None and self.teacher is not None:
            distillation = self.distillation(output.distill_logits, self.teacher(image), target)
            loss = (1 - self.alpha) * loss + self.alpha * distillation
            terms["train/distillation"] = distillation.detach()
        else:
            # DDP wants every parameter to take part: the sum of no row is 0 with gradient 0, even of infinite logits.
            loss = loss + output.distill_logits[:0].sum()
        how: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(image), "sync_dist": True}
        self.log("train/loss", loss.detach(), prog_bar=True, **how)
        self.log_dict(terms, **how)
        return loss

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._measure(batch, self.val_metrics, "val", batch_idx, dataloader_idx)

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._measure(batch, self.test_metrics, "test", batch_idx, dataloader_idx)

    @override
    def on_validation_start(self) -> None:
        if self.trainer.state.fn != "fit":
            refuse_not_finite(self.student)

    @override
    def on_test_start(self) -> None:
        refuse_not_finite(self.student)

    @override
    def on_predict_start(self) -> None:
        refuse_not_finite(self.student)

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_measured(self.val_metrics, "val")

    @override
    def on_test_epoch_end(self) -> None:
        self._log_measured(self.test_metrics, "test")

    @override
    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        image = batch if isinstance(batch, Tensor) else batch[0]
        return self(image).log_probs(self.head).exp()  # type: ignore[no-any-return]

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit" and self.distillation is not None and self.teacher is None:
            raise ValueError(
                f"{type(self.distillation).__name__} needs a teacher, got teacher=None: "
                "give one, or set distillation to None"
            )
        if stage == "fit" and self.distillation is None and self.head == "distill":
            rank_zero_info("head=distill has no say: without a distillation loss the class head answers")
        if stage == "fit" and self.distillation is None and self.teacher is not None:
            rank_zero_info("there is a teacher but no distillation loss: nothing is learned from it")
        data = getattr(self._trainer, "datamodule", None)
        if stage == "fit":
            self._about["preprocessing"] = getattr(data, "preprocessing", None)
        names = getattr(data, "class_names", None)
        if names is not None:
            names = [str(name) for name in names]
            if stage != "fit":
                _compare_names(self._about.get("class_names"), names)
            self._about["class_names"] = names
            if self.teacher is not None and self.teacher.set_class_names(names) and stage == "fit":
                rank_zero_info("teacher: its classes are in another order than the data's, and are matched by name")
        if stage == "fit" and self.teacher is not None:
            for note in self.teacher.notes():
                rank_zero_info(f"teacher: {note}")
        counts = {
            "student": count_classes(self.student),
            "teacher": None if self.teacher is None else self.teacher.num_classes,
            "data": getattr(data, "num_classes", None),
        }
        known = {name: count for name, count in counts.items() if count is not None}
        if len(set(known.values())) > 1:
            said = ", ".join(f"the {name} has {count}" for name, count in known.items())
            raise ValueError(
                f"student, teacher and data must have the same number of classes, but {said}; "
                "group those of a teacher with its classes=, and where a network was misread, give it num_classes"
            )
        weight = getattr(self.criterion, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and known and len(weight) not in known.values():
            raise ValueError(
                f"the criterion has weights for {len(weight)} classes, but there are {max(known.values())}: "
                "give it one for each"
            )

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.parameter_groups())
        use_fused_kernel(optimizer)
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        interval = self.scheduler_interval or interval_of(scheduler)
        if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
            scheduler.start(length_of(self.trainer, interval))
            self._schedule_follows_the_run = True
        config: Any = {"scheduler": scheduler, "interval": interval}
        if hasattr(scheduler, "monitor"):  # Lightning's ReduceLROnPlateau says what it watches
            config["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}

    @property
    def lr(self) -> float:
        """Learning rate of the optimizer at the schedule's peak, which Lightning's ``LearningRateFinder`` sets."""
        group = self._optimizers()[0].param_groups[0]
        return float(group.get("initial_lr", group["lr"]))

    @lr.setter
    def lr(self, rate: float) -> None:
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] *= rate / group.get("initial_lr", group["lr"])
                group["initial_lr"] = rate
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [rate] * len(scheduler.base_lrs)
                scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
                self._rates_were_set = True

    @override
    def on_train_start(self) -> None:
        if self._schedule_follows_the_run:  # BatchSizeFinder changes the number of steps after they were counted
            config = self.trainer.lr_scheduler_configs[0]
            if isinstance(config.scheduler, WarmupCosine):  # StochasticWeightAveraging puts another in its place
                config.scheduler.start(length_of(self.trainer, config.interval))  # type: ignore[arg-type]
        if self._rates_were_set:  # after `lr`, LearningRateFinder sets the optimizer's rate past its schedule
            for config in self.trainer.lr_scheduler_configs:
                for group, rate in zip(
                    config.scheduler.optimizer.param_groups, config.scheduler.get_last_lr(), strict=True
                ):
                    group["lr"] = rate
            self._rates_were_set = False

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        if self._trainer is None or not self._trainer.optimizers:
            raise AttributeError("the learning rate is the optimizer's, and there is none before a fit")
        return self._trainer.optimizers

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trainable parameters without weight decay, and those with the optimizer's own."""
        return parameter_groups(self)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.kept_in_checkpoints
        signature = sign(checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY))
        heads = ["class"] if self.distillation is None else ["class", "distill"]
        checkpoint[ABOUT] = {**self._about, "head": self.predicts, "trained_heads": heads, "signature": signature}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own, state = self.state_dict(), checkpoint["state_dict"]
        for name in [name for name in {**state, **own} if name in _CHOSEN]:  # not learned: what is given now counts
            state.pop(name, None)
            state |= {name: own[name]} if name in own else {}
        about = checkpoint.get(ABOUT) or {}
        _compare_names(about.get("class_names"), self._about.get("class_names"))
        kept = {key: value for key, value in about.items() if key not in ("head", "trained_heads", "signature")}
        self._about = {**kept, **self._about}

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
        checkpoint = load_safely(path, "checkpoint", mmap=True)
        named = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY) or {}
        # Unless a subclass makes its own.
        if "teacher" in inspect.signature(cls).parameters or "teacher" in named:
            kwargs.setdefault("teacher", None)
        own = is_own(named, (checkpoint.get(ABOUT) or {}).get("signature"))
        # Older names of the key, which Lightning reads too, but no version of this module has written.
        if any(key in checkpoint for key in ("hparams", "module_arguments")):
            raise ValueError(f"refused {path}: it has hyper-parameters under a name of older versions of Lightning")
        with trusting([*([trust] if isinstance(trust, str) else trust), cls.__module__.partition(".")[0]]):
            if not own:
                _check_hyper_parameters(named, cls, path)
            with described_by(None if own else path):
                return super().load_from_checkpoint(path, *args, **{"weights_only": True, **kwargs})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("student", "teacher"):
            _refuse_shared(value, getattr(self, "teacher" if name == "student" else "student", None))
        if name != "teacher":
            super().__setattr__(name, value)
            return
        # Past nn.Module's registry: a registered teacher would be in every checkpoint, in DDP's buffers and in train().
        if value is not None and not isinstance(value, FrozenTeacher):
            value = FrozenTeacher(value)
        object.__setattr__(self, name, value)
        self.val_metrics, self.test_metrics = (DistillationMetrics(value is not None, self.head) for _ in range(2))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy without the teacher: a copy is there for its weights, and moving it must not move the teacher."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        if self.teacher is not None:
            memo[id(self.teacher)] = None
        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.teacher is not None:
            self.teacher._apply(fn)
        return self

    def _measure(
        self, batch: Any, metrics: DistillationMetrics, stage: str, batch_idx: int, dataloader_idx: int
    ) -> None:
        image, target = batch[0], _integer_labels(batch[1])
        output = self(image)
        teacher_logits = None if self.teacher is None else self.teacher(image)
        count = self._counter.count(self._loaders(stage)[dataloader_idx], batch_idx, len(target), dataloader_idx)
        counted = StudentOutput(output.logits[:count], output.distill_logits[:count])
        for each in (metrics, *self._of_each_loader(metrics, stage)[dataloader_idx : dataloader_idx + 1]):
            each.update_with(counted, None if teacher_logits is None else teacher_logits[:count], target[:count])

    def _of_each_loader(self, metrics: DistillationMetrics, stage: str) -> list[DistillationMetrics]:
        """Return the metrics of each loader where there are several."""
        count = len(self._loaders(stage))
        names = [f"{stage}_metrics_{number}" for number in range(count)] if count > 1 else []
        for name in names:
            if not hasattr(self, name):
                setattr(self, name, copy.deepcopy(metrics).train())  # Lightning asks why it is not
                for metric in getattr(self, name).values():
                    metric.reset()
        return [getattr(self, name) for name in names]

    def _log_measured(self, metrics: DistillationMetrics, stage: str) -> None:
        if not metrics.metric("nll").compute().isfinite():
            message = f"the student's outputs are NaN or infinite on some of the images of {stage}"
            if self.trainer.state.fn != "fit":
                raise ValueError(f"{message}: if its precision is of 16 bits, set --trainer.precision=32")
            rank_zero_warn(f"epoch {self.current_epoch}: {message}")
        for name in metrics:
            self.log(f"{stage}/{name}", metrics.metric(name), prog_bar=name == "accuracy_mean_probs")
        for number, each in enumerate(self._of_each_loader(metrics, stage)):
            for name in each:
                self.log(f"{stage}/{name}/dataloader_idx_{number}", each.metric(name), add_dataloader_idx=False)

    def _loaders(self, stage: str) -> list[Any]:
        """Return what the batches of a validation or a test come from."""
        trainer: Any = self._trainer
        loaders = trainer and (trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders)
        loaders = list(loaders.values()) if isinstance(loaders, dict) else loaders
        return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]

    def _save_hyperparameters(self) -> None:
        constructors = collect_init_args(sys._getframe(1), [], classes=(LitDistiller,))
        # A subclass is made again from its own arguments; its code says what it gives to its base.
        given = constructors[-1]
        kept = {name for name, value in given.items() if not (callable(value) or (value is None and name in _OBJECTS))}
        self.save_hyperparameters(ignore=[name for names in constructors for name in names if name not in kept])
        for name, value in self.hparams.items():
            if isinstance(value, Path):  # which is refused in a file that is loaded safely
                self.hparams[name] = str(value)
        # The command line describes modules and callables by class path; objects would make the file unsafe to load.
        if "_instantiator" in self.hparams:
            self.save_hyperparameters()
            # A checkpoint brings its weights: what they once started from may be gone by then.
            self.hparams["student"] = without_weights(self.hparams.get("student"))


# Pickle finds this default by its qualified name. The command line reads its arguments in its source, which it does for
# a function that is called "<lambda>" alone.
default_optimizer = inspect.signature(LitDistiller).parameters["optimizer"].default
default_optimizer.__qualname__ = "default_optimizer"


def _integer_labels(target: Tensor) -> Tensor:
    """Return classes of any integer type as int64, which is what losses index with."""
    return target if target.is_floating_point() else target.long()


def _refuse_shared(network: Any, other: Any) -> None:
    if isinstance(network, nn.Module) and isinstance(other, nn.Module):
        shared = {id(p) for p in network.parameters()} & {id(p) for p in other.parameters()}
        if shared:
            raise ValueError(
                "student and teacher are one network, and a teacher is frozen: give copy.deepcopy of it as the teacher"
            )


def _check_hyper_parameters(named: Any, cls: type[Any], path: Path) -> None:
    """Check what somebody else's checkpoint says of its module."""
    if not isinstance(named, dict):
        raise ValueError(f"refused {path}: its hyper-parameters are a {type(named).__name__}")
    if named.get("_instantiator") not in (None, "lightning.pytorch.cli.instantiate_module"):
        raise ValueError(f"refused {path}: it names {named['_instantiator']} to make its module")
    kind = class_named(named["_class_path"], path) if "_class_path" in named else cls
    # As Lightning does, leave out what the class does not take.
    check_arguments({key: value for key, value in named.items() if key in parameters_of(kind)}, kind, path)


def _compare_names(learned: list[str] | None, given: list[str] | None) -> None:
    """Refuse data whose classes the student has not learned: it would call them by each other's names."""
    if learned is None or given is None or list(learned) == list(given):
        return
    place = next((k for k, (old, new) in enumerate(zip(learned, given, strict=False)) if old != new), len(given) - 1)
    raise ValueError(
        f"the student has learned other classes than the data has: class {place} was {learned[place]!r} and is "
        f"{given[place]!r}; for new classes start anew, with the student's weights= if you like"
    )
