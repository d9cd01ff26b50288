"""Random numbers over whole arrays: the keyed hashes of ``kernels/rng.py``, in NumPy."""

from __future__ import annotations

import numpy as np

from nlattn._types import Array, Floats, Ints

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hashes(seed: int, *fields: int | Ints) -> Array:
    """Hash of a seed and fields, integers or arrays of them that broadcast: uint64."""
    state = _mix(np.full((), seed % 2**64, np.uint64))
    for field in fields:
        state = _mix(state ^ np.asarray(field).astype(np.uint64))
    return state


def uniform(seed: int, *fields: int | Ints) -> Floats:
    """Numbers in (0, 1], multiples of ``2^-53``."""
    u: Floats = 1 - (hashes(seed, *fields) >> np.uint64(11)) * 2.0**-53
    return u


def normal(seed: int, *fields: int | Ints) -> Floats:
    """Standard normal numbers, by Box and Muller's cosine."""
    radius = np.sqrt(-2 * np.log(uniform(seed, *fields, 0)))
    z: Floats = radius * np.cos(2 * np.pi * uniform(seed, *fields, 1))
    return z


def _mix(x: Array) -> Array:
    """SplitMix64's step."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
