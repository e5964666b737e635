"""What data modules of image files share: damaged files, statistics, pixels decoded once."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import Subset
from typing_extensions import override

from lit_distill.datamodules.augmentation import Augmentation
from lit_distill.datamodules.base import ImageDataModule
from lit_distill.datamodules.decoded import DecodedImages, Reading, cores, free_memory, read_all
from lit_distill.datamodules.images import Files, ImageFiles
from lit_distill.datamodules.mixing import Mixing
from lit_distill.datamodules.oddities import oddities
from lit_distill.datamodules.walk import Found, printable
from lit_distill.files import write_atomically
from lit_distill.photos import Mode

Split = Literal["train", "val", "test", "predict"]


class Labelled(NamedTuple):
    """Files and the class of each; -1 where it is not known."""

    files: Files
    targets: Tensor


class FilesDataModule(ImageDataModule):
    """Base of the data modules that read image files: a subclass says which files, this class how they are read.

    A subclass sets ``splits`` at construction: what it has of ``"train"``, ``"val"``, ``"test"`` and ``"predict"``.
    Without ``"test"``, testing is on the validation set; without ``"predict"``, prediction is on what is tested.

    All files are read once before training: damaged ones are left out and named in one message, while the others keep
    their row; ``mean`` and ``std`` of the training images are taken; and the decoded pixels stay in memory, shared by
    all workers and all ranks of a machine, if they fit. Whether they do changes no pixel. Validation, test and
    prediction see each photo as `read_image` and `Augmentation.evaluate` make it, to the bit; for training with random
    resized crops a large photo is shrunk as it is read, to what is `Augmentation.enough`.

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
        max_damaged: Share of damaged files in a split above which they are an error, 0..1.

    Raises:
        ValueError: If an argument is out of range. Before training, if too many files are damaged, or all of a class.

    Attributes:
        mean, std: Of the training images' pixels in 0..1, a value a channel; computed when they are first asked for.
    """

    splits: Mapping[Split, Labelled]
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
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers or 0, seed, repeats, mixing)
        for name, value in {"decode_memory": decode_memory, "max_damaged": max_damaged}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        if image_size < 1:
            raise ValueError(f"image_size must be >= 1, got {image_size}")
        self.image_size = image_size
        self.channels = channels
        self.augmentation = augmentation or Augmentation()
        self.decode_memory = decode_memory
        self.check = check
        self.max_damaged = max_damaged
        self._auto_workers = num_workers is None
        self.left_out = Found()  # by the subclass; its names are of no interest here
        self._scans: dict[Split, Scan] = {}
        self._decoded: dict[Split, DecodedImages | None] = {}

    @property
    def mean(self) -> list[float] | None:
        """Mean of the training images, a value a channel."""
        return self.scan("train").mean if self.check else None

    @property
    def std(self) -> list[float] | None:
        """Standard deviation of the training images' pixels, a value a channel."""
        return self.scan("train").std if self.check else None

    @property
    @override
    def preprocessing(self) -> dict[str, Any]:
        return self.augmentation.evaluate(self.image_size, self.channels).as_dict()

    @override
    def setup(self, stage: str | None = None) -> None:
        """Make the data sets of a stage."""
        stages: dict[str | None, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in stages.get(stage, ("predict",) if stage else ("train", "val", "test", "predict")):
            setattr(self, f"{split}_set", self._data_set(split))
        self._tell_left_out()
        if stage == "fit":
            self._tell_oddities()
        if self._auto_workers:
            ranks = getattr(self.trainer, "num_devices", 1)
            share = min(8, cores() // ranks)
            self.num_workers = 0 if share <= 2 and self._decoded.get("train") is not None else share
        if stage == "fit" and len(self.splits["train"].files) < self.batch_size:
            count = len(self.splits["train"].files)
            rank_zero_info(f"{count} training images are less than a batch of {self.batch_size}: one step an epoch")

    def scan(self, split: Split) -> "Scan":
        """Return what reading all files of a split has told; of an earlier run where they have not changed."""
        split = self._source(split)
        if split not in self._scans:
            self._tell_left_out()
            data = self._files(split)
            digest = data.digest()
            scan = self._stored().get(split)
            if scan is None or scan.digest != digest:
                self._read(split)
                self._store()
            else:
                self._take(split, scan)
        return self._scans[split]

    def contents(self, split: Split) -> dict[str, str]:
        """Return a digest of the bytes of each file of a split, by its name; without damaged files."""
        self.scan(split)
        return {name: content for name, (_, content) in self._known(self._source(split)).items()}

    def names(self, split: Split) -> list[str]:
        """Return the names of the files of a split, in the order in which they are read."""
        source = self._source(split)
        if self.check:
            self.scan(source)
        damaged = self._scans[source].damaged if source in self._scans else {}
        return [name for name in self.splits[source].files if name not in damaged]

    def _source(self, split: Split) -> Split:
        """Return the split that serves as this one."""
        order: tuple[Split, ...] = ("predict", "test", "val")
        if split not in self.splits and split in order:
            return next((s for s in order[order.index(split) :] if s in self.splits), split)
        return split

    def _files(self, split: Split) -> ImageFiles:
        """Return the files of a split, read as its transform wants them, which is what fits into memory too."""
        files, targets = self.splits[split]
        if split == "train":
            train = self.augmentation.train(self.image_size)
            return ImageFiles(files, targets, train, self._mode, train.enough, train.resize)
        evaluate = self.augmentation.evaluate(self.image_size, self.channels)
        return ImageFiles(files, targets, evaluate, self._mode, resize=evaluate.resized)

    @property
    def _mode(self) -> Mode:
        return "L" if self.channels == 1 else "RGB"

    def _data_set(self, split: Split) -> Any:
        train, source = split == "train", self._source(split)
        if self.check:
            self.scan(source)
        data = self._files(source)
        data.decoded = self._shared(source)
        if self.check:
            data.contents = self._scans[source].numbers()
        damaged = self._scans[source].damaged if source in self._scans else {}
        if damaged:
            rows = torch.tensor([row for row, name in enumerate(data.files) if name not in damaged])
            if not train:
                return Subset(data, rows)  # type: ignore[arg-type]  # a tensor: workers share it
            data.rows = rows
        return data

    def _read(self, split: Split) -> None:
        """Read all files, and keep their pixels if they are to be kept and fit."""
        data = self._files(split)
        budget = int(self.decode_memory * free_memory()) if split != "predict" else 0
        if budget and _estimate(data) > budget:
            budget = 0
            rank_zero_info(
                f"the decoded {split} images would take {_estimate(data) / 1e9:.1f} GB, more than "
                f"decode_memory={self.decode_memory} of the free memory: files are read in every epoch"
            )
        if not budget and not self.check:
            self._decoded[split] = None
            return
        reading = read_all(data, budget, quiet=getattr(rank_zero_only, "rank", 0) != 0)
        self._decoded[split] = reading.decoded
        self._take(split, Scan.of(reading, data))
        if reading.decoded is not None:
            size = reading.decoded.nbytes / 1e6
            count = len(data) - len(reading.damaged)
            rank_zero_info(f"decoded {count} {split} images into {size:.3g} MB of shared memory")

    def _shared(self, split: Split) -> DecodedImages | None:
        """Return the decoded images, which one rank of each machine has made."""

        def make() -> DecodedImages | None:
            if split not in self._decoded and self.decode_memory:
                self._read(split)
            return self._decoded.get(split)

        found = once_a_machine(self.trainer, make)
        self._decoded[split] = found
        return found

    def _take(self, split: Split, scan: "Scan") -> None:
        """Keep what is known of a split, unless too much of it is damaged."""
        if scan.damaged and split not in self._scans:
            files, targets = self.splits[split]
            shown = "; ".join(f"{printable(name)} ({why})" for name, why in list(scan.damaged.items())[:5])
            more = "" if len(scan.damaged) <= 5 else f"; and {len(scan.damaged) - 5} more"
            what = f"{len(scan.damaged)} of {len(files)} files for {split} are no readable images: {shown}{more}"
            good = torch.tensor([name not in scan.damaged for name in files])
            emptied = sorted(set(targets.tolist()) - set(targets[good].tolist()))
            names = self.class_names or [str(k) for k in range(self.num_classes)]
            if emptied and split != "predict":
                raise ValueError(f"{what}; class {names[emptied[0]]!r} has no other: mend or remove them")
            if len(scan.damaged) > self.max_damaged * len(files):  # as a share
                raise ValueError(
                    f"{what}; that is more than max_damaged={self.max_damaged:g}: mend or remove them, or raise it "
                    "(--data.max_damaged on the command line)"
                )
            rank_zero_warn(f"left out: {what}")
        self._scans[split] = scan

    def _tell_left_out(self) -> None:
        """Say once what was taken for no photo."""
        told, self.left_out = self.left_out, Found()
        line = told.told()
        if line:
            (rank_zero_warn if "heif" in told.left_out else rank_zero_info)(line)

    def _tell_oddities(self) -> None:
        """Warn of what is readable, and yet hardly what was meant."""
        names = self.class_names or [str(k) for k in range(self.num_classes)]
        for line in oddities(self._known("train"), self._known("val"), names):
            rank_zero_warn(line)

    def _known(self, split: Split) -> dict[str, tuple[int, str]]:
        """Return class and content of each readable file of a split, by its name."""
        files, targets = self.splits[split]
        scan = self._scans.get(split)
        damaged, contents = (scan.damaged, scan.contents) if scan else ({}, [""] * len(files))
        rows = zip(files, targets.tolist(), contents, strict=True)
        return {name: (target, content) for name, target, content in rows if name not in damaged}

    def _stored(self) -> dict[Split, "Scan"]:
        try:
            stored = json.loads(self.scan_file.read_text()) if self.scan_file else {}
            return {split: Scan(**scan) for split, scan in stored.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # none yet, or of another version
            return {}

    def _store(self) -> None:
        if self.scan_file:
            scans = {**self._stored(), **self._scans}
            write_json(self.scan_file, {split: asdict(scan) for split, scan in scans.items()})


@dataclass
class Scan:
    """What reading all files of a split has told.

    Attributes:
        digest: Of names, sizes and times of the files, and of how they were read.
        count: Number of files.
        size: Median height and width in pixels, as read.
        mean: Of the pixels in 0..1, a value a channel, each image counting alike.
        std: Standard deviation of the pixels.
        damaged: Name of each damaged file, and why.
        contents: As of `Reading`; empty where they could not be read.
    """

    digest: str
    count: int
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    damaged: dict[str, str]
    contents: list[str]

    @classmethod
    def of(cls, reading: Reading, data: ImageFiles) -> Self:
        """Sum up a reading."""
        good = reading.sizes.prod(dim=1) > 0
        damaged = {data.files[row]: why for row, why in reading.damaged.items()}
        mean, square = reading.moments[good].mean(dim=0)
        std = (square - mean.square()).clamp(min=1e-6).sqrt()
        height, width = reading.sizes[good].median(dim=0).values.tolist() if good.any() else (0, 0)
        return cls(data.digest(), len(data), (height, width), _rounded(mean), _rounded(std), damaged, reading.contents)

    def numbers(self) -> Tensor:
        """Return the contents as int64, ``(N,)``; 0 where a file could not be read."""
        return torch.tensor([int(content or "0", 16) for content in self.contents], dtype=torch.int64)


def once_a_machine(trainer: Any, make: Callable[[], DecodedImages | None]) -> DecodedImages | None:
    """Call ``make`` in the first process of each machine; all others map what it made."""
    if getattr(trainer, "world_size", 1) == 1 or not distributed.is_initialized():
        return make()
    mine: DecodedImages | None = None
    told: Any = None
    if trainer.local_rank == 0:
        try:
            mine = make()
            told = None if mine is None else (mine.path, mine.sizes, mine.mode)
        except Exception as error:  # the others wait below, and must not wait for ever
            told = error
    everyone: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(everyone, (trainer.node_rank, trainer.local_rank, told))
    told = next(told for node, local, told in everyone if (node, local) == (trainer.node_rank, 0))
    if isinstance(told, Exception):
        raise told
    return mine if mine is not None or told is None else DecodedImages(*told)


def write_json(path: Path, content: Any) -> bool:
    """Write a file that is whole or not there; tell whether it could be written."""
    try:
        with write_atomically(path) as part:
            part.write_text(json.dumps(content, indent=1))
    except OSError:
        return False
    return True


def _estimate(data: ImageFiles) -> float:
    """Return about how many bytes the decoded images take, by a few of them."""
    sizes = []
    for row in range(0, len(data), max(1, len(data) // 32)):
        try:
            sizes.append(np.asarray(data.image(row)).nbytes)
        except ValueError:  # damaged
            continue
    return sum(sizes) / max(1, len(sizes)) * len(data)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
