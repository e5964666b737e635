from collections import Counter
from collections.abc import Iterator
import itertools
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
import warnings

from lightning.pytorch import Trainer
import numpy as np
from PIL import Image
import pytest
import torch
from torch.utils.data import DataLoader
from toys import QUIET, Foreign, in_processes, make_photos, trainer

from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.datamodules import Augmentation, ImageFolderDataModule, IndexedDataset, from_files
from lit_distill.datamodules.images import Files
from lit_distill.datamodules.scan import Scan
from lit_distill.photos import as_image, read_image
from lit_distill.preprocessing import Preprocessing

RANDOM = Augmentation(policy="rand-m9-mstd0.5-inc1", erasing=0.3, color_jitter=0.2)


def photos(root: Path, count: int = 30) -> Path:
    kinds = ["png", "jpg", "webp"]
    for i in range(count):
        make_photos(root, [f"train/c{i % 3}/{i:02}.{kinds[i % 3]}"], (40 + i, 32), i)
    return make_photos(root, [f"val/c{k}/{i}.png" for k in range(3) for i in range(3)], seed=1)


def module(root: Path, **kwargs: Any) -> ImageFolderDataModule:
    settings = {"image_size": 16, "batch_size": 7, "num_workers": 0, "seed": 5, "augmentation": RANDOM}
    return ImageFolderDataModule(root, **{**settings, **kwargs})


def loader(data: ImageFolderDataModule, epoch: int) -> DataLoader[Any]:
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return loader


def epoch(data: ImageFolderDataModule, number: int = 0) -> tuple[torch.Tensor, ...]:
    return read(loader(data, number))


def read(loader: DataLoader[Any]) -> tuple[torch.Tensor, ...]:
    batches = list(loader)
    return tuple(torch.cat([batch[part] for batch in batches]) for part in range(3))


def equal(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than there are cores
@pytest.mark.parametrize("repeats", [1, 3])
def test_order_and_pixels_are_the_same_for_any_workers_decoded_or_not(tmp_path, repeats: int) -> None:
    photos(tmp_path)
    expected = {number: epoch(module(tmp_path, repeats=repeats), number) for number in (0, 3)}
    assert [len(images.unique(dim=0)) for images, *_ in expected.values()] == [30, 30]
    for workers, decode_memory in itertools.product((0, 2, 4), (0.5, 0)):
        other = module(tmp_path, repeats=repeats, num_workers=workers, decode_memory=decode_memory)
        batches = loader(other, 0)
        for number, images in expected.items():
            batches.sampler.set_epoch(number)  # type: ignore[attr-defined]
            assert equal(images, read(batches)), (workers, decode_memory)
        assert (other.train_set.decoded is None) == (decode_memory == 0)  # type: ignore[attr-defined]
    assert not equal(expected[3], epoch(module(tmp_path, repeats=repeats), 1))
    assert not equal(expected[3], epoch(module(tmp_path, repeats=repeats, seed=6), 3))


class Sees(Foreign):
    """Keeps the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__(features=3 * 16 * 16, classes=3)
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.index.clone(), batch.image.clone(), self.decoded_by))
        loss: torch.Tensor = self.criterion(self.net(batch.image.flatten(1) / 255), batch.target)
        return loss

    @property
    def decoded_by(self) -> str:
        images = self.trainer.datamodule.train_set.decoded  # type: ignore[attr-defined]
        return "" if images is None else images.path

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


def _seen(root: Path, ranks: int, folder: Path) -> None:
    strategy = {"devices": ranks, "strategy": "ddp_fork" if ranks > 1 else "auto"}
    run = Trainer(**{**QUIET, **strategy, "max_epochs": 2, "num_sanity_val_steps": 0})
    model = Sees()
    model.on_train_end = lambda: torch.save(model.seen, folder / f"{ranks}-{run.global_rank}.pt")  # type: ignore[method-assign]
    run.fit(model, datamodule=module(root, batch_size=8 // ranks, repeats=2))


def test_two_ranks_see_the_set_that_one_sees_from_one_array(tmp_path, away) -> None:
    photos(tmp_path, 32)  # two ranks share it evenly
    _seen(tmp_path, 1, tmp_path)
    away(_seen, tmp_path, 2, tmp_path)
    seen = {
        ranks: [step for rank in range(ranks) for step in torch.load(tmp_path / f"{ranks}-{rank}.pt")]
        for ranks in (1, 2)
    }
    assert len({where for *_, where in seen[2]} - {""}) == 1  # both ranks map what one has decoded

    def rows(steps: list[Any]) -> set[tuple[int, int, bytes]]:
        return {
            (epoch, int(row), image.numpy().tobytes())
            for epoch, index, images, _ in steps
            for row, image in zip(index, images, strict=True)
        }

    assert len(rows(seen[1])) == 2 * 32
    assert rows(seen[1]) == rows(seen[2])


def test_one_rank_reads_for_the_others_of_its_machine(tmp_path, monkeypatch) -> None:
    photos(tmp_path)
    damage(tmp_path, ["train/c0/00.png"])

    def work(rank: int) -> tuple[int, str, list[int], list[float]]:
        calls, original = Counter[str](), from_files.read_all
        counted = lambda *args, **kwargs: calls.update(["call"]) or original(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(from_files, "read_all", counted)
        data = module(tmp_path)
        data.scan_file = None  # as where the folder cannot be written to
        ranks: Any = SimpleNamespace(world_size=2, num_devices=2, node_rank=0, local_rank=rank)
        data.trainer = ranks
        with warnings.catch_warnings(action="ignore"):  # of the damaged file
            data.setup("fit")
        train: Any = data.train_set
        return calls.total(), train.decoded.path, train.rows.tolist(), data.mean or []

    first, second = in_processes(2, work)
    assert (first[0], second[0]) == (2, 0)  # training and validation
    assert first[1:] == second[1:]
    assert len(first[2]) == 29


DAMAGE = {
    "zero-byte": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "no image": lambda content: b"this is no image",
}


def damage(root: Path, names: list[str]) -> None:
    for name, how in zip(names, [*DAMAGE.values()] * len(names), strict=False):
        (root / name).write_bytes(how((root / name).read_bytes()))


@pytest.mark.parametrize("decode_memory", [0.5, 0.0])
@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_are_left_out_named_once_and_the_others_keep_their_row(
    tmp_path, workers: int, decode_memory: float
) -> None:
    photos(tmp_path)
    whole = epoch(module(tmp_path))
    (tmp_path / "train/c0/zz-notes.png").write_text("no image")
    broken = ["train/c0/03.png", "train/c1/04.jpg", "val/c1/2.png"]
    damage(tmp_path, broken)
    data = module(tmp_path, max_damaged=0.5, num_workers=workers, decode_memory=decode_memory)
    with warnings.catch_warnings(record=True, action="always") as caught:
        images, targets, index = epoch(data)
    messages = [str(warning.message) for warning in caught]
    assert [line.partition(": t")[0].partition(": v")[0] for line in messages] == [
        "left out: 3 of 31 files for train are no readable images",
        "left out: 1 of 9 files for val are no readable images",
    ]
    assert all(name in messages[0] for name in ("train/c0/03.png (", "train/c1/04.jpg (", "train/c0/zz-notes.png ("))
    assert "val/c1/2.png" in messages[1]
    rows = [row for row, name in enumerate(data.splits["train"].files) if name not in broken and "notes" not in name]
    assert sorted(index.tolist()) == rows
    assert len(data.train_set) == 31  # type: ignore[arg-type]
    # The text comes last in its class, behind which rows are one more than without it.
    of = {int(row) + (int(row) >= 10): place for place, row in enumerate(whole[2])}
    for place, row in enumerate(index.tolist()):
        assert row > 10 or torch.equal(images[place], whole[0][of[row]])  # what is drawn is drawn by row
        assert targets[place] == whole[1][of[row]]
    assert sum(len(batch.image) for batch in data.val_dataloader()) == 8
    assert "val/c1/2.png" not in data.names("val")


def test_retrospection_takes_rows_with_gaps(tmp_path) -> None:
    photos(tmp_path)
    damage(tmp_path, ["train/c0/03.png"])
    retrospection = LearningWithRetrospection(1)
    model = Foreign(features=3 * 16 * 16, classes=3)
    model.net.insert(0, torch.nn.Flatten())
    model.validation_step = lambda batch, batch_idx: None  # type: ignore[method-assign, assignment]
    data = module(tmp_path, max_damaged=0.5)
    forward = model.net.forward
    model.net.forward = lambda image: forward(image / 255)  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=r"left out: 1 of 30"):
        trainer(max_epochs=3, callbacks=retrospection).fit(model, datamodule=data)
    assert retrospection.memory is not None
    _, recorded = retrospection.memory.read(torch.arange(30), 4)
    assert recorded.sum() == 29


@pytest.mark.parametrize("decode_memory", [0.5, 0.0])
def test_overfitting_takes_the_first_photos_that_are_not_damaged(tmp_path, decode_memory: float) -> None:
    photos(tmp_path)
    damage(tmp_path, ["train/c0/03.png"])
    rows: list[int] = []

    class Model(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            rows.extend(batch.index.tolist())
            return self.net(batch.image.flatten(1).float()[:, :6] / 255).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            """Nothing."""

    data = module(tmp_path, max_damaged=0.5, decode_memory=decode_memory)
    run = trainer(max_epochs=1, overfit_batches=2)
    with pytest.warns(UserWarning, match=r"left out: 1 of 30|You requested to overfit"):
        run.fit(Model(), datamodule=data)
    names = list(data.splits["train"].files)
    good = [row for row, name in enumerate(names) if name != "train/c0/03.png"]
    assert rows == good[:14]


def test_too_many_damaged_files_are_an_error(tmp_path) -> None:
    photos(tmp_path)
    damage(tmp_path, ["train/c0/03.png", "train/c1/04.jpg"])
    with pytest.raises(ValueError, match=r"2 of 30 files for train .*03\.png.* more than max_damaged=0\.01: mend or"):
        module(tmp_path).setup("fit")
    with pytest.raises(ValueError, match=r"more than max_damaged=0\.01"):  # and again, now from what is stored
        module(tmp_path).setup("fit")


@pytest.mark.parametrize("max_damaged", [0.01, 0])
def test_one_damaged_file_is_left_out_of_however_few(tmp_path, max_damaged: float) -> None:
    photos(tmp_path)
    damage(tmp_path, ["train/c0/03.png"])
    data = module(tmp_path, max_damaged=max_damaged)
    with pytest.warns(UserWarning, match=r"left out: 1 of 30 files for train .*03\.png"):
        assert len(epoch(data)[2]) == 29


def test_nothing_to_predict_that_can_be_read_is_an_error(tmp_path) -> None:
    photos(tmp_path)
    make_photos(tmp_path, ["new/1.png"])
    damage(tmp_path, ["new/1.png"])
    with pytest.raises(ValueError, match=r"1 of 1 files for predict .*; there is no other: mend or remove"):
        module(tmp_path, predict_root=tmp_path / "new").setup("predict")


def test_a_class_without_a_readable_image_is_an_error(tmp_path) -> None:
    photos(tmp_path)
    damage(tmp_path, [f"train/c2/{i:02}.webp" for i in range(2, 30, 3)])
    with pytest.raises(ValueError, match=r"10 of 30 files .*; class 'c2' has no other: mend or remove"):
        module(tmp_path, max_damaged=1).setup("fit")


def test_files_are_read_once_while_they_are_the_same(tmp_path, monkeypatch) -> None:
    photos(tmp_path)
    calls = []
    original = from_files.read_all

    def read_all(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(from_files, "read_all", read_all)
    first = module(tmp_path, decode_memory=0)
    statistics = first.mean, first.std
    first.setup("fit")
    assert len(calls) == 2
    again = module(tmp_path, decode_memory=0)
    again.setup("fit")
    assert (again.mean, again.std) == statistics
    assert len(calls) == 2
    make_photos(tmp_path, ["train/c0/new.png"])
    module(tmp_path, decode_memory=0).setup("fit")
    assert len(calls) == 3
    module(tmp_path, decode_memory=0, image_size=8).setup("fit")  # shrunk to another size
    assert len(calls) == 5
    (tmp_path / ".lit_distill" / "scan.json").write_text("{")
    module(tmp_path, decode_memory=0).setup("fit")
    assert len(calls) == 7
    decoded = module(tmp_path)
    assert decoded.mean is not None
    decoded.setup("fit")
    assert len(calls) == 9  # for the pixels; not once more for the statistics


def test_without_the_check_a_damaged_file_is_one_line_when_it_is_met(tmp_path) -> None:
    photos(tmp_path)
    damage(tmp_path, ["train/c0/03.png"])
    data = module(tmp_path, check=False, decode_memory=0)
    assert data.mean is None
    with pytest.raises(ValueError, match=r"cannot read the image train/c0/03\.png: cannot identify"):
        epoch(data)
    decoded = module(tmp_path, check=False, max_damaged=0.1)  # decoding meets them all
    with pytest.warns(UserWarning, match=r"left out: 1 of 30"):
        assert len(epoch(decoded)[2]) == 29


def test_images_that_do_not_fit_are_read_each_time(tmp_path, monkeypatch, caplog) -> None:
    photos(tmp_path)
    monkeypatch.setattr(from_files, "free_memory", lambda: 80_000)
    data = module(tmp_path)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert data.train_set.decoded is None  # type: ignore[attr-defined]
    assert "the decoded train images would take 0.0 GB, more than decode_memory=0.5 of the free memory" in caplog.text
    assert data.val_set.decoded is not None  # type: ignore[attr-defined]


def _private(queue: Any, data: Any) -> None:
    for row in range(len(data)):
        data.files[row], data.targets[row]
        if row < 60:
            data[row]
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    queue.put(int(fields["Private_Dirty"].split()[0]))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells a process its own memory")
@pytest.mark.parametrize("decode_memory", [0.0, 0.5])
def test_a_workers_own_memory_does_not_grow_with_the_data_set(tmp_path, decode_memory: float) -> None:
    photos(tmp_path)

    def data_set(times: int) -> Any:
        data = module(tmp_path, decode_memory=decode_memory, augmentation=Augmentation(crop="none", hflip=0))
        files, targets = data.splits["train"]
        data.splits = {"train": from_files.Labelled(Files(tmp_path, [*files] * times), targets.repeat(times))}
        data.scan_file = None
        return data._data_set("train")

    def own(train: Any) -> int:
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=_private, args=(queue, train))
        process.start()
        size: int = queue.get(timeout=500)
        process.join()
        return size

    # What else the process does adds a little now and then. 6,000 names of 60 bytes as Python objects would be 700 kB.
    small, large = (min(own(train) for _ in range(3)) for train in (data_set(2), data_set(200)))
    assert large < small + 400, (small, large)  # kB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decode_memory": 1.5}, r"decode_memory must be in \[0, 1\], got 1\.5"),
        ({"max_damaged": -0.1}, r"max_damaged must be in \[0, 1\], got -0\.1"),
        ({"channels": 2}, r"channels must be 1 or 3, got 2"),
        ({"image_size": 0}, r"image_size must be >= 1, got 0"),
        ({"batch_size": 0}, r"batch_size must be >= 1, got 0"),
        ({"repeats": 0}, r"repeats must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments: dict[str, Any], message: str) -> None:
    photos(tmp_path)
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **arguments)


def test_fewer_images_than_a_batch_are_one_batch(tmp_path, caplog) -> None:
    photos(tmp_path, 6)
    data = module(tmp_path, batch_size=64)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert [len(batch.image) for batch in data.train_dataloader()] == [6]
    assert "6 training images are less than a batch of 64: one step an epoch" in caplog.text


def test_greyscale(tmp_path) -> None:
    photos(tmp_path)
    for augmentation in (RANDOM, Augmentation(crop="padded")):
        data = module(tmp_path, channels=1, augmentation=augmentation)
        images, _, _ = epoch(data)
        assert images.shape == (30, 1, 16, 16)
        assert len(data.mean or ()) == 1


@pytest.fixture(autouse=True)
def _workers_have_ended() -> Iterator[None]:
    before = multiprocessing.active_children()
    yield
    for process in multiprocessing.active_children():
        if process not in before:
            process.join(5)


def test_what_is_stored_is_plain(tmp_path) -> None:
    photos(tmp_path)
    data = module(tmp_path)
    assert isinstance(data.scan("train"), Scan)
    assert data.scan("train").count == 30
    assert data.scan("test") == data.scan("val")  # what is tested, without a folder for it


def cameras(root: Path) -> Path:
    """Photos as cameras make them: large, upright or turned, sharp; and small ones."""
    generator = np.random.default_rng(7)
    exif = Image.Exif()
    exif[0x0112] = 6
    for split, kind in ((split, kind) for split in ("train", "val", "test") for kind in "ab"):
        folder = root / split / kind
        folder.mkdir(parents=True)
        for name, size, options in (
            ("wide.jpg", (523, 391), {"quality": 90}),
            ("turned.jpg", (391, 523), {"quality": 90, "exif": exif}),
            ("grey.png", (300, 700), {}),
            ("small.jpg", (30, 20), {}),
            ("exact.png", (36, 41), {}),
        ):
            pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            (image.convert("L") if name.startswith("grey") else image).save(folder / name, **options)
    return root


@pytest.mark.parametrize("decode_memory", [0.5, 0.0])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_evaluation_sees_the_pixels_of_the_whole_photo(
    tmp_path, decode_memory: float, channels: Any, crop: Any
) -> None:
    """Validation, test and prediction, decoded into memory or read each time: no bit is another."""
    augmentation = Augmentation(crop=crop)
    options = {"image_size": 32, "augmentation": augmentation, "channels": channels, "eval_batch_size": 3}
    data = module(cameras(tmp_path), decode_memory=decode_memory, predict_root=tmp_path / "test", **options)
    data.setup()
    evaluate, mode = augmentation.evaluate(32), "L" if channels == 1 else "RGB"
    for split in ("val", "test", "predict"):
        images = torch.cat([batch.image for batch in getattr(data, f"{split}_dataloader")()])
        root = data.splits[split].files.root
        for name, image in zip(data.names(split), images, strict=True):
            assert torch.equal(image, evaluate(read_image(Path(root, name), mode))), (split, name)
            served = Preprocessing.of(data.preprocessing)(as_image(Path(root, name), mode))
            assert torch.equal(image, served), (split, name)
    if decode_memory:
        sizes = data.val_set.decoded.sizes  # type: ignore[attr-defined]
        assert sizes.min(dim=1).values.unique().tolist() == [36]  # the middle is all that is left to cut out


@pytest.mark.parametrize("crop", ["none", "padded", "simple"])
def test_training_sees_the_whole_photo_where_the_crop_begins_with_a_resize(tmp_path, crop: Any) -> None:
    augmentation = Augmentation(crop=crop, hflip=0)
    cameras(tmp_path)
    epochs = [epoch(module(tmp_path, augmentation=augmentation, decode_memory=share)) for share in (0.5, 0)]
    assert equal(*epochs)
    files = module(tmp_path, augmentation=augmentation).splits["train"].files
    whole = [(read_image(Path(tmp_path, name)), 0) for name in files]
    data = IndexedDataset(whole, 5, ["torch"])
    transform = augmentation.train(16)
    data._sample = lambda index: transform(whole[index][0])  # type: ignore[assignment, method-assign]
    for image, row in zip(epochs[0][0], epochs[0][2].tolist(), strict=True):
        assert torch.equal(image, data[(0, row)])


def test_another_evaluation_reads_the_files_anew(tmp_path) -> None:
    photos(tmp_path)
    digests = {
        module(tmp_path, augmentation=Augmentation(**options)).scan("val").digest
        for options in ({}, {"crop_pct": 1.0}, {"interpolation": "bilinear"}, {"erasing": 0.5})
    }
    assert len(digests) == 3
