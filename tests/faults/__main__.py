"""``python -m tests.faults``: the matrix of planted faults; 1 if one passed."""

from __future__ import annotations

import sys

from tests.faults import matrix
from tests.faults.report import lines, summary

if __name__ == "__main__":
    outcomes = list(matrix(enough=2))
    rows = lines(outcomes)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([*(x.ljust(w) for x, w in zip(row, widths, strict=False)), row[4]]))
    print(summary(outcomes))
    sys.exit(not all(outcome.failed for outcome in outcomes))
