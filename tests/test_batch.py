from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_distill.batch import Batch, IndexedSample, image_of

IMAGE, TARGET, INDEX, VIEW = torch.rand(2, 3, 4, 4), torch.tensor([3, 5]), torch.tensor([0, 1]), torch.tensor([7, 7])


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGE, TARGET),
        [IMAGE, TARGET, INDEX],
        IndexedSample(IMAGE, TARGET, INDEX),
        (IMAGE, TARGET, INDEX, VIEW),
        Batch(IMAGE, TARGET, INDEX, VIEW),
        {"image": IMAGE, "target": TARGET, "index": INDEX, "view": VIEW},
        {"pixel_values": IMAGE, "labels": TARGET, "index": INDEX},
        {"x": IMAGE, "y": TARGET},
        SimpleNamespace(image=IMAGE, label=TARGET, index=INDEX),
    ],
    ids=["pair", "list", "IndexedSample", "tuple", "Batch", "names", "Hugging Face", "x and y", "object"],
)
def test_accepts_the_usual_forms(batch: Any) -> None:
    found = Batch.of(batch)
    assert found.image is IMAGE
    assert torch.equal(found.target, TARGET)
    assert found.index is None or torch.equal(found.index, INDEX)
    assert found.view is None or torch.equal(found.view, VIEW)
    assert (found.view is None) == ("view" not in str(batch) and len(getattr(batch, "__dict__", batch)) < 4)
    assert image_of(batch) is IMAGE


def test_an_index_is_one_integer_a_sample() -> None:
    weights, names = torch.rand(2), ["a.jpg", "b.jpg"]
    assert Batch.of((IMAGE, TARGET, weights)).index is None
    assert Batch.of((IMAGE, TARGET, names, VIEW)).index is None


def test_classes_of_any_integer_type_become_int64_and_probabilities_stay() -> None:
    assert Batch.of((IMAGE, TARGET.byte())).target.dtype == torch.int64
    soft = torch.full((2, 4), 0.25)
    assert Batch.of((IMAGE, soft)).target is soft


@pytest.mark.parametrize(
    ("batch", "got"),
    [(IMAGE, "a Tensor"), ((IMAGE,), "a tuple of Tensor"), ({"picture": IMAGE}, "a dict with picture"), (3, "a int")],
)
def test_says_what_is_no_batch(batch: Any, got: str) -> None:
    with pytest.raises(
        ValueError, match=rf"expected a batch of \(image, target\), got {got}: return a pair of tensors"
    ):
        Batch.of(batch)


def test_images_may_come_alone() -> None:
    assert image_of(IMAGE) is IMAGE
    assert image_of((IMAGE, None)) is IMAGE
    with pytest.raises(ValueError, match="expected images, alone or in a batch, got a dict with picture"):
        image_of({"picture": IMAGE})


def test_says_what_a_batch_lacks_to_look_something_up() -> None:
    view, index = Batch(IMAGE, TARGET, INDEX, VIEW).view_and_index()
    assert view is VIEW
    assert index is INDEX
    with pytest.raises(ValueError, match="the batch has no view, and a view and an index of each sample are needed"):
        Batch.of((IMAGE, TARGET, INDEX)).view_and_index()
    with pytest.raises(ValueError, match="the batch has no index"):
        Batch(IMAGE, TARGET, None, VIEW).view_and_index()
