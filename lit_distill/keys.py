"""Keyed randomness: seeds that are a pure function of what they are for."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
import os
import random
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Generator = Literal["torch", "python", "numpy"]
GENERATORS: tuple[Generator, ...] = get_args(Generator)

_MASK = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def derive_seed(*key: int) -> int:
    """Mix integers, such as ``(seed, epoch, index)``, into one seed of 63 bits.

    Neighbouring keys give unrelated seeds; the value is the same on every machine, process and Python version.

    Source:
        The finaliser of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
        OOPSLA 2014.

    Example:
        >>> derive_seed(42, 0, 7) == derive_seed(42, 0, 7), derive_seed(42, 0, 7) == derive_seed(42, 7, 0)
        (True, False)
    """
    state = len(key)
    for part in key:
        state = _mix(state, part)
    return state >> 1


def uniform(seed: int, view: Tensor, index: Tensor, operation: int, count: int) -> Tensor:
    """Draw ``count`` numbers for each sample of a batch, as a pure function of the sample's key.

    A number is the top 53 bits of ``derive_seed(seed, view, index, operation, column)``. It does not depend on the
    batch, its order or the device, to the last bit.

    Args:
        seed: Seed of the run.
        view: Views of the samples, int64 ``(B,)``.
        index: Their indices, int64 ``(B,)``, on the same device.
        operation: What the numbers are for; every step of a pipeline has another one.
        count: Numbers a sample.

    Returns:
        float64 ``(B, count)`` in [0, 1), on the device of ``view``.

    Example:
        >>> view, index = torch.tensor([0, 0, 3]), torch.tensor([5, 6, 5])
        >>> batch = uniform(42, view, index, operation=1, count=2)
        >>> batch.shape, bool((batch[2:] == uniform(42, view[2:], index[2:], 1, 2)).all())
        (torch.Size([3, 2]), True)
        >>> float(batch[2, 1]) == (derive_seed(42, 3, 5, 1, 1) >> 10) / 2**53
        True
    """
    columns = torch.arange(count, device=view.device)
    return uniform_at(sample_states(seed, view, index)[:, None], operation, columns)


def sample_states(seed: int, view: Tensor, index: Tensor) -> Tensor:
    """Return what `uniform_at` needs of the samples: int64, of the shape of ``view``.

    All the operations of a batch can share it.
    """
    return _mix_tensors(_mix_tensors(view ^ _signed(_mix(5, seed))) ^ index)  # 5: parts of the whole key


def uniform_at(states: Tensor, operation: int, columns: Tensor) -> Tensor:
    """Return the numbers that `uniform` has in some columns.

    Args:
        states: As `sample_states` returns them; broadcast with ``columns``.
        operation: As of `uniform`.
        columns: int64.

    Returns:
        float64 in [0, 1).
    """
    mixed = _mix_tensors(_mix_tensors(states ^ operation) ^ columns)
    return _logical_shift(mixed, 11).to(torch.float64).mul_(2**-53)


def _mix(state: int, part: int) -> int:
    """Return the 64 bits of the next state."""
    state = (state ^ (part & _MASK)) * _STEP + _STEP & _MASK
    state = (state ^ state >> 30) * _FIRST & _MASK
    state = (state ^ state >> 27) * _SECOND & _MASK
    return state ^ state >> 31


def _mix_tensors(combined: Tensor) -> Tensor:
    """Return what `_mix` returns for ``state ^ part``, as int64, whose products wrap around."""
    if combined.device.type == "cpu":  # NumPy has unsigned integers, and takes less than half of the time
        bits = combined.numpy().view(np.uint64) * np.uint64(_STEP)
        bits += np.uint64(_STEP)
        for places, factor in ((30, _FIRST), (27, _SECOND)):
            bits ^= bits >> np.uint64(places)
            bits *= np.uint64(factor)
        bits ^= bits >> np.uint64(31)
        return torch.from_numpy(bits.view(np.int64))
    return _mix_int64(combined)


def _mix_int64(combined: Tensor) -> Tensor:
    state = combined.mul(_signed(_STEP)).add_(_signed(_STEP))
    for places, factor in ((30, _FIRST), (27, _SECOND)):
        state = state.bitwise_xor_(_logical_shift(state, places)).mul_(_signed(factor))
    return state.bitwise_xor_(_logical_shift(state, 31))


def _logical_shift(bits: Tensor, places: int) -> Tensor:
    """Shift int64 to the right, filling with zeros; torch's own shift repeats the sign."""
    return (bits >> places).bitwise_and_((1 << 64 - places) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


def global_seed(default: int = 0) -> int:
    """Return the seed last given to Lightning's ``seed_everything``, else ``default``."""
    return int(os.environ.get("PL_GLOBAL_SEED", default))


def reseed(seed: int, generators: Collection[Generator] = GENERATORS) -> None:
    """Seed the process's random-number generators, inside `kept`.

    Args:
        seed: 0 <= seed < 2**63, as `derive_seed` returns it.
        generators: Which ones: ``"torch"``, ``"python"``, ``"numpy"``.
    """
    if "torch" in generators:
        torch.default_generator.manual_seed(seed)
    if "python" in generators:
        random.seed(seed)
    if "numpy" in generators:
        numpy: Any = np.random  # whose stubs leave out the exchange of bit generators
        numpy.set_bit_generator(np.random.PCG64(seed))


@contextmanager
def kept(generators: Collection[Generator] = GENERATORS) -> Iterator[None]:
    """Put the states of the process's random-number generators back after the block.

    Example:
        >>> before = torch.get_rng_state()
        >>> with kept(["torch"]):
        ...     reseed(1, ["torch"])
        >>> bool((before == torch.get_rng_state()).all())
        True
    """
    numpy: Any = np.random
    torch_state = torch.get_rng_state() if "torch" in generators else None
    python_state = random.getstate() if "python" in generators else None
    # Exchanging NumPy's bit generator is an order of magnitude faster than copying its state out and in.
    numpy_generator = numpy.get_bit_generator() if "numpy" in generators else None
    try:
        yield
    finally:
        if torch_state is not None:
            torch.set_rng_state(torch_state)
        if python_state is not None:
            random.setstate(python_state)
        if numpy_generator is not None:
            numpy.set_bit_generator(numpy_generator)


@contextmanager
def seeded(seed: int, generators: Collection[Generator] = GENERATORS) -> Iterator[None]:
    """Seed the process's random-number generators inside the block and put their states back after it.

    Args:
        seed: As of `reseed`.
        generators: As of `reseed`; torch's takes 4 us to seed and restore.

    Example:
        >>> with seeded(1, ["torch"]):
        ...     first = torch.rand(())
        >>> with seeded(1, ["torch"]):
        ...     second = torch.rand(())
        >>> bool(first == second)
        True
    """
    with kept(generators):
        reseed(seed, generators)
        yield
