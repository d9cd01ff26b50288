"""Sizes and layouts that options are crossed with: each size is of several kinds at once.

Odd and even, multiples of 4, 8, 16, 32 and 64, one more than these, one row, as many rows as
columns, and beyond 32, 64, 128, 256, 512 and 1024.
"""

from __future__ import annotations

from nlattn.conformance.table.recipe import Recipe

_OF_SETS = (
    (24, 40, 16, 8),
    (33, 97, 24, 65),
    (136, 40, 129, 16),
    (9, 520, 65, 12),
    (1, 260, 40, 72),
    (48, 48, 64, 64),
    (520, 16, 4, 8),
    (5, 1032, 6, 4),
    (129, 65, 33, 17),
    (64, 128, 32, 32),
    (1040, 8, 8, 6),
)
SETS = tuple(
    Recipe(f"{n}x{m}", sizes={"n": n, "m": m, "d": d, "e": e, "r": 16 + n % 3})
    for n, m, d, e in _OF_SETS
)
GRIDS = (
    Recipe("8x12", sizes={"H": 8, "W": 12, "Hq": 8, "Wq": 4, "Hk": 4, "Wk": 8, "d": 8, "e": 16}),
    Recipe("11x16", sizes={"H": 11, "W": 16, "Hq": 5, "Wq": 8, "Hk": 8, "Wk": 6, "d": 16, "e": 4}),
    Recipe("16x9", sizes={"H": 16, "W": 9, "Hq": 8, "Wq": 9, "Hk": 9, "Wk": 4, "d": 33, "e": 8}),
)
LAYOUTS = (
    Recipe(""),
    Recipe("heads-last", layout="heads-last"),
    Recipe("strided", layout="strided"),
    Recipe("broadcast", layout="broadcast"),
    Recipe("reversed", layout="reversed"),
    Recipe("fortran", layout="Fortran"),
    Recipe(""),
)
