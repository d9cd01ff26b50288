"""The matrix of planted faults in words."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults import Outcome


def lines(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Rows of a table, its head first."""
    rows = [["function", "fault", "rejected", "named", "what is said"]]
    for o in outcomes:
        marks = ["yes" if yes else "NO" for yes in (o.failed, o.named)]
        rows.append([o.fault.op, o.fault.what, *marks, o.said or "-"])
    return rows


def summary(outcomes: Sequence[Outcome]) -> str:
    """The matrix in one line."""
    functions = len({o.fault.op for o in outcomes})
    return (
        f"{len(outcomes)} faults in {functions} functions: "
        f"{sum(bool(o.failed) for o in outcomes)} rejected, "
        f"{sum(o.named for o in outcomes)} named"
    )
