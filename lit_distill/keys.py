"""Keyed randomness: seeds that are a pure function of what they are for."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
import os
import random
from typing import Any, Literal, get_args

import numpy as np
import torch

Generator = Literal["torch", "python", "numpy"]
GENERATORS: tuple[Generator, ...] = get_args(Generator)

_MASK = (1 << 64) - 1


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
        state = (state ^ (part & _MASK)) * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


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
