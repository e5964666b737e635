from lightning.pytorch import seed_everything
from PIL import Image
import pytest
import torch
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from lit_distill.datamodules import DigitsDataModule
from lit_distill.photos import as_image
from lit_distill.preprocessing import Preprocessing


def digits(**kwargs) -> DigitsDataModule:
    data = DigitsDataModule(**kwargs)
    data.setup()
    return data


def test_the_two_splits_are_disjoint_stratified_and_whole() -> None:
    data = digits()
    assert (len(data.train_set), len(data.val_set)) == (1437, 360)
    plain = digits(train_transform=nn.Identity())
    rows = [tuple(image.flatten().tolist()) for part in (plain.train_set, plain.val_set) for image, _ in part]
    assert len(set(rows)) == len(rows) == 1797  # no two digits are alike, so none is in both
    for part, total in ((data.train_set, 1437), (data.val_set, 360)):
        counts = torch.bincount(torch.tensor([part[i][1] for i in range(total)]), minlength=10)
        assert (counts / total - 0.1).abs().max() < 0.01


def test_the_split_does_not_depend_on_the_seed_of_the_run() -> None:
    first = [image for image, _ in digits(seed=1).val_set]
    seed_everything(99, verbose=False)
    second = [image for image, _ in digits().val_set]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_part_of_the_training_images_can_be_validated_on() -> None:
    data, whole = digits(val_fraction=0.2, train_transform=nn.Identity()), digits(train_transform=nn.Identity())
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (1149, 288, 360)
    parts = [{tuple(image.flatten().tolist()) for image, _ in part} for part in (data.train_set, data.val_set)]
    assert parts[0] | parts[1] == {tuple(image.flatten().tolist()) for image, _ in whole.train_set}
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(data.test_set, whole.test_set, strict=True))
    other = digits(val_fraction=0.2, split_seed=1)
    assert any(not torch.equal(a, b) for (a, _), (b, _) in zip(data.val_set, other.val_set, strict=True))
    with pytest.raises(ValueError, match=r"val_fraction must be in \(0, 1\), got 1"):
        digits(val_fraction=1)


def test_images_are_sixteenths() -> None:
    image, target = digits().val_set[0]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert torch.equal(image * 16, (image * 16).round())
    assert 0 <= image.min() < image.max() <= 1
    assert target in range(10)


def test_the_augmentation_is_torchvisions_draw_for_draw() -> None:
    theirs = v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), 5, interpolation=InterpolationMode.BILINEAR)
    ours, data = digits().train_transform, digits(train_transform=nn.Identity())
    for seed in range(300):
        image = data.train_set[seed][0]
        torch.manual_seed(seed)
        expected, after = theirs(image), torch.rand(())
        torch.manual_seed(seed)
        # Bit for bit where both round alike; a grid's last bit is worth 1e-6 of a pixel's value at an edge.
        torch.testing.assert_close(ours(image), expected, rtol=0, atol=3e-6)
        assert torch.rand(()) == after


def test_batches_of_every_stage_carry_the_index() -> None:
    data = digits(batch_size=10, eval_batch_size=20)
    assert next(iter(data.train_dataloader())).image.shape == (10, 1, 8, 8)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        batch = next(iter(loader))
        assert batch.image.shape == (20, 1, 8, 8)
        assert batch.index.tolist() == list(range(20))


def test_an_image_as_the_digits_are_is_read_as_it_is(tmp_path) -> None:
    data = DigitsDataModule()
    pixels = torch.arange(64, dtype=torch.uint8).view(8, 8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "digit.png")
    assert torch.equal(Preprocessing.of(data.preprocessing)(as_image(tmp_path / "digit.png", "L")), pixels[None])


def test_wrong_labels_are_planted_in_the_training_images_alone() -> None:
    settings = {"val_fraction": 0.2, "train_transform": nn.Identity()}
    clean, some, more = (digits(**settings, wrong_labels=share) for share in (0.0, 0.2, 0.4))
    true, few, many = (torch.tensor(data.train_set.targets) for data in (clean, some, more))
    assert torch.equal(clean.train_set.images, many_images := more.train_set.images)
    assert len(many_images) == len(true)
    assert (few != true).float().mean().item() == pytest.approx(0.2, abs=0.005)
    assert (many != true).float().mean().item() == pytest.approx(0.4, abs=0.005)
    assert bool((many != true)[few != true].all())  # more wrong labels are those and others
    for name in ("val_set", "test_set"):
        assert getattr(more, name).targets == getattr(clean, name).targets
    with pytest.raises(ValueError, match=r"wrong_labels must be in \[0, 1\], got 2"):
        digits(wrong_labels=2)
