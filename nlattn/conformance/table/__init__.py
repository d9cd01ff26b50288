"""The table of operators: one row each, from which cases, tests, lists and docs are made.

A row is the only place beside an operator's own files where it is named. What a row can say stands
in `row.py`; rows are in one file per family.
"""

from __future__ import annotations

from nlattn.conformance.table import dense, keys, lattice, linear, patches, supports, windows
from nlattn.conformance.table.row import OpSpec, Status

TABLE: tuple[OpSpec, ...] = (
    *dense.ROWS,
    *supports.ROWS,
    *linear.ROWS,
    *lattice.ROWS,
    *patches.ROWS,
    *windows.ROWS,
    *keys.ROWS,
)

__all__ = ["TABLE", "OpSpec", "Status", "find"]


def find(name: str) -> OpSpec:
    """Return the row of an operator."""
    for spec in TABLE:
        if spec.name == name:
            return spec
    raise KeyError(f"{name!r} is no operator; there are {', '.join(s.name for s in TABLE)}")
