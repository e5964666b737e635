"""Equal things have equal digests in every process; any part that changes changes them."""

from functools import partial
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lit_distill.datamodules import Augmentation
from lit_distill.fingerprint import digest_of


class Holder:
    def __init__(self, value: object) -> None:
        self.value = value
        self.me = self


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
]


def test_different_things_have_different_digests() -> None:
    digests = [digest_of(thing) for thing in DIFFERENT]
    assert len(set(digests)) == len(DIFFERENT)
    assert digests == [digest_of(thing) for thing in DIFFERENT]


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
