"""What the bounds reject: ``python -m nlattn.conformance.judge.sensitivity [OPERATOR...]``.

A bound is worth what it rejects. For each function and dtype, the least relative error that all
elements of a right result may share before some case of the tier fails it, in the form of a table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import numpy as np

from nlattn.conformance.case import DTYPES, Case, dtype_of
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.verdict import judge
from nlattn.conformance.truth.bounds import exact

STEPS = tuple(float(f"{digit}e{power}") for power in range(-16, 0) for digit in (1, 2, 5))
"""Errors that are tried."""


def rejects(case: Case, error: float) -> bool:
    """Whether a result that is too large by this part of itself, and right otherwise, fails."""
    dtype = dtype_of(case.dtype)
    with np.errstate(all="ignore"):
        got = {n: (x * (1 + error)).astype(dtype).astype(float) for n, x in exact(case).items()}
    return judge(case, got).failed


def least(suite: Iterable[Case]) -> float:
    """The least of `STEPS` that a case rejects; 1 if none does."""
    found = len(STEPS)
    for case in suite:
        while found and rejects(case, STEPS[found - 1]):
            found -= 1
    return STEPS[found] if found < len(STEPS) else 1.0


def table(ops: tuple[str, ...] | None = None, tier: str = "smoke") -> Iterator[str]:
    """Lines of a table in Markdown, a row for each function."""
    yield f"| function | {' | '.join(DTYPES)} |"
    yield f"|{'---|' * (1 + len(DTYPES))}"
    groups: dict[str, dict[str, list[Case]]] = {}
    for case in cases(tier, ops):  # type: ignore[arg-type]
        if case.spec.cases.result == "numbers":
            groups.setdefault(case.function, {}).setdefault(case.dtype, []).append(case)
    for function, by_dtype in groups.items():
        cells = [f"{least(by_dtype[d]):.0e}" if d in by_dtype else "-" for d in DTYPES]
        yield f"| `{function}` | {' | '.join(cells)} |"


if __name__ == "__main__":
    for line in table(tuple(sys.argv[1:]) or None):
        print(line, flush=True)
