"""Random numbers as a pure function of where they are used: SplitMix64 over keyed fields.

A draw depends on ``(seed, slice, iteration, query, draw)`` alone, so neither threads nor blocks nor
the other slices of a batch can change it. Source: the finaliser is Steele, Lea and Flood's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn.runtime import jit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


@jit.device(inline=True)
def finish(z: np.uint64) -> np.uint64:
    """Mix the bits of a uint64: SplitMix64's finaliser."""
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@jit.device(inline=True)
def start(seed: np.uint64) -> np.uint64:
    """State of a seed, a uint64."""
    return finish(seed + _GOLDEN)


@jit.device(inline=True)
def absorb(state: np.uint64, field: int) -> np.uint64:
    """State after one more field of the key."""
    return finish((state ^ np.uint64(field)) + _GOLDEN)


@jit.device(inline=True)
def bounded(state: np.uint64, limit: int) -> Any:
    """Integer in ``[0, limit)``, ``limit < 2^32``: by multiplication, for a remainder is biased."""
    return np.int64(((state >> _32) * np.uint64(limit)) >> _32)
