"""Rows are matched by content first, then by name."""

from collections import Counter
import random

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder
from toys import make_photos, toy_data

from lit_distill.datamodules import IndexedDataset
from lit_distill.datamodules.images import Files, ImageFiles, content_key, size_and_crc
from lit_distill.identity import check_rows, grown, identities, match_rows, short_hash


def table(files: list[tuple[str, int]]) -> torch.Tensor:
    return identities([name for name, _ in files], torch.tensor([content for _, content in files], dtype=torch.int64))


@pytest.mark.parametrize("contents", [1000, 8])  # without and with equal contents
def test_over_random_histories_a_row_goes_on_with_its_content_and_only_once(contents: int) -> None:
    rng = random.Random(0)
    for _ in range(200):
        then = [(f"{name}.jpg", rng.randint(1, contents)) for name in rng.sample(range(30), rng.randint(1, 20))]
        now = [(name, content if rng.random() < 0.7 else rng.randint(1, contents)) for name, content in then]
        now = [(name if rng.random() < 0.7 else f"new{i}.jpg", content) for i, (name, content) in enumerate(now)]
        now = [*rng.sample(now, rng.randint(1, len(now))), ("more.jpg", rng.randint(1, contents))]
        source = match_rows(table(then), table(now)).tolist()
        kept = [row for row in source if row >= 0]
        assert len(set(kept)) == len(kept)
        assert all(row < 0 or then[row][1] == now[n][1] for n, row in enumerate(source))
        both = Counter(content for _, content in then) & Counter(content for _, content in now)
        assert len(kept) == both.total()  # as many as can be
        assert all(then[source[n]] == file for n, file in enumerate(now) if file in then)


def test_files_that_cannot_be_read_are_nobodys() -> None:
    assert match_rows(table([("a", 0), ("b", 5)]), table([("b", 5), ("a", 0)])).tolist() == [1, -1]


def test_a_set_without_identities_may_only_grow() -> None:
    assert grown(2, 4).tolist() == [0, 1, -1, -1]
    with pytest.raises(ValueError, match="are for 4 samples, the training set has 2: resume with the data set of the"):
        grown(4, 2)


def test_a_short_hash_is_the_same_in_every_process() -> None:
    assert short_hash("cat/1.jpg") == -3314392324841340622


def test_an_image_folder_of_torchvision_and_its_parts_are_known_by_name_size_and_time(tmp_path) -> None:
    names = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(3)]
    make_photos(tmp_path, names)
    data = IndexedDataset(Subset(ImageFolder(tmp_path), [5, 0, 2]))
    before = data.identities
    assert torch.equal(before, Files(tmp_path, ["dog/2.png", "cat/0.png", "cat/2.png"]).identities())
    make_photos(tmp_path, ["cat/0.png"], seed=7)
    (tmp_path / "cat/1.png").unlink()
    after = IndexedDataset(ImageFolder(tmp_path)).identities
    assert match_rows(before, after).tolist() == [-1, 2, -1, -1, 0]
    assert IndexedDataset(toy_data()).identities is None


def test_files_say_what_they_are(tmp_path) -> None:
    make_photos(tmp_path, ["a/1.png", "b/2.png"])
    data = ImageFiles(Files(tmp_path, ["a/1.png", "b/2.png"]), [0, 1])
    assert torch.equal(data.identities, data.files.identities())
    data.contents = torch.tensor([content_key(*size_and_crc(tmp_path / name)) for name in data.files])
    assert torch.equal(data.identities[:, 0], data.contents)
    assert (data.contents > 0).all()


def test_rows_are_checked_in_nested_data_sets() -> None:
    whole = IndexedDataset(toy_data(10))
    check_rows(whole, 10)
    check_rows(Subset(whole, [3, 1]), 4)
    check_rows(IndexedDataset(ConcatDataset([toy_data(3), toy_data(4)])), 7)
    with pytest.raises(ValueError, match=r"rows are those of the whole, 0\.\.9"):
        check_rows(Subset(Subset(whole, [3, 9]), [1]), 1)
    with pytest.raises(ValueError, match="joins 2 data sets"):
        check_rows(ConcatDataset([Subset(whole, [0]), IndexedDataset(toy_data(4))]), 99)
