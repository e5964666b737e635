"""A folder in which photos come, go, change their names and are replaced between stop and resume."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
import random
from typing import Any

from lightning.pytorch import LightningModule, Trainer
import numpy as np
from PIL import Image
import pytest
import torch
from torch import Tensor, nn
from toys import trainer

from lit_distill.callbacks import SoftLabelCallback
from lit_distill.datamodules import Augmentation, ImageFolderDataModule

# Photos that are copied into another class are said to be there; that is not what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*(in two classes|trained on and validated)")

SIDE = 8
PLAIN = Augmentation(crop="padded", padding=0, hflip=0.0)


def number_of(image: Tensor) -> list[int]:
    """Return the number that is written into each photo, black or white block by block."""
    bits = image[:, 0, ::4, ::2].flatten(1) > 127
    return [int((row.long() << torch.arange(len(row))).sum()) for row in bits]


def photo(path: Path, number: int) -> None:
    """Write a photo that shows ``number``, and nothing else tells it from others: all files are of the same size."""
    bits = np.array([number >> place & 1 for place in range(8)], dtype=np.uint8).reshape(2, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(bits.repeat(4, 0).repeat(2, 1) * 255).save(path, format="bmp")


class Numbers(SoftLabelCallback):
    """Remembers each photo's number as its soft label, notes whose is recalled, and stops after some steps."""

    def __init__(self, path: Path, steps: int) -> None:
        super().__init__()
        self.path, self.steps = path, steps
        self.trained: list[tuple[int, int]] = []  # epoch, number
        self.recalled: list[tuple[int, int, int | None]] = []  # epoch, the photo's number and the soft label's
        self.numbers: list[int] = []

    def weight(self, epoch: int) -> float:
        return 1.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.numbers = number_of(batch.image)

    def mix(self, loss: Tensor, logits: Tensor, target: Tensor, epoch: int) -> Tensor:
        labels, recorded = self.recall(epoch)
        self.count(recorded)
        whose = [int((row * 256).sum()) - 1 if there else None for row, there in zip(labels, recorded, strict=True)]
        self.trained += [(epoch, number) for number in self.numbers]
        self.recalled += [(epoch, *pair) for pair in zip(self.numbers, whose, strict=True)]
        self.remember(torch.tensor([[(number + 1) / 256, 0.0] for number in self.numbers]), epoch)
        return loss

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        self.steps -= 1
        if not self.steps:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.criterion = nn.Parameter(torch.zeros(2)), nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.criterion(self.weight.expand(len(batch.target), 2), batch.target)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def folder(root: Path, photos: dict[str, int]) -> None:
    for name, number in photos.items():
        photo(root / "train" / name, number)
    for label in ("cat", "dog"):
        photo(root / "val" / label / "0.bmp", 255)


def change(photos: dict[str, int], numbers: list[int], rng: random.Random) -> dict[str, int]:
    """Return the photos after some were removed, renamed, replaced and added."""
    after = dict(photos)
    for name in rng.sample(sorted(after), rng.randint(0, 6)):
        del after[name]
    for name in rng.sample(sorted(after), rng.randint(0, 6)):
        after[f"{name.split('/')[0]}/{rng.randrange(10**6)}.bmp"] = after.pop(name)
    for name in rng.sample(sorted(after), rng.randint(0, 6)):
        after[name] = numbers.pop()
    for _ in range(rng.randint(0, 6)):
        after[f"{rng.choice(('cat', 'dog'))}/{rng.randrange(10**6)}.bmp"] = numbers.pop()
    return after


def history(root: Path, seed: int, check: bool) -> tuple[int, int]:
    """Train on a folder that changes twice; return how many soft labels were recalled, and of how many photos."""
    rng = random.Random(seed)
    numbers = rng.sample(range(255), 255)
    photos = {f"{('cat', 'dog')[i % 2]}/{i:02}.bmp": numbers.pop() for i in range(40)}
    before: Path | None = None
    trained: Counter[tuple[int, int]] = Counter()
    ever: set[int] = set()
    kept = asked = 0
    for stage in range(3):
        for old in sorted((root / "train").glob("*/*")):  # what stays is not touched
            if photos.get(f"{old.parent.name}/{old.name}") is None:
                old.unlink()
        new = {name: number for name, number in photos.items() if not (root / "train" / name).exists()}
        folder(root, {**new, **{n: k for n, k in photos.items() if n not in new and shown(root / "train" / n) != k}})
        path = root / f"{stage}.ckpt"
        callback = Numbers(path, rng.randint(1, 9) if stage < 2 else 0)
        data = ImageFolderDataModule(
            root, image_size=SIDE, batch_size=8, num_workers=0, seed=1, augmentation=PLAIN, check=check, decode_memory=0
        )
        run = trainer(max_epochs=5, callbacks=callback, num_sanity_val_steps=0, limit_val_batches=0)
        run.fit(Net(), datamodule=data, ckpt_path=before, weights_only=True)
        assert all(whose in (None, number) for _, number, whose in callback.recalled)
        known = [(number, whose) for _, number, whose in callback.recalled if number in ever]
        kept, asked = kept + sum(whose is not None for _, whose in known), asked + len(known)
        ever |= {number for _, number in callback.trained}
        trained.update(callback.trained)
        before, photos = path, change(photos, numbers, rng) if stage < 2 else photos
    assert not check or max(trained.values()) == 1  # in an epoch, however often it was cut off
    last = max(epoch for epoch, _ in trained)
    assert {number for epoch, number in trained if epoch == last} >= set(photos.values())
    return kept, asked


def shown(path: Path) -> int:
    return number_of(torch.from_numpy(np.array(Image.open(path)))[None, None])[0]


def check_histories(tmp_path: Path, seeds: Sequence[int], caplog: Any) -> None:
    kept = asked = 0
    for seed in seeds:
        with caplog.at_level("INFO", logger="lightning.pytorch"):
            result = history(tmp_path / str(seed), seed, check=True)
        kept, asked = kept + result[0], asked + result[1]
    assert "the training set has changed since the checkpoint: " in caplog.text
    assert kept == asked > 0  # a photo that was trained before and is still there is never without its soft label


def test_every_soft_label_is_the_photos_own(tmp_path, caplog) -> None:
    check_histories(tmp_path, range(4), caplog)


@pytest.mark.slow
def test_every_soft_label_is_the_photos_own_over_many_histories(tmp_path, caplog) -> None:
    check_histories(tmp_path, range(4, 54), caplog)


def test_without_reading_the_photos_a_soft_label_may_be_lost_but_is_no_others(tmp_path) -> None:
    for seed in range(3):
        kept, asked = history(tmp_path / str(seed), seed, check=False)
        assert 0 < kept <= asked
