"""Modules and data that several tests use; all of it is made here."""

from collections.abc import Callable, Iterable
import ctypes
import hashlib
from pathlib import Path
import random
import signal
import sys
import tempfile
from typing import Any
import warnings

from lightning.pytorch import LightningModule, Trainer
import numpy as np
from PIL import Image
import pytest
import timm
import torch
from torch import distributed, multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill.datamodules import (
    Augmentation,
    Batch,
    DigitsDataModule,
    ImageDataModule,
    ImageFolderDataModule,
    IndexedDataset,
    KeyedSampler,
)
from lit_distill.datamodules.images import Files, ImageFiles
from lit_distill.models.packaged import PACKAGES, Package

# The configuration for tests of the command line that need a run, and not the recipe itself.
SMALL_DIGITS = str(Path(__file__).with_name("small_digits.yaml"))


class Foreign(LightningModule):
    """A module that knows nothing of this project: a criterion, and batches of (image, target, index)."""

    def __init__(self, features: int = 6, classes: int = 4, label_smoothing: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, classes))
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.criterion(self.net(batch[0]), batch[1])
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.criterion(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def toy_data(samples: int = 30, features: int = 6, classes: int = 4, seed: int = 1) -> TensorDataset:
    """Random features whose labels depend on them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, features, generator=generator)
    targets = (images[:, :classes] + 0.5 * torch.randn(samples, classes, generator=generator)).argmax(dim=1)
    return TensorDataset(images, targets)


def toy_loader(samples: int = 30, batch_size: int = 8, seed: int = 3, **kwargs: Any) -> DataLoader[Any]:
    """A keyed loader with a partial last batch."""
    data = IndexedDataset(toy_data(samples, **kwargs))
    return DataLoader(data, batch_size=batch_size, sampler=KeyedSampler(data, seed))


def weights(module: nn.Module) -> torch.Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def in_processes(world: int, work: Callable[[int], Any]) -> list[Any]:
    """Return ``work(rank)`` of ``world`` processes forked from this one, joined by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(_one, (world, work, folder), world, start_method="fork")
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(world)]


def begin_helper() -> None:
    """Prepare a process that runs parts of tests: it forks the workers of loaders, and ends with its parent."""
    warnings.resetwarnings()  # pytest's, which make errors of warnings, were inherited
    multiprocessing.set_start_method("fork", force=True)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG


def _one(rank: int, world: int, work: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(work(rank), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer(**kwargs: Any) -> Trainer:
    """A trainer that writes and shows nothing."""
    return Trainer(**{**QUIET, **kwargs})


def make_photos(root: Path, names: Iterable[str], size: tuple[int, int] = (40, 32), seed: int = 0) -> Path:
    """Write noise of a colour by class as image files of the names' kinds; a class is a folder."""
    generator = np.random.default_rng(seed)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.random.default_rng(sum(path.parent.name.encode())).integers(0, 200, 3)
        noise = generator.integers(0, 56, (size[1], size[0], 3))
        Image.fromarray((colour + noise).astype(np.uint8)).save(path)
    return root


class Collect(LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[int, Batch]] = []
        self.folder = folder

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.batches.append((self.current_epoch, batch))
        return self.weight * batch.image.float().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.index.shape == batch.target.shape

    def on_train_end(self) -> None:
        if self.folder is not None:
            torch.save([(epoch, *batch) for epoch, batch in self.batches], f"{self.folder}/{self.global_rank}.pt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class FewDigits(DigitsDataModule):
    """The first rows of the digits."""

    def __init__(self, rows: int = 48, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows = rows

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set = torch.utils.data.Subset(self.train_set, range(self.rows))


def epochs_of(persistent: bool = True, epochs: int = 2, **kwargs: Any) -> list[Any]:
    class Data(FewDigits):
        def _loader(self, *args: Any, **options: Any) -> Any:
            return super()._loader(*args, persistent_workers=persistent and self.num_workers > 0, **options)

    module = Collect()
    trainer(max_epochs=epochs).fit(module, datamodule=Data(batch_size=10, seed=7, **kwargs))
    return module.batches


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs) > 0
    for (epoch, batch), (other_epoch, other) in zip(ours, theirs, strict=True):
        assert epoch == other_epoch
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def photo(width: int = 90, height: int = 70, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth colours with some noise, so that every operation changes something."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BILINEAR)
    noise = rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)


def both(ours: Any, theirs: Any, image: Image.Image, seed: int) -> tuple[Any, Any]:
    results = []
    for transform in (ours, theirs):
        seed_all(seed)
        results.append(transform(image.copy()))
    return results[0], results[1]


EVERYTHING = Augmentation("padded", policy="rand-m9-mstd0.5-inc1", color_jitter=0.3, erasing=0.5, crop_pct=1.0)


def small_photos(root: Path, rows: int = 45, side: int = 16) -> Path:
    """Write photos of one size of three classes."""
    for number in range(rows):
        make_photos(root, [f"train/c{number % 3}/{number:02}.png"], (side, side), number)
    validated = [f"val/c{kind}/{number}.png" for kind in range(3) for number in range(2)]
    return make_photos(root, validated, (side, side), seed=1000)


def photos_on_device(root: Path, **kwargs: Any) -> ImageFolderDataModule:
    """The data module of `small_photos`, with every kind of augmentation."""
    settings = {"image_size": 16, "batch_size": 8, "seed": 5, "augmentation": EVERYTHING, "storage": "device"}
    return ImageFolderDataModule(root, **{**settings, **kwargs})


def train_on(data: ImageDataModule, ckpt: Path | None = None, **kwargs: Any) -> list[Batch]:
    """The batches of two epochs."""
    module = Collect()
    trainer(**{"max_epochs": 2, **kwargs}).fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return [batch for _, batch in module.batches]


MIXED = [f"c{i % 3}/{i}.{kind}" for i, kind in enumerate(["png", "jpg", "webp", "bmp"] * 5)]


def mixed_files(root: Path, mode: Any = "RGB", shrink: int | None = None) -> ImageFiles:
    """Write photos of several formats, each of a size of its own, and return them."""
    for i, name in enumerate(MIXED):
        make_photos(root, [name], size=(20 + i, 50 - i), seed=i)
    return ImageFiles(Files(root, MIXED), [i % 3 for i in range(len(MIXED))], mode=mode, shrink=shrink)


def same_image(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def pets(prefix: str = "", cats: int = 10, dogs: int = 6) -> list[str]:
    """Names of photos in two folders of classes."""
    return [f"{prefix}{kind}/{i:02}.png" for kind, count in (("cat", cats), ("dog", dogs)) for i in range(count)]


def photo_folder(root: Path, **kwargs: Any) -> ImageFolderDataModule:
    return ImageFolderDataModule(root, image_size=16, batch_size=4, num_workers=0, **kwargs)


def names_by_split(data: ImageFolderDataModule) -> dict[str, list[str]]:
    return {split: list(files) for split, (files, _) in data.splits.items()}


class PackagedNetwork:
    """An installed package with made-up weights of ``test_efficientnet``, timm's smallest, under names of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(5)
        self.source = timm.create_model("test_efficientnet").eval()
        names = {name: f"_{number}.{name.rpartition('.')[2]}" for number, name in enumerate(self.source.state_dict())}
        self.state = {names[name]: value for name, value in self.source.state_dict().items()}
        self.about, self.file = folder / "made_up_weights-1.0.dist-info", folder / "made_up/models/weights.pth"
        self.about.mkdir()
        self.file.parent.mkdir(parents=True)
        (folder / "made_up/__init__.py").write_text("raise RuntimeError('imported')")
        self.write(self.state)
        self.write_version("1.0")
        monkeypatch.syspath_prepend(folder)
        entry = Package("made-up-weights", "1.0", "made_up/models/weights.pth", self.digest())
        monkeypatch.setitem(PACKAGES, "test_efficientnet", entry)

    def write(self, state: dict[str, torch.Tensor]) -> None:
        torch.save(state, self.file)

    def write_version(self, version: str) -> None:
        (self.about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-up-weights\nVersion: {version}\n")

    def digest(self) -> str:
        return hashlib.sha256(self.file.read_bytes()).hexdigest()
