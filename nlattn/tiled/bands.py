"""Bands: whole rows of a picture, the unit of tasks."""

from __future__ import annotations

from typing import NamedTuple

from nlattn.engines.components import block_rows


class Band(NamedTuple):
    """Rows ``first:last`` of a picture, and those around that are read with them."""

    number: int
    first: int
    last: int
    above: int
    """First row that is read."""
    below: int
    """Row after the last that is read."""

    @property
    def inner(self) -> slice:
        """The own rows among those that are read."""
        return slice(self.first - self.above, self.last - self.above)


def rows_of(tile: int, width: int) -> int:
    """Rows of a band of about `tile` by `tile` pixels: whole blocks, since sums go by blocks."""
    step = block_rows(width)
    return step * -(-tile * tile // (width * step))


def bands(height: int, rows: int, halo: int = 0) -> list[Band]:
    """Bands of so many rows, the last of fewer."""
    return [
        Band(i, top, min(top + rows, height), max(0, top - halo), min(height, top + rows + halo))
        for i, top in enumerate(range(0, height, rows))
    ]
