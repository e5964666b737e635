import random

import numpy as np
import pytest
from timm.data.auto_augment import rand_augment_transform
import torch
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset
from torchvision import transforms as v1
from torchvision.datasets import FakeData
from torchvision.transforms import InterpolationMode, v2

from lit_distill.datamodules import Batch, IndexedDataset, IndexedSample, KeyedSampler, generators_of


def noisy(image: object) -> torch.Tensor:
    return torch.tensor([torch.rand(()).item(), random.random(), float(np.random.rand())])


def test_a_sample_carries_its_row_and_can_be_unpacked() -> None:
    data = IndexedDataset(FakeData(5, (3, 4, 4), transform=v2.ToImage()))
    sample = data[3]
    image, target, index = sample
    assert isinstance(sample, IndexedSample)
    assert (image.shape, target, index, len(data)) == ((3, 4, 4), data.dataset[3][1], 3, 5)


def test_a_dict_gets_the_row_as_a_key() -> None:
    data = IndexedDataset([{"x": 1.0, "y": 2}, {"x": 3.0, "y": 4}])
    assert data[1] == data[(5, 1)] == {"x": 3.0, "y": 4, "index": 1}
    data.with_view = True
    assert data[(5, 1)] == {"x": 3.0, "y": 4, "index": 1, "view": 5}


def test_a_keyed_sample_carries_its_view_too() -> None:
    data = IndexedDataset(FakeData(5, (3, 4, 4), transform=v2.ToImage()), with_view=True)
    sample = data[(7, 3)]
    assert isinstance(sample, Batch)
    assert (sample.index, sample.view) == (3, 7)
    batch = next(iter(DataLoader(data, 5, sampler=KeyedSampler(data, repeats=2, shuffle=False))))
    assert (batch.index.tolist(), batch.view.tolist()) == ([0, 0, 1, 1, 2], [0, 1, 0, 1, 0])
    assert batch.view.dtype == batch.index.dtype == torch.int64
    for with_view, sampler in ((True, None), (False, None), (False, KeyedSampler(data, shuffle=False))):
        data.with_view = with_view
        _, _, index = next(iter(DataLoader(data, 5, sampler=sampler)))  # a stranger's loop
        assert index.tolist() == list(range(5))


def test_a_keyed_read_depends_on_seed_view_and_row_and_nothing_else() -> None:
    data = IndexedDataset(FakeData(5, (3, 4, 4), transform=noisy), seed=1)
    first = data[(2, 3)].image
    torch.rand(7), random.random(), np.random.rand(3)
    assert torch.equal(first, data[(2, 3)].image)
    other_seed = IndexedDataset(FakeData(5, (3, 4, 4), transform=noisy), seed=2)
    for other in (data[(1, 3)], data[(2, 4)], data[(3, 2)], other_seed[(2, 3)]):
        assert (first != other.image).all()


def test_a_keyed_read_leaves_the_process_as_it_was() -> None:
    data = IndexedDataset(FakeData(5, (3, 4, 4), transform=noisy))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    data[(0, 1)]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


def test_a_plain_read_draws_from_the_process() -> None:
    data = IndexedDataset(FakeData(5, (3, 4, 4), transform=noisy))
    assert (data[1].image != data[1].image).all()


def test_plain_reads_of_a_loader_draw_anew_for_each_batch() -> None:
    data = IndexedDataset(FakeData(6, (3, 4, 4), transform=noisy))
    images = torch.cat([batch.image for batch in DataLoader(data, 2)])
    assert len(images.unique(dim=0)) == 6


def test_timms_policies_are_keyed_too() -> None:
    policy = rand_augment_transform("rand-m9-mstd0.5-inc1", {"translate_const": 10, "img_mean": (9, 9, 9)})
    data = IndexedDataset(FakeData(4, (3, 32, 32), transform=v2.Compose([policy, v2.ToImage()])))
    assert data.generators == ("torch", "python", "numpy")
    samples = [data[(view, 1)].image for view in range(8)]
    assert all(torch.equal(sample, data[(view, 1)].image) for view, sample in enumerate(samples))
    assert len({tuple(sample.flatten().tolist()) for sample in samples}) > 1


def test_only_the_generators_that_are_used_are_seeded() -> None:
    affine = v2.RandomAffine(10, interpolation=InterpolationMode.BILINEAR)
    nested = v2.Compose([v2.RandomApply([affine]), v2.RandomChoice([v2.RandomHorizontalFlip(), v2.ToImage()])])
    assert generators_of(FakeData(transform=nested)) == ("torch",)
    assert generators_of(Subset(FakeData(transform=nested), [0])) == ("torch",)
    assert len(generators_of(FakeData(transform=v2.Compose([nested, noisy])))) == 3
    assert len(generators_of(FakeData(transform=v2.Lambda(noisy)))) == 3
    assert len(generators_of([(0, 1)])) == 3
    # torchvision's first transforms draw from Python's generator, and containers hide what is in them
    assert len(generators_of(FakeData(transform=v1.RandomChoice([v1.ToTensor(), v1.PILToTensor()])))) == 3
    assert len(generators_of(ConcatDataset([FakeData(transform=noisy)]))) == 3
    joint = FakeData()
    joint.transforms = lambda image, target: (noisy(image), target)
    assert len(generators_of(joint)) == 3
    assert generators_of(TensorDataset(torch.zeros(3), torch.zeros(3))) == ("torch",)


def test_says_what_it_cannot_wrap() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(0, 1)])

    for bad in (Stream(), iter([1])):
        with pytest.raises(ValueError, match="needs a map-style data set, with a length and rows, got"):
            IndexedDataset(bad)
    with pytest.raises(ValueError, match=r"generators must be 'torch', 'python' or 'numpy', got 'cuda'"):
        IndexedDataset([(0, 1)], generators=["cuda"])


def test_several_samples_are_those_of_one_by_one_and_leave_the_generators_alone() -> None:
    class Draws:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> tuple[torch.Tensor, float]:
            return torch.rand(2), random.random()

    data = IndexedDataset(Draws(), seed=3)
    keys = [(0, 1), (2, 4), (0, 1), (1, 1)]
    before = torch.get_rng_state(), random.getstate()
    together = data.__getitems__(keys)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    for sample, key in zip(together, keys, strict=True):
        alone = data[key]
        assert torch.equal(sample.image, alone.image)
        assert (sample.target, sample.index) == (alone.target, alone.index)
    assert torch.equal(together[0].image, together[2].image)
    assert not torch.equal(together[0].image, together[3].image)
