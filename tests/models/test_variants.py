from itertools import product

import torch
from torch import nn

from lit_distill.models.variants import PLAIN, Structure, Variant


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 6), nn.Flatten()).eval()


def test_the_text_of_a_variant_is_read_back() -> None:
    for flags in product([False, True], repeat=3):
        for precision in ("trainer", "own", "autocast", "bf16"):
            variant = Variant(flags[0], flags[1], precision, flags[2])
            assert Variant.parse(str(variant)) == variant
    assert Variant.parse("whatever an old version wrote") == Variant()
    assert str(PLAIN) == "own precision"


def test_a_copy_has_other_tensors_only_where_it_needs_them() -> None:
    plain = network()
    copied = Structure(plain).copy(plain, Variant(channels_last=True))
    assert copied[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert copied[1].weight is plain[1].weight
    halved = Structure(plain).copy(plain, Variant(precision="bf16"))
    assert {p.dtype for p in halved.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert halved[1].num_batches_tracked.dtype == torch.int64


def test_a_pair_is_kept_as_long_as_anybody_has_ever_looked_between() -> None:
    plain = network()
    structure = Structure(plain)
    assert (structure.kept_pairs(), structure.has_hooks()) == (frozenset(), False)
    handle = plain[0].register_forward_hook(lambda *_: None)
    assert (structure.kept_pairs(), structure.has_hooks()) == (frozenset([0]), True)
    handle.remove()
    assert structure.kept_pairs() == frozenset([0])  # else every validation would fold anew
    assert isinstance(structure.copy(plain, Variant(folded=True))[1], nn.BatchNorm2d)


def test_knows_when_a_module_was_replaced_or_a_weight_written() -> None:
    plain = network()
    structure = Structure(plain)
    before = structure.weights()
    assert structure.is_of(plain)
    assert structure.weights() == before
    with torch.no_grad():
        plain[0].weight.mul_(2)
    assert structure.weights() != before
    plain[3] = nn.Conv2d(4, 3, 6)
    assert not structure.is_of(plain)


def test_a_compiled_network_is_left_alone() -> None:
    plain = network()
    plain.compile(backend="eager")
    for fixed in (plain, torch.compile(network(), backend="eager")):
        structure = Structure(fixed)
        assert structure.is_fixed
        assert structure.pairs == []
