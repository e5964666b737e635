"""Equal things have equal digests in every process; any part that changes changes them."""

from collections import deque
from enum import Enum
from functools import partial
from pathlib import Path
import random
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace
from unittest.mock import patch

from lightning.pytorch import LightningModule, Trainer
import numpy as np
from PIL import Image
import pytest
import torch
from torch import nn

from lit_distill import FrozenTeacher, TimmStudent
from lit_distill.datamodules import Augmentation
from lit_distill.fingerprint import _Digester, digest_of
from lit_distill.models.teacher_base import Teacher


class Holder:
    def __init__(self, value: object) -> None:
        self.value = value
        self.me = self


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Colour(Enum):
    RED = 1
    BLUE = 2


class Scaled(nn.Module):
    def __init__(self, scale: object) -> None:
        super().__init__()
        self.scale = scale
        self._shift = scale


class Asked(Teacher):
    def __init__(self, scale: object) -> None:
        super().__init__()
        self._scale = scale


def network(bias: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU())
    nn.init.constant_(net[0].bias, bias)
    return net


DIFFERENT = [
    1,
    1.0,
    "1",
    None,
    [1],
    (1,),
    {"a": 1},
    {1},
    torch.zeros(3),
    torch.zeros(3, dtype=torch.float16),
    torch.zeros(1, 3),
    np.zeros(3),
    network(),
    network(1.0),
    Holder(1),
    Holder([1]),
    Augmentation().train(32),
    Augmentation(erasing=0.25).train(32),
    Augmentation().train(33),
    random,
    lambda x: x,
    lambda x: x + 1,
    partial(max, 1),
    partial(max, 2),
    partial(min, 1),
    max,
    Holder(2).__eq__,
    Holder,
    b"1",
    bytearray(b"1"),
    bytearray(b"2"),
    np.float32(1),
    np.float32(2),
    np.array(["a", "b"]),
    np.array(["a", "c"]),
    np.array(["a", None], dtype=object),
    np.array(["b", None], dtype=object),
    deque([1]),
    deque([2]),
    range(3),
    range(4),
    Path("a"),
    Path("b"),
    Colour.RED,
    Colour.BLUE,
    SimpleNamespace(a=1),
    SimpleNamespace(a=2),
    Slotted(1),
    Slotted(2),
    Image.new("L", (2, 2)),
    Image.new("L", (2, 2), 1),
    lambda x, y=1: x + y,
    lambda x, y=2: x + y,
    lambda x: [1 for _ in x],
    lambda x: [2 for _ in x],
]


def test_different_things_have_different_digests() -> None:
    digests = [digest_of(thing) for thing in DIFFERENT]
    assert len(set(digests)) == len(DIFFERENT)
    assert digests == [digest_of(thing) for thing in DIFFERENT]


class Shifted(nn.Identity):
    def __init__(self, shift: object) -> None:
        super().__init__()
        self._shift = shift


class Hyper(LightningModule):
    def __init__(self, scale: object) -> None:
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.parametrize("kind", [Scaled, Asked, Shifted, Hyper])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 0.9, "b": 0.1}, {"a": 0.1, "b": 0.9}),
        (torch.ones(2), torch.zeros(2)),
        (np.ones(2), np.zeros(2)),
        ({1, 2}, {1, 3}),
        (Path("a"), Path("b")),
        (lambda x: x, lambda x: 2 * x),
        (SimpleNamespace(t=1), SimpleNamespace(t=2)),
        ([nn.Linear(1, 1)], [nn.Linear(2, 1)]),
        ({max: 1}, {max: 2}),
    ],
)
def test_a_network_of_ones_own_counts_with_settings_of_every_kind(
    kind: type[nn.Module], one: object, other: object
) -> None:
    assert digest_of(kind(one)) == digest_of(kind(one)) != digest_of(kind(other))
    assert digest_of(nn.Sequential(kind(one))) != digest_of(nn.Sequential(kind(other)))


def test_a_teacher_counts_the_same_before_and_after_it_has_answered() -> None:
    teacher = FrozenTeacher(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)))
    before = teacher.identity()
    teacher(torch.ones(2, 1, 2, 2))
    assert teacher.identity() == before
    # How it is run is no part of what it is, nor in a subclass.
    assert FrozenTeacher(teacher.model, fast=False).identity() == before
    of_subclass = type("Own", (FrozenTeacher,), {"__module__": "own"})(teacher.model)
    before = of_subclass.identity()
    of_subclass(torch.ones(2, 1, 2, 2))
    assert of_subclass.identity() == before


def test_code_of_ones_own_counts() -> None:
    def with_code(text: str) -> object:
        space: dict[str, type] = {"__name__": "own"}
        exec(text, space)  # as a notebook does
        return space["Own"]()

    text = "class Own:\n    def __call__(self, x):\n        return {} * x"
    assert digest_of(with_code(text.format(2))) == digest_of(with_code(text.format(2)))
    assert digest_of(with_code(text.format(2))) != digest_of(with_code(text.format(3)))


def test_graphs_of_other_code_differ() -> None:
    class Powered(nn.Module):
        def __init__(self, power: int) -> None:
            super().__init__()
            self.power = power

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image**self.power

    for made in (torch.fx.symbolic_trace, lambda module: torch.jit.trace(module, torch.ones(1))):
        assert digest_of(made(Powered(2))) == digest_of(made(Powered(2))) != digest_of(made(Powered(3)))


def test_a_network_that_is_compiled_or_trained_by_lightning_counts_the_same() -> None:
    network, module = Scaled(1.5), Hyper(1.5)
    before = digest_of(network), digest_of(module)
    network.compile()
    module.trainer = Trainer(logger=False, accelerator="cpu")
    assert (digest_of(network), digest_of(module)) == before


def test_the_class_of_many_objects_is_looked_at_once() -> None:
    one, many = ([Slotted(number) for number in range(count)] for count in (1, 1000))
    digester = _Digester((), {})
    with patch.object(_Digester, "_add_class", autospec=True, side_effect=_Digester._add_class) as looked:
        digester.digest(one)
        before = looked.call_count
        _Digester((), {}).digest(many)
    assert looked.call_count == 2 * before


def test_images_in_memory_are_not_held_twice() -> None:
    images = [Image.new("RGB", (500, 500), number) for number in range(20)]
    tracemalloc.start()
    digest_of(images)
    assert tracemalloc.get_traced_memory()[1] < 6 * 750_000  # each has so many bytes
    tracemalloc.stop()


@pytest.mark.parametrize("place", ["parameter", "buffer", "setting"])
def test_a_network_counts_with_all_that_it_answers_by(place: str) -> None:
    net = network()
    before = digest_of(net)
    assert digest_of(net.eval()) == before == digest_of(network())
    if place == "parameter":
        net[0].weight.data[0, 0] += 1
    elif place == "buffer":
        net[1].running_mean += 1
    else:
        net.temperature = 2.0
    assert digest_of(net) != before


def test_by_which_way_attention_is_computed_does_not_count() -> None:
    teacher = TimmStudent("deit_tiny_distilled_patch16_224", 3, img_size=32, depth=1)
    before = digest_of(teacher)
    with torch.autocast("cpu", torch.bfloat16):
        teacher(torch.rand(1, 3, 32, 32))
    assert digest_of(teacher) == before


def test_it_is_the_same_in_another_process() -> None:
    code = (
        "from lit_distill.fingerprint import digest_of; from lit_distill.datamodules import Augmentation; import torch;"
        "print(digest_of([Augmentation(policy='trivial-wide').train(32), {'b', 'a'}, torch.arange(5)]))"
    )
    thing = [Augmentation(policy="trivial-wide").train(32), {"b", "a"}, torch.arange(5)]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest_of(thing)  # whose hashes of strings have another seed


def test_what_is_shared_many_times_is_digested_once() -> None:
    nested: object = torch.zeros(1)
    for _ in range(200):
        nested = [nested, nested]
    assert digest_of(nested) == digest_of(nested)
