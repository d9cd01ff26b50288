"""Twenty programs whose growth is known: whose rule judges claims on their counts wrongly.

Every program counts its own steps at nine sizes. Every claim of `CLAIMS` is judged by this library,
by big_O (smallest residual of a class), by google-benchmark's rule (smallest normalised deviation
of a class, one factor each) and by bigO of plasma-umass (Akaike's criterion, bootstrapped). A
verdict is wrong if it accepts a law that the program outgrows, or rejects one that it does not.

    python benchmarks/programs.py [--json]

Rivals that are not installed are left out.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import json
import math
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn.scaling import judge
from nlattn.scaling.growth import growth

SIZES = [2**i for i in range(6, 15)]
CLAIMS = ("n", "n log n", "n log^2 n", "n^1.5", "n^2")


def scan(n: int) -> int:
    """Largest of n numbers: n."""
    return sum(1 for _ in range(n))


def two_passes(n: int) -> int:
    """Two passes and a constant: n."""
    return 2 * n + 40


def resizing(n: int) -> int:
    """Appending to an array that doubles when it is full, moves counted: n."""
    size, moves = 1, 0
    for filled in range(n):
        if filled == size:
            moves, size = moves + size, 2 * size
        moves += 1
    return moves


def selection(n: int) -> int:
    """Comparisons of quickselect, random pivots, mean of 30: n."""
    rng, total = random.Random(n), 0
    for _ in range(30):
        left, rank = n, n // 2
        while left > 1:
            total += left - 1
            pivot = rng.randrange(left)
            if pivot == rank:
                break
            left, rank = (pivot, rank) if rank < pivot else (left - pivot - 1, rank - pivot - 1)
    return total // 30


def tree_sum(n: int) -> int:
    """Nodes of a balanced tree over n leaves: n."""
    return 1 if n <= 1 else 1 + tree_sum(n // 2) + tree_sum(n - n // 2)


def sieve(n: int) -> int:
    """Crossings of the sieve of Eratosthenes: n log log n, below n log n."""
    prime, steps = bytearray([1]) * (n + 1), n
    for p in range(2, math.isqrt(n) + 1):
        if prime[p]:
            steps += len(range(p * p, n + 1, p))
            prime[p * p :: p] = bytes(len(range(p * p, n + 1, p)))
    return steps


def merge_sort(n: int) -> int:
    """Comparisons of merge sort of random numbers: n log n."""
    rng = random.Random(n)

    def sort(x: list[float]) -> tuple[list[float], int]:
        if len(x) < 2:
            return x, 0
        (a, i), (b, j) = sort(x[: len(x) // 2]), sort(x[len(x) // 2 :])
        merged, steps, at = [], i + j, 0
        for value in a:
            while at < len(b) and b[at] < value:
                merged.append(b[at])
                at, steps = at + 1, steps + 1
            merged.append(value)
            steps += at < len(b)
        return merged + b[at:], steps

    return sort([rng.random() for _ in range(n)])[1]


class _Counted(float):
    """A number whose comparisons are counted."""

    steps = 0

    def __lt__(self, other: object) -> bool:
        _Counted.steps += 1
        return float(self) < float(other)  # type: ignore[arg-type]


def heap_sort(n: int) -> int:
    """Comparisons of heap sort: n log n."""
    rng, _Counted.steps = random.Random(n), 0
    heap = [_Counted(rng.random()) for _ in range(n)]
    heapq.heapify(heap)
    for _ in range(n):
        heapq.heappop(heap)
    return _Counted.steps


def searches(n: int) -> int:
    """N binary searches among n keys: n log n."""
    rng, _Counted.steps = random.Random(n), 0
    keys = [_Counted(i / n) for i in range(n)]
    for _ in range(n):
        bisect.bisect_left(keys, _Counted(rng.random()))
    return _Counted.steps


def quick_sort(n: int) -> int:
    """Comparisons of quicksort, random pivots: n log n, with noise."""
    rng, total, todo = random.Random(n), 0, [n]
    while todo:
        left = todo.pop()
        if left > 1:
            total += left - 1
            pivot = rng.randrange(left)
            todo += [pivot, left - pivot - 1]
    return total


def transform(n: int) -> int:
    """Butterflies of the fast Fourier transform and 5 n to load and store: n log n."""
    return n // 2 * int(math.log2(n)) + 5 * n


def closest_pair(n: int) -> int:
    """Sorting again at every level of a recursion: n log^2 n."""
    return 1 if n < 2 else 2 * closest_pair(n // 2) + n * int(math.log2(n))


def bitonic(n: int) -> int:
    """Comparators of a bitonic sorting network: n log^2 n."""
    levels = int(math.log2(n))
    return n * levels * (levels + 1) // 4


def square_roots(n: int) -> int:
    """Trial division of n odd numbers near n by all up to their root: n^1.5."""
    return sum(math.isqrt(n + i) for i in range(n))


def blocks(n: int) -> int:
    """N queries over blocks of root n: n^1.5."""
    return n * (math.isqrt(n) + n // math.isqrt(n))


def insertion_sort(n: int) -> int:
    """Moves of insertion sort of random numbers: n^2."""
    rng, seen, moves = random.Random(n), [], 0
    for _ in range(n):
        x = rng.random()
        at = bisect.bisect_left(seen, x)
        moves += len(seen) - at
        seen.insert(at, x)
    return moves


def all_pairs(n: int) -> int:
    """Pairs of n things: n^2."""
    return n * (n - 1) // 2


def late_square(n: int) -> int:
    """N log n and a square that is 13 % at the end: n^2."""
    return n * int(math.log2(n)) + int(n * n * 0.15 * 14 / SIZES[-1])


def late_pairs(n: int) -> int:
    """A pass, and all pairs of the hundredth part: n^2."""
    return 12 * n + (n // 100) ** 2 // 2


def late_root(n: int) -> int:
    """A pass, and n^1.5 that is a fifth of the cost at the end: n^1.5."""
    return n + int(n**1.5 * 0.25 / SIZES[-1] ** 0.5)


PROGRAMS: dict[Callable[[int], int], str] = {
    scan: "n",
    two_passes: "n",
    resizing: "n",
    selection: "n",
    tree_sum: "n",
    sieve: "n log n",
    merge_sort: "n log n",
    heap_sort: "n log n",
    searches: "n log n",
    quick_sort: "n log n",
    transform: "n log n",
    closest_pair: "n log^2 n",
    bitonic: "n log^2 n",
    square_roots: "n^1.5",
    blocks: "n^1.5",
    insertion_sort: "n^2",
    all_pairs: "n^2",
    late_square: "n^2",
    late_pairs: "n^2",
    late_root: "n^1.5",
}
"""The smallest law of `CLAIMS` that holds."""

Rule = Callable[[Any, Any, str], str]


def ours(n: Any, cost: Any, claim: str) -> str:
    return judge(n, cost, claim, cliffs=False).verdict


def google_benchmark(n: Any, cost: Any, claim: str) -> str:
    """Its classes are 1, log n, n, n log n, n^2, n^3, one factor each; others cannot be claimed."""
    classes = ["log n", "n", "n log n", "n^2", "n^3"]
    if claim not in classes:
        return "cannot say"

    def deviation(law: str) -> float:
        f = growth(law)(n)
        return float(np.sqrt(np.mean((cost - (cost @ f) / (f @ f) * f) ** 2)) / cost.mean())

    best = min(classes, key=deviation)
    return "consistent" if classes.index(best) <= classes.index(claim) else "inconsistent"


def big_o(n: Any, cost: Any, claim: str) -> str:
    """The class of smallest residual, of 1, log n, n, n log n, n^2, n^3 and n^a."""
    from big_o import complexities, infer_big_o_class

    names = {"n": "Linear", "n log n": "Linearithmic", "n^2": "Quadratic"}
    if claim not in names:
        return "cannot say"
    kinds = [
        getattr(complexities, name)
        for name in ("Constant", "Logarithmic", "Linear", "Linearithmic", "Quadratic", "Cubic")
    ]
    best, _ = infer_big_o_class(n, cost, classes=kinds)
    order = [kind.__name__ for kind in kinds]
    holds = order.index(type(best).__name__) <= order.index(names[claim])
    return "consistent" if holds else "inconsistent"


def plasma_umass(n: Any, cost: Any, claim: str) -> str:
    """Rejects a bound where a larger model fits significantly better."""
    from bigO import models

    names = {"n": "O(n)", "n log n": "O(n*log(n))", "n^1.5": "O(n**1.5)", "n^2": "O(n**2)"}
    if claim not in names:
        return "cannot say"
    np.random.seed(0)  # noqa: NPY002  its bootstrap draws from there
    bound = next((m for m in models.models if m.name == names[claim]), None)
    found = models.check_bound(n, cost, bound or models.get_model(names[claim]))
    return "inconsistent" if len(found.better_models) else "consistent"


RULES: dict[str, tuple[Rule, str | None]] = {
    "nlattn": (ours, None),
    "google-benchmark": (google_benchmark, None),
    "big_O": (big_o, "big_o"),
    "bigO (plasma-umass)": (plasma_umass, "bigO"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    n, rows = np.array(SIZES, float), {}
    costs = {program: np.array([program(s) for s in SIZES], float) for program in PROGRAMS}
    for name, (rule, package) in RULES.items():
        if package is not None:
            try:
                __import__(package)
            except ImportError:
                print(f"{name}: not installed", file=sys.stderr)
                continue
        row: dict[str, Any] = {"right": 0, "undecided": 0, "cannot say": 0, "wrong": []}
        for program, truth in PROGRAMS.items():
            for claim in CLAIMS:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    said = rule(n, costs[program], claim)
                holds = CLAIMS.index(truth) <= CLAIMS.index(claim)
                right = "consistent" if holds else "inconsistent"
                if said in ("undecided", "cannot say"):
                    row[said] += 1
                elif said == right:
                    row["right"] += 1
                else:
                    row["wrong"].append(f"{program.__name__} claimed {claim}")
        rows[name] = row
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for name, row in rows.items():
        wrong = row.pop("wrong")
        counts = ", ".join(f"{count} {kind}" for kind, count in row.items())
        print(f"{name}: {len(wrong)} wrong, {counts}; {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
