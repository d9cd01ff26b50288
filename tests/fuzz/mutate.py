"""Damaged files, the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

WORDS = (
    b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x80\x00\x00\x00", b"0", b"9" * 30, b"-1", b"[", b"{",
    b"1e999", b"NaN", b"18446744073709551615", b"4294967296", b"\n", b"<U9", b"|O", b"(", b",",
)  # fmt: skip
"""What numbers, names and lengths are replaced by."""


def mutants(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` files, each some seed with a few damages."""
    draw = random.Random(seed)
    for _ in range(count):
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.choice((1, 1, 2, 4, 8))):
            _damage(data, draw, seeds)
        yield bytes(data)


def _damage(data: bytearray, draw: random.Random, seeds: Sequence[bytes]) -> None:
    at = draw.randrange(len(data) + 1)
    end = min(len(data), at + draw.choice((1, 1, 2, 4, 9, 40)))
    match draw.randrange(7):
        case 0 if data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        case 1:
            word = draw.choice(WORDS)
            data[at : at + len(word)] = word
        case 2:
            data[at:end] = draw.choice(WORDS)
        case 3:
            del data[at:end]
        case 4:
            data[at:at] = data[at:end] * draw.choice((1, 2, 200))
        case 5:
            del data[at:]
        case _:
            other = draw.choice(seeds)
            start = draw.randrange(len(other) + 1)
            data[at:end] = other[start : start + 20]
