"""The teacher is asked once for each view, and never again."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
import math
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
import torch
from torch import nn
from typing_extensions import override

from lit_distill.batch import Batch
from lit_distill.callbacks.teacher_time import TeacherTime
from lit_distill.checks import check_at_least, counted
from lit_distill.datamodules.fingerprints import evaluation_parts, images_of, training_parts
from lit_distill.datamodules.indexed import IndexedDataset
from lit_distill.datamodules.sampler import KeyedSampler
from lit_distill.distillation import losses_of
from lit_distill.evaluation import loaders_of
from lit_distill.models.answer_rows import AnswerRows
from lit_distill.models.answers import Answers, caches_in
from lit_distill.models.marks import duration
from lit_distill.models.output_rows import OutputRows
from lit_distill.models.taps import check_features
from lit_distill.models.teacher_base import Teacher
from lit_distill.models.teacher_cache import Source, TeacherCache
from lit_distill.tuning import fast_networks, precision_of, tune

_LARGE = 256  # logits; float16 has steps of a quarter above it


class TeacherCaching(Callback):
    """Keep the teacher's logits on disk by view and row, and do not ask it again for a view that is there.

    Epoch e has the views of epoch ``e mod views``. The first epochs fill the cache without a pass of their own; the
    later ones read it, and so does every later run that has the same teacher, data, seed and augmentation. Answers to
    the validation images are kept too. Once everything is there, the teacher's weights leave memory. Temperature, loss,
    alpha, student and epochs may change: the cache stays valid, and so it does with more ``views``.

    What is read is what would be answered, rounded to float16, also while the cache fills: a run that fills it and one
    that reads it train the same network. A batch is served once all of its rows are there; until then the teacher is
    asked about it. So a run that was stopped goes on where it was. With several ranks each writes what it was answered,
    and a folder that they share makes one cache of it.

    Needs a module whose ``teacher`` is a `Teacher`, such as `LitDistiller`, and a data module of this package; or a
    loader of ``IndexedDataset(..., with_view=True)`` with ``KeyedSampler(..., views=...)``. Losses on layers inside the
    teacher, and teachers without logits, need ``features`` too.

    Args:
        views: V >= 1, views of each image. Fewer save more time and cost accuracy: an epoch repeats the images of V
            epochs before.
        folder: Where caches are, each in a folder that is named after what it is made of.
        top_k: Keep this many logits of an answer, and the sum of the rest; see `AnswerRows`. By default all.
        single_view: Allow ``views=1``, with which the student sees every image in one form only, and overfits.
        features: Keep features of training images too, in float16: True those that the teacher returns and the layers
            that the losses name, or one or several by name. A layer with many values takes many bytes, and the answers
            to a view are on the training device.

    Raises:
        ValueError: If ``views`` or ``top_k`` is < 1; or ``views`` is 1 without ``single_view``; before the first step,
            if there is no teacher, a loss needs features that are not kept, the teacher lacks one, or training images
            are not keyed by their view.

    Source:
        The idea of a fixed number of stored views: Shen and Xing, "A fast knowledge distillation framework", arXiv
        2112.01528; Wu et al., "TinyViT", arXiv 2207.10666. Both store augmentations; keyed views need none.

    Example:
        >>> trainer = Trainer(callbacks=TeacherCaching(views=30), logger=False)
    """

    def __init__(
        self,
        views: int,
        folder: str | Path = "teacher_cache",
        top_k: int | None = None,
        single_view: bool = False,
        features: bool | Sequence[str] | str = False,
    ) -> None:
        super().__init__()
        check_at_least(1, views=views, top_k=top_k)
        if views == 1 and not single_view:
            raise ValueError(
                "views=1 shows the student every image in one form only, and it overfits: take more views, or set "
                "teacher_cache.single_view=true (single_view=True in Python) if that is meant"
            )
        self.views = views
        self.folder = Path(folder)
        self.top_k = top_k
        self.features = [features] if isinstance(features, str) else features
        self._layers: list[str] = []  # to tap
        self._cache: TeacherCache | None = None
        self._train: Source | None = None
        self._time: TeacherTime | None = None
        self._sampler: KeyedSampler | None = None
        self._sets: list[_Set] = []
        self._stays = False  # the teacher, in memory, for want of room on disk
        self._epoch = -1  # whose views the source has
        self._error_is_told = self._size_is_told = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        teacher, distillation = getattr(pl_module, "teacher", None), getattr(pl_module, "distillation", None)
        if isinstance(teacher, TeacherCache):  # of a run that had no chance to give its teacher back
            teacher.take_back()
            teacher = teacher.asked
        if not isinstance(teacher, Teacher) or distillation is None:
            raise ValueError("teacher_cache needs a teacher and a distillation loss: give both, or leave it out")
        self._layers = self._layers_to_keep(distillation)
        data = getattr(trainer, "datamodule", None)
        if data is not None and hasattr(data, "views"):
            if data.views not in (None, self.views):
                raise ValueError(f"teacher_cache.views={self.views}, but data.views={data.views}: give the first alone")
            data.views = self.views
        self._cache, self._train, self._epoch = TeacherCache(teacher), None, -1
        self._stays = False
        self._time = TeacherTime(self._cache)
        pl_module.teacher = self._cache

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._cache is None:
            return
        loader = trainer.train_dataloader
        data, sampler = getattr(loader, "dataset", None), getattr(loader, "sampler", None)
        if not isinstance(data, IndexedDataset) or not isinstance(sampler, KeyedSampler) or sampler.views != self.views:
            raise ValueError(
                f"teacher_cache needs batches with a view and an index, of KeyedSampler(..., views={self.views}) and "
                "IndexedDataset(..., with_view=True), as a data module's without overfit_batches; got "
                f"{type(sampler).__name__} and {type(data).__name__}"
            )
        teacher = self._cache.asked.identity()  # before it is asked, which may change what it holds
        rows = self._rows_with_features(trainer, self._cache, data) if self.features else self._rows(trainer)
        common = {"teacher": teacher, "rows": "no logits" if rows.logits is None else str(rows.logits)}
        parts = {"features": str(OutputRows(None, rows.features)) or "none", **training_parts(data, sampler.repeats)}
        self._sampler = sampler
        self._sets = [_Set(None, data, rows, common | parts)]
        for number, each in enumerate([] if rows.logits is None else loaders_of(trainer, "val")):
            dataset = getattr(each, "dataset", None)
            evaluated = evaluation_parts(dataset) if isinstance(dataset, IndexedDataset) else None
            if evaluated is not None and isinstance(dataset, IndexedDataset):
                self._sets.append(_Set(number, dataset, OutputRows(rows.logits), common | evaluated))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if self._cache is None:
            return
        if self._train is None:
            tune(trainer, self._cache, batch)  # with a batch, a teacher can choose how to be fast
            self._open_all(trainer, self._cache)
            self._cache.reopen = lambda: self._reopen(trainer)
        # Lightning has no hook at the start of an epoch that it resumes.
        if trainer.current_epoch != self._epoch:
            self._epoch = trainer.current_epoch
            self._begin(trainer)
        if self._time is not None and not self._time.is_over and self._time.begin_step(pl_module.device):
            self._tell_saving(trainer, self._time)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._time is not None and not self._time.is_over:
            self._tell_saving(trainer, self._time)
            if not self._time.is_over:
                self._time.forget_steps()
        if self._train is not None and self._epoch == trainer.current_epoch:
            self._finish(trainer, self._train, self._current_views())

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._train is not None and not trainer.sanity_checking:
            self._finish_evaluated(trainer)  # TeacherCheck may have asked about all of it

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._cache is not None and not trainer.sanity_checking:
            self._cache.source = self._cache.evaluated.get(dataloader_idx)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._cache is None or self._train is None or trainer.sanity_checking:
            return
        self._finish_evaluated(trainer)
        self._cache.source = self._train

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(RuntimeError):  # of a device that has failed
            self.teardown(trainer, pl_module, "fit")  # which Lightning leaves out after an error

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        cache = self._cache
        if cache is None:
            return
        self._flush()
        pl_module.teacher = cache.asked
        cache.take_back()
        cache.reopen = None
        self._cache = self._train = self._time = self._sampler = None
        self._sets = []

    def _flush(self) -> None:
        """Write what is still in memory, as of a run that was stopped."""
        evaluated = {} if self._cache is None else self._cache.evaluated
        for source in (self._train, *evaluated.values()):
            if source is not None:
                source.flush()

    def _layers_to_keep(self, distillation: nn.Module) -> list[str]:
        """Return the features to keep by name; those that the teacher returns may come to them."""
        needed = {str(getattr(loss, "teacher_layer", None) or "") for loss in losses_of(distillation).values()} - {""}
        kept = needed if self.features is True else set(self.features or ())
        if not needed <= kept:
            raise ValueError(
                f"a loss needs the teacher's {', '.join(sorted(needed - kept))}, and teacher_cache keeps "
                f"{', '.join(sorted(kept)) or 'its logits only'}: set teacher_cache.features=true, or leave one out"
            )
        return sorted(kept)

    def _rows(self, trainer: Trainer) -> OutputRows:
        asked = None if self._cache is None else self._cache.asked
        classes = getattr(asked, "num_classes", None) or getattr(
            getattr(trainer, "datamodule", None), "num_classes", None
        )
        if classes is None:
            raise ValueError("teacher_cache cannot tell the teacher's number of classes: give it num_classes")
        return OutputRows(AnswerRows(classes, self.top_k))

    def _rows_with_features(self, trainer: Trainer, cache: TeacherCache, data: IndexedDataset) -> OutputRows:
        """Ask about an image, to see the shape of each feature that is to be kept."""
        image = trainer.precision_plugin.convert_input(images_of(data, [(0, 0)])[0][None])
        keys = torch.zeros(1, dtype=torch.int64)
        batch = trainer.strategy.batch_to_device(Batch(image, keys, keys, keys))
        with trainer.precision_plugin.forward_context():
            answer = cache.ask(batch, self._layers)
        check_features(answer.features, self._layers, cache.network, "teacher")
        names = sorted(answer.features if self.features is True else self._layers)
        logits = None if answer.logits is None else AnswerRows(answer.logits.shape[1], self.top_k)
        return OutputRows(logits, {name: tuple(answer.features[name].shape[1:]) for name in names})

    def _open_all(self, trainer: Trainer, cache: TeacherCache) -> None:
        """Open the source of each data set for the precision that the teacher answers in now."""
        precision = precision_of(trainer, fast_networks(cache).values())
        for each in self._sets:
            source = self._open(trainer, each, precision)
            if each.loader is None:
                self._train = source
                self._finish(trainer, source, [*range(self.views)])
            else:
                cache.evaluated[each.loader] = source
        self._finish_evaluated(trainer)
        if self._train is not None:
            self._tell(self._train.answers)

    def _reopen(self, trainer: Trainer) -> None:
        """Leave what the teacher has answered so far, and open what it would answer now."""
        self._flush()
        if self._cache is not None:
            self._open_all(trainer, self._cache)
            self._begin(trainer)

    def _open(self, trainer: Trainer, described: "_Set", precision: str) -> Source:
        """Return a source; all ranks take what the first says it is made of."""
        kind, data, rows = "train" if described.loader is None else "val", described.data, described.rows
        made_of = trainer.strategy.broadcast({"precision": precision, **described.made_of})
        wanted = None
        if data.rows is not None:
            wanted = data.rows.new_zeros(data.num_rows, dtype=torch.bool).index_fill_(0, data.rows, True)
        about = self._about(trainer)
        answers = Answers(self.folder, kind, made_of, data.num_rows, rows.stride, wanted, about=about)
        if not answers.folder.exists():
            _note_difference(answers)
        elif trainer.is_global_zero:
            with suppress(OSError):  # read only
                answers.describe()
        return Source(answers, rows, keyed=kind == "train")

    def _about(self, trainer: Trainer) -> str:
        """Return for people whose answers these are, and to which images."""
        network = None if self._cache is None else self._cache.network
        timms = getattr(network, "pretrained_cfg", None)
        name = (isinstance(timms, Mapping) and timms.get("architecture")) or type(network).__name__
        data = getattr(trainer, "datamodule", None)
        root = getattr(data, "root", None)
        images = Path(root).absolute() if root is not None else "images" if data is None else type(data).__name__
        return f"{name}, {images}"

    def _current_views(self) -> list[int]:
        first = 0 if self._sampler is None else self._sampler.first_view()
        return [*range(first, first + (1 if self._sampler is None else self._sampler.repeats))]

    def _begin(self, trainer: Trainer) -> None:
        """Turn to the views of an epoch."""
        cache, train = self._cache, self._train
        if cache is None or train is None:
            return
        train.begin(self._current_views(), trainer.strategy.root_device)
        cache.source = train
        if train.is_warm and not cache.is_away and not self._stays and self._is_complete(trainer, cache):
            try:
                cache.put_away(self.folder)
            except OSError as error:
                self._stays = True  # until the run ends
                rank_zero_info(f"the teacher stays in memory: {error}")

    def _is_complete(self, trainer: Trainer, cache: TeacherCache) -> bool:
        loaders = [loader for loader in loaders_of(trainer, "val") if loader is not None]
        validated = len(cache.evaluated) == len(loaders) and all(source.is_warm for source in cache.evaluated.values())
        return validated and self._views_there() == self.views

    def _finish_evaluated(self, trainer: Trainer) -> None:
        for source in () if self._cache is None else self._cache.evaluated.values():
            self._finish(trainer, source, [0])  # whether warm or not, for all ranks must come here
            source.begin([0], trainer.strategy.root_device)  # looks again if the file has changed

    def _finish(self, trainer: Trainer, source: Source, views: list[int]) -> None:
        """Write what is noted, and merge what all ranks have written."""
        source.flush()
        trainer.strategy.barrier("teacher_cache written")
        if trainer.is_global_zero:
            source.merge(views)
        trainer.strategy.barrier("teacher_cache merged")
        if _LARGE < source.largest < math.inf and not self._size_is_told:
            self._size_is_told = True
            rank_zero_warn(
                f"the teacher's logits reach {source.largest:.0f}, where float16, which the cache keeps them in, has "
                f"steps of {2 ** (math.frexp(source.largest)[1] - 11):g}: subtract a constant from them in the "
                "teacher, or leave the cache out"
            )
        if source.error is not None and not self._error_is_told:
            self._error_is_told = True
            rank_zero_warn(
                f"the teacher's answers cannot be written to {self.folder} ({source.error}): training goes on, and "
                "asks the teacher for what is not there; teacher_cache.folder=PLACE keeps them elsewhere"
            )

    def _views_there(self) -> int:
        answers = None if self._train is None else self._train.answers
        return sum(answers is not None and answers.table(view) is not None for view in range(self.views))

    def _tell(self, answers: Answers) -> None:
        """Say where the cache is and what it has."""
        views = self._views_there()
        size = answers.num_rows * answers.stride * self.views
        damaged = f"; {counted(answers.damaged, 'damaged shard')} to be filled again" if answers.damaged else ""
        rank_zero_info(
            f"teacher cache: {views} of {self.views} views are in {answers.folder}; all of them take "
            f"{size / 1e6:.3g} MB{damaged}"
        )

    def _tell_saving(self, trainer: Trainer, teacher_time: TeacherTime) -> None:
        """Say what part of a step the teacher takes, and how much of this run the cache saves."""
        measured, steps = teacher_time.measure(), trainer.num_training_batches
        if measured is None or self._error_is_told:
            return
        missing = self.views - self._views_there()
        epochs = (trainer.max_epochs or -1) - trainer.current_epoch  # that are left; < 0 of a run without an end
        saved = f"an epoch that need not ask is shorter by {duration(measured.asking * steps)}"
        if steps < len(trainer.train_dataloader or ()):
            saved += ", but limit_train_batches takes other images in each epoch, so views do not become whole"
        elif epochs > missing:  # each missing view is the work of one epoch
            seconds = [measured.asking * steps * (epochs - missing), measured.step * steps * epochs]
            left = " that are left" if trainer.current_epoch else ""
            saved = (
                f"{epochs - missing} of {epochs} epochs{left} need not ask, which saves "
                f"{' of '.join(map(duration, seconds))}"
            )
        elif epochs > 0:
            saved += f"; this run has none: {counted(epochs, 'epoch')} for {counted(missing, 'missing view')}"
        rank_zero_info(f"teacher cache: asking takes {measured.asking / measured.step:.0%} of a step; {saved}")


class _Set(NamedTuple):
    """A data set with a source: that of training, or of the validation set's loader of this number."""

    loader: int | None
    data: IndexedDataset
    rows: OutputRows
    made_of: dict[str, str]


def _note_difference(answers: Answers) -> None:
    """Say which parts differ from those of the most similar cache of its kind, if there is one."""
    differences = [
        _differences(other.made_of, answers.made_of) for other in caches_in(answers.folder.parent, answers.kind)
    ]
    if differences:
        parts = ", ".join(sorted(differences, key=len)[0])
        rank_zero_info(f"teacher cache: a new one begins, since the ones in {answers.folder.parent} differ in {parts}")


def _differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    # The images differ whenever a part does that makes them.
    return [name for name in names if not name.endswith(" images")] or names or ["the number of images"]
