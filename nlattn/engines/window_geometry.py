"""Windows over an image: which pixels each of them sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from nlattn._types import Bools

Slices: TypeAlias = tuple[slice, slice, slice]


class WindowGeometry(NamedTuple):
    """Image, windows and outputs."""

    H: int
    W: int
    Ho: int
    Wo: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int

    def seeing(self, pixels: Bools) -> Bools:
        """Windows (B, Ho, Wo, c) that see one of some pixels (B, H, W, c)."""
        found = np.zeros((len(pixels), self.Ho, self.Wo, pixels.shape[3]), bool)
        for here, there in self._taps():
            found[here] |= pixels[there]
        return found

    def seen_by(self, windows: Bools) -> Bools:
        """Pixels (B, H, W, c) that one of some windows (B, Ho, Wo, c) sees."""
        found = np.zeros((len(windows), self.H, self.W, windows.shape[3]), bool)
        for here, there in self._taps():
            found[there] |= windows[here]
        return found

    def _taps(self) -> Iterator[tuple[Slices, Slices]]:
        """For each tap: the windows that have it inside the image, and the pixels that it reads."""
        for u in range(self.kh):
            for w in range(self.kw):
                down = _line(u, self.Ho, self.sh, self.ph, self.H)
                across = _line(w, self.Wo, self.sw, self.pw, self.W)
                yield (slice(None), down[0], across[0]), (slice(None), down[1], across[1])


def _line(tap: int, outputs: int, stride: int, padding: int, size: int) -> tuple[slice, slice]:
    """Along one axis: the windows that have a tap inside, and what they read with it."""
    first = max(0, -(-(padding - tap) // stride))
    last = max(first, min(outputs, (size - 1 - tap + padding) // stride + 1))
    begin = first * stride + tap - padding
    return slice(first, last), slice(begin, begin + (last - first) * stride, stride)
