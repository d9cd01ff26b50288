"""The table of operators: one row each, from which cases, tests, lists and docs are made.

A row is the only place beside an operator's own files where it is named. What a row can say stands
in `row.py`; rows are in one file per family.
"""

from __future__ import annotations

from nlattn.conformance.table import dense, keys, lattice, linear, patches, supports, windows
from nlattn.conformance.table.parts import PARTS
from nlattn.conformance.table.row import OpSpec, SourceStatus

TABLE: tuple[OpSpec, ...] = (
    *dense.ROWS,
    *supports.ROWS,
    *linear.ROWS,
    *lattice.ROWS,
    *patches.ROWS,
    *windows.ROWS,
    *keys.ROWS,
)

JUDGED = (*TABLE, *PARTS)
"""What the kit asks of a backend: operators, and what stands beside them."""
DERIVED = ("_vjp", "_jvp")
FUNCTIONS = {f"{spec.name}{end}": spec for spec in JUDGED for end in ("", *DERIVED)}
"""What a backend may be asked for by name."""

__all__ = [
    "DERIVED",
    "FUNCTIONS",
    "JUDGED",
    "PARTS",
    "TABLE",
    "OpSpec",
    "SourceStatus",
    "find",
    "owner",
]


def find(name: str) -> OpSpec:
    """Return the row of an operator."""
    for spec in JUDGED:
        if spec.name == name:
            return spec
    raise KeyError(f"{name!r} is no operator; there are {', '.join(s.name for s in JUDGED)}")


def owner(function: str) -> str:
    """The operator of a function: of ``qna_vjp`` and ``qna_jvp`` it is ``qna``."""
    return next((function.removesuffix(x) for x in DERIVED if function.endswith(x)), function)
