"""``python -m tests.faults``: planted faults, all of them; 1 if one passed.

``--traps`` judges the traps of real kernels, ``--generated N`` N faults that a machine makes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.faults import Outcome, matrix, trapped
from tests.faults.generated import examine, sample
from tests.faults.generated import lines as shares
from tests.faults.generated import summary as in_shares
from tests.faults.report import lines, summary


def shown(outcomes: Sequence[Outcome]) -> bool:
    """Print a table; whether every fault was rejected."""
    rows = lines(outcomes)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([*(x.ljust(w) for x, w in zip(row, widths, strict=False)), row[4]]))
    print(summary(outcomes))
    return all(outcome.failed for outcome in outcomes)


def generated(count: int, seed: int, ops: tuple[str, ...] | None, smoke: bool) -> bool:
    """Print which generated faults pass, and the shares."""
    found = []
    for mutant in sample(count, seed, ops):
        found.append(examine(mutant, ("smoke",) if smoke else ("smoke", "standard")))
        if found[-1].rejected in ("", "standard"):
            late = "at standard" if found[-1].rejected else "passes"
            print(f"{mutant.spec.name}: {mutant.name}: {late}", flush=True)
    print("\n".join([*shares(found), in_shares(found)]))
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--traps", action="store_true")
    parser.add_argument("--generated", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--op", action="append")
    parser.add_argument("--smoke", action="store_true", help="generated faults: this tier alone")
    options = parser.parse_args()
    if options.generated:
        ops = tuple(options.op) if options.op else None
        right = generated(options.generated, options.seed, ops, options.smoke)
    else:
        right = shown(list(trapped() if options.traps else matrix(enough=2)))
    sys.exit(not right)
