"""Each part of a training set that its images depend on has a digest, and a view that changes is refused."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import FewDigits, photos_on_device, small_photos

from lit_distill.datamodules import Augmentation, IndexedDataset, KeyedSampler, Mixing
from lit_distill.datamodules.fingerprints import evaluation_parts, training_parts
from lit_distill.datamodules.partners import MixableDataset


def parts_of(**kwargs: Any) -> dict[str, str]:
    data = FewDigits(seed=3, **kwargs)
    data.setup("fit")
    return training_parts(data.train_dataloader().dataset)


def test_they_are_the_same_whoever_computes_them_and_whenever() -> None:
    state = torch.get_rng_state()
    first = parts_of()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8), random.seed(8)
    assert parts_of() == first


@pytest.mark.parametrize(
    ("kwargs", "part"),
    [
        ({"rows": 47}, "training set"),
        ({"train_transform": nn.Identity()}, "augmentation"),
        ({"storage": "host"}, "storage"),
    ],
)
def test_what_differs_is_named(kwargs: dict[str, Any], part: str) -> None:
    first, second = parts_of(), parts_of(**kwargs)
    assert part in {name for name in first if first[name] != second[name]}


def test_one_changed_pixel_is_another_training_set() -> None:
    samples = [(torch.zeros(1, 2, 2), 0) for _ in range(300)]
    before = training_parts(IndexedDataset(samples))
    samples[7][0][0, 0, 0] = 1  # that is not among those that are read
    after = training_parts(IndexedDataset(samples))
    assert [name for name in before if before[name] != after[name]] == ["training set"]


def test_mixing_and_left_out_rows_count() -> None:
    samples = [(torch.full((1, 2, 2), float(row)), 0) for row in range(40)]
    rows = torch.arange(40)
    plain = training_parts(IndexedDataset(samples, seed=1, rows=rows))
    mixed = training_parts(MixableDataset(samples, 1, rows, Mixing(mixup=0.8)))
    stronger = training_parts(MixableDataset(samples, 1, rows, Mixing(mixup=0.9)))
    repeated = training_parts(MixableDataset(samples, 1, rows, Mixing(mixup=0.8)), repeats=2)
    fewer = training_parts(IndexedDataset(samples, seed=1, rows=rows[1:]))
    assert len({part["mixing"] for part in (plain, mixed, stronger, repeated)}) == 4
    assert plain["training set"] == mixed["training set"] != fewer["training set"]


def test_photos_keep_their_parts_when_they_have_been_used(tmp_path) -> None:
    root = small_photos(tmp_path)
    found = []
    for policy in ("trivial-wide", "trivial-wide", None):
        augmentation = Augmentation("padded", policy=policy, crop_pct=1.0) if policy else Augmentation("padded")
        data = photos_on_device(root, augmentation=augmentation, storage="host", num_workers=0)
        data.setup("fit")
        loader = data.train_dataloader()
        found += [training_parts(loader.dataset)]
        assert len(list(loader)) > 0
        assert training_parts(loader.dataset) == found[-1]
    assert found[0] == found[1]
    assert found[1]["augmentation"] != found[2]["augmentation"]
    assert found[1]["training set"] == found[2]["training set"]


class Drawing:
    """Draws from one of the process's generators, or from its own."""

    def __init__(self, samples: int, own: bool) -> None:
        self.samples = samples
        self._random = random.Random(1) if own else random

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.full((1, 2, 2), self._random.random()), 0


def test_a_view_that_is_not_the_same_again_is_refused() -> None:
    data = IndexedDataset(Drawing(20, own=False), with_view=True)
    assert len(KeyedSampler(data)) == 20
    assert training_parts(data) == training_parts(data)
    with pytest.raises(ValueError, match="a view of a training image is not the same when it is read again"):
        training_parts(IndexedDataset(Drawing(20, own=True), with_view=True))


def test_evaluation_images_have_parts_if_they_do_not_change() -> None:
    data = FewDigits()
    data.setup("fit")
    parts = evaluation_parts(data.val_dataloader().dataset)
    assert list(parts) == ["validation set", "validation images"]
    assert evaluation_parts(IndexedDataset(Drawing(20, own=False))) is None
