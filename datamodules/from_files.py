"""What data modules of image files share: damaged files, statistics, pixels decoded once."""

from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, cast

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from typing_extensions import override

from lit_distill.checks import check_at_least, check_choice, check_fraction
from lit_distill.datamodules.augmentation import Augmentation
from lit_distill.datamodules.base import ImageDataModule
from lit_distill.datamodules.decoded import DecodedImages, free_memory
from lit_distill.datamodules.images import Files, ImageFiles
from lit_distill.datamodules.machine import once_a_machine
from lit_distill.datamodules.mixing import Mixing
from lit_distill.datamodules.oddities import oddities
from lit_distill.datamodules.placement import Storage
from lit_distill.datamodules.scan import Scan, load_scans, read_all, store_scans
from lit_distill.datamodules.walk import Found

Split = Literal["train", "val", "test", "predict"]
_SPLITS: dict[str | None, tuple[Split, ...]] = {  # by Lightning's stage
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "val", "test", "predict"),
}
_STAND_INS: dict[Split, tuple[Split, ...]] = {  # the first of these that there is
    "test": ("test", "val"),
    "predict": ("predict", "test", "val"),
}


class Labelled(NamedTuple):
    """Files and the class of each; -1 where it is not known."""

    files: Files
    targets: Tensor

    @classmethod
    def by_class(cls, root: Path, photos: Collection[Sequence[str]]) -> "Labelled":
        """Return files in ``root``, given the names of each class, in the order of the classes."""
        counts = torch.tensor([len(names) for names in photos])
        return cls(Files(root, chain(*photos)), torch.arange(len(photos)).repeat_interleave(counts))


class FilesDataModule(ImageDataModule):
    """Base of the data modules that read image files: a subclass says which files, this class how they are read.

    A subclass sets ``splits`` at construction: what it has of ``"train"``, ``"val"``, ``"test"`` and ``"predict"``.
    Without ``"test"``, testing is on the validation set; without ``"predict"``, prediction is on what is tested.

    All files are read once before training: damaged ones are left out and named in one message, while the others keep
    their row; ``mean`` and ``std`` of the training images are taken; and the decoded pixels stay in memory, shared by
    all workers and all ranks of a machine, if they fit. Whether they do changes no pixel. Validation, test and
    prediction see each photo as `read_image` and `Augmentation.evaluate` make it, to the bit; for training with random
    resized crops a large photo is shrunk as it is read, to what is `Augmentation.sufficient_side`.

    Args:
        image_size: Side of the square images in pixels.
        channels: 3, or 1 for greyscale.
        augmentation: What becomes of the training images.
        mixing: Mixup and cutmix; None for none.
        repeats: Views of each image in an epoch, as `KeyedSampler` explains.
        batch_size: Samples a step and rank.
        eval_batch_size: Samples a step in validation, test and prediction; by default ``batch_size``.
        num_workers: Processes that read; by default one a core, at most 8 and shared by the ranks, and none where there
            are two cores or fewer and the images are decoded.
        seed: Seed of order and augmentation; by default the one given to ``seed_everything``, else 0.
        decode_memory: Share of the free memory that decoded images may take, 0..1; 0 reads files in every epoch.
        check: Read all files before training. Without it a damaged file ends the run when it is met, and ``mean`` and
            ``std`` are None.
        max_damaged: Share of damaged files in a split above which they are an error, 0..1; a single one never is.
        storage: As of `ImageDataModule`.
        views: As of `ImageDataModule`.

    Raises:
        ValueError: If an argument is out of range. Before training, if too many files are damaged, or all of a class.
    """

    scan_file: Path | None = None

    def __init__(
        self,
        image_size: int = 224,
        channels: Literal[1, 3] = 3,
        augmentation: Augmentation | None = None,
        mixing: Mixing | None = None,
        repeats: int = 1,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        decode_memory: float = 0.5,
        check: bool = True,
        max_damaged: float = 0.01,
        storage: Storage = "auto",
        views: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, repeats, mixing, storage, views)
        check_fraction(decode_memory=decode_memory, max_damaged=max_damaged)
        check_choice((1, 3), channels=channels)
        check_at_least(1, image_size=image_size)
        self.image_size = image_size
        self.channels = channels
        self.augmentation = augmentation or Augmentation()
        self.decode_memory = 0.0 if storage == "files" else decode_memory
        self.check = check
        self.max_damaged = max_damaged
        self.splits: dict[Split, Labelled] = {}
        self.left_out = Found()  # what the subclass took for no photo, until it is reported
        self._scans: dict[str, Scan] = {}
        self._decoded: dict[Split, DecodedImages | None] = {}

    @property
    def mean(self) -> list[float] | None:
        """Mean of the training images' pixels in 0..1, a value a channel; the first call reads the files."""
        return self.scan("train").mean if self.check else None

    @property
    def std(self) -> list[float] | None:
        """Standard deviation of the training images' pixels, a value a channel."""
        return self.scan("train").std if self.check else None

    @property
    @override
    def preprocessing(self) -> dict[str, object]:
        return self.augmentation.evaluate(self.image_size, self.channels).as_dict()

    @override
    def setup(self, stage: str | None = None) -> None:
        """Make the data sets of a stage."""
        for split in _SPLITS[stage]:
            setattr(self, f"{split}_set", self._data_set(split))
        self._report_left_out()
        if stage == "fit":
            self._report_oddities()
        self.choose_workers(in_memory=self._decoded.get("train") is not None)

    def scan(self, split: Split) -> Scan:
        """Return what reading all files of a split has found; an earlier run's where the files have not changed."""
        split = self._source(split)
        if split not in self._scans:
            self._report_left_out()
            stored = load_scans(self.scan_file).get(split, Scan.unread())
            if stored.digest == self._files(split).digest():
                self._accept(split, stored)
            else:
                self._read(split)
        return self._scans[split]

    def contents(self, split: Split) -> dict[str, str]:
        """Return a digest of the bytes of each file of a split, by its name; without damaged files."""
        self.scan(split)
        return {name: content for name, (_, content) in self._photos(split).items()}

    def names(self, split: Split) -> list[str]:
        """Return the names of the files of a split, in the order in which they are read; without damaged files."""
        if self.check:
            self.scan(split)
        return [*self._photos(split)]

    def _source(self, split: Split) -> Split:
        """Return the split that serves as this one."""
        return next(name for name in _STAND_INS.get(split, (split,)) if name in self.splits)

    def _files(self, split: Split) -> ImageFiles:
        """Return the files of a split, read as its transform wants them: shrunk or resized, so that more fit."""
        files, targets = self.splits[split]
        evaluate = self.augmentation.evaluate(self.image_size, self.channels)
        if split != "train":
            return ImageFiles(files, targets, evaluate, evaluate.mode, resize=evaluate.resized)
        train = self.augmentation.train(self.image_size)
        return ImageFiles(files, targets, train, evaluate.mode, train.sufficient_side, train.resize)

    def _data_set(self, split: Split) -> Dataset[tuple[object, int]]:
        source = self._source(split)
        data = self._files(source)
        data.decoded = self._shared(source)
        if self.check:
            data.contents = self.scan(source).content_numbers()
        scan = self._known(source)
        if scan.damaged:
            data.rows = scan.readable(data.files).nonzero().flatten()
            if split != "train":
                return Subset(data, cast("Sequence[int]", data.rows))  # a tensor, which workers share
        return data

    def _read(self, split: Split) -> None:
        """Scan a split, unless its scan is known, and decode its images into memory if they fit.

        A known scan is read again only to decode.
        """
        data = self._files(split)
        budget = int(self.decode_memory * free_memory()) if split != "predict" else 0
        if split not in self._scans or 0 < self._scans[split].nbytes <= budget:
            reading = read_all(data, budget, quiet=getattr(rank_zero_only, "rank", 0) != 0)
            self._decoded[split] = reading.decoded
            self._accept(split, Scan.of(reading, data))
            if self.scan_file is not None:
                store_scans(self.scan_file, self._scans)
        self._report_memory(split, budget)

    def _shared(self, split: Split) -> DecodedImages | None:
        """Return the decoded images of a split, and keep its scan; one rank of each machine has made both."""

        def make() -> tuple[Scan | None, DecodedImages | None]:
            if self.check:
                self.scan(split)
            if split not in self._decoded and split != "predict" and self.decode_memory:
                self._read(split)
            return self._scans.get(split), self._decoded.get(split)

        scan, self._decoded[split] = once_a_machine(self.trainer, make)
        if scan is not None:
            self._scans[split] = scan
        return self._decoded[split]

    def _accept(self, split: Split, scan: Scan) -> None:
        """Keep what is known about a split, unless too many of its files are damaged."""
        if scan.damaged and split not in self._scans:
            files, targets = self.splits[split]
            message = f"{len(scan.damaged)} of {len(files)} files for {split} are no readable images: {scan.damage()}"
            emptied = sorted(set(targets.tolist()) - set(targets[scan.readable(files)].tolist()))
            if emptied:
                there_is = f"class {self._class_names()[emptied[0]]!r} has" if emptied[0] >= 0 else "there is"
                raise ValueError(f"{message}; {there_is} no other: mend or remove them")
            if len(scan.damaged) > max(1, self.max_damaged * len(files)):
                raise ValueError(
                    f"{message}; that is more than max_damaged={self.max_damaged:g}: mend or remove them, or raise it "
                    "(--data.max_damaged on the command line)"
                )
            rank_zero_warn(f"left out: {message}")
        self._scans[split] = scan

    def _known(self, split: Split) -> Scan:
        """Return the scan of a split; nothing is known of files that nobody has read."""
        return self._scans.get(split, Scan.unread(len(self.splits[split].files)))

    def _photos(self, split: Split) -> dict[str, tuple[int, str]]:
        """Return class and content of each file of a split that is not known to be damaged, by its name."""
        split = self._source(split)
        files, targets = self.splits[split]
        scan = self._known(split)
        photos = zip(files, targets.tolist(), scan.contents, strict=True)
        return {name: (target, content) for name, target, content in photos if name not in scan.damaged}

    def _class_names(self) -> list[str]:
        return [*(self.class_names or map(str, range(self.num_classes)))]

    def _report_memory(self, split: Split, budget: int) -> None:
        """Say whether the decoded images of a split are in memory."""
        scan, decoded = self._scans[split], self._decoded.setdefault(split, None)
        if decoded is not None:
            count = scan.count - len(scan.damaged)
            rank_zero_info(f"decoded {count} {split} images into {scan.nbytes / 1e6:.3g} MB of shared memory")
        elif budget:
            rank_zero_info(
                f"the decoded {split} images would take {scan.nbytes / 1e9:.1f} GB, more than "
                f"decode_memory={self.decode_memory} of the free memory: files are read in every epoch"
            )

    def _report_left_out(self) -> None:
        """Say once what was taken for no photo."""
        left_out, self.left_out = self.left_out, Found()
        if line := left_out.told():
            (rank_zero_warn if "heif" in left_out.left_out else rank_zero_info)(line)

    def _report_oddities(self) -> None:
        """Warn of what can be read, and yet is hardly what was meant."""
        for line in oddities(self._photos("train"), self._photos("val"), self._class_names()):
            rank_zero_warn(line)
        count = len(self.splits["train"].files)
        if count < self.batch_size:
            rank_zero_info(f"{count} training images are less than a batch of {self.batch_size}: one step an epoch")
