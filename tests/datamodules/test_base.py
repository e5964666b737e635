"""Order and pixels of an epoch are the same for any number of workers, and for any number of ranks as a set."""

from lightning.pytorch import Trainer, seed_everything
import pytest
import torch
from toys import QUIET, Collect, FewDigits, assert_same, epochs_of

from lit_distill.datamodules import DigitsDataModule, ImageDataModule


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on two cores
@pytest.mark.parametrize(("workers", "persistent"), [(1, False), (1, True), (3, False), (3, True)])
def test_order_and_pixels_are_the_same_for_any_number_of_workers(workers: int, persistent: bool) -> None:
    assert_same(epochs_of(persistent, num_workers=workers), epochs_of(num_workers=0))


def test_views_differ_between_epochs_and_seeds() -> None:
    batches = epochs_of(num_workers=0)
    by_row: dict[int, list[torch.Tensor]] = {}
    for _, batch in batches:
        for row, image in zip(batch.index.tolist(), batch.image, strict=True):
            by_row.setdefault(row, []).append(image)
    assert all(len(views) == 2 for views in by_row.values())
    assert sum(not torch.equal(*views) for views in by_row.values()) > 40


@pytest.mark.parametrize("workers", [0, 2])
def test_repeats_are_distinct_views_of_a_row_in_one_epoch(workers: int) -> None:
    batches = epochs_of(num_workers=workers, repeats=3)
    for epoch in range(2):
        views: dict[int, list[torch.Tensor]] = {}
        for _, batch in (pair for pair in batches if pair[0] == epoch):
            for row, image in zip(batch.index.tolist(), batch.image, strict=True):
                views.setdefault(row, []).append(image)
        assert [len(images) for images in views.values()] == [3] * 16
        assert all(len({tuple(image.flatten().tolist()) for image in images}) == 3 for images in views.values())


def test_the_seed_is_the_one_given_to_seed_everything() -> None:
    def first(seed: int | None) -> torch.Tensor:
        data = DigitsDataModule(batch_size=10, seed=seed)
        data.setup()
        return next(iter(data.train_dataloader())).index

    plain = first(None)
    assert torch.equal(plain, first(0))
    seed_everything(123, verbose=False)
    assert torch.equal(first(None), first(123))
    assert not torch.equal(first(None), plain)
    assert torch.equal(first(0), plain)


def test_two_ranks_see_as_a_set_what_one_process_sees(tmp_path) -> None:
    one = {
        (epoch, row): image
        for epoch, batch in epochs_of(num_workers=0)
        for row, image in zip(batch.index.tolist(), batch.image, strict=True)
    }
    options = {**QUIET, "devices": 2, "strategy": "ddp_fork", "max_epochs": 2}
    Trainer(**options).fit(Collect(str(tmp_path)), datamodule=FewDigits(batch_size=5, seed=7))
    two = {}
    for rank in range(2):
        for epoch, images, _, rows, _ in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            for row, image in zip(rows.tolist(), images, strict=True):
                assert (epoch, row) not in two
                two[epoch, row] = image
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_starting_workers_draws_nothing_from_the_process() -> None:
    data = DigitsDataModule(seed=1)
    data.setup()
    before = torch.get_rng_state()
    next(iter(data.train_dataloader()))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be >= 1, got 0"),
        ({"num_workers": -1}, "num_workers must be >= 0, got -1"),
        ({"repeats": 0}, "repeats must be >= 1, got 0"),
    ],
)
def test_refuses_what_is_out_of_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**arguments)


def test_a_data_module_without_photos_says_nothing_of_preprocessing() -> None:
    assert ImageDataModule().preprocessing is None
