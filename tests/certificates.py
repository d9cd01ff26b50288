"""Certificates in exact arithmetic: ``python -m tests.certificates N [SEED]`` tries N instances.

Keys and queries are what a format holds, from the least subnormal to the largest number; rationals
say what their weights are. A universal set must hold every key of weight eps under any query, an
upper bound must not be below a weight, heavy entries are those of at least eps, a stream keeps what
has the leverage, nearest keys have the best score, and certified attention misses what it says.

A direction of which no key has more than some 16 units of rounding, for each channel or key, is
taken for what rounding made of dependent keys: instances that have one are left out, and counted.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

import nlattn
from nlattn.engines.sensitivity import Keys
from nlattn.engines.whitened import U, factor

Array = np.ndarray[Any, Any]
Rows = list[list[int]]
EPSILONS = (0.02, 0.1, 0.3, 0.5, 1.0)
KINDS = ("plain", "rows", "columns", "both", "copies", "low rank", "subnormal", "largest", "near")


def integers(*arrays: Array) -> list[Rows]:
    """Rows of all arrays times one power of two, as integers."""
    least = 0
    for x in arrays:
        for number in x.reshape(-1):
            least = max(least, Fraction(float(number)).denominator.bit_length() - 1)
    return [
        [[int(Fraction(float(number)) * (1 << least)) for number in row] for row in x]
        for x in arrays
    ]


def solved(K: Rows) -> list[list[Fraction] | None]:
    """For every key k a query ``G^+ k`` of it, exactly; None for keys of zeros.

    That query gives k the largest weight in squares that any query gives it, its leverage
    ``k.G^+ k``. A maximal set of independent columns spans the same rows' space of scores.
    """
    d = len(K[0])
    basis: list[int] = []
    for c in range(d):
        if _rank([[row[j] for j in (*basis, c)] for row in K]) > len(basis):
            basis.append(c)
    G = [[Fraction(sum(row[a] * row[b] for row in K)) for b in basis] for a in basis]
    inverse = _inverse(G)
    found: list[list[Fraction] | None] = []
    for row in K:
        y = [Fraction(0)] * d
        for a, c in enumerate(basis):
            y[c] = sum((inverse[a][b] * row[basis[b]] for b in range(len(basis))), Fraction(0))
        found.append(y if any(row) else None)
    return found


def _rank(rows: Rows) -> int:
    """Rank of a few columns of integers."""
    left = [[Fraction(x) for x in row] for row in rows if any(row)]
    rank = 0
    for c in range(len(rows[0])):
        pivot = next((i for i in range(rank, len(left)) if left[i][c]), None)
        if pivot is None:
            continue
        left[rank], left[pivot] = left[pivot], left[rank]
        for i in range(rank + 1, len(left)):
            share = left[i][c] / left[rank][c]
            left[i] = [x - share * y for x, y in zip(left[i], left[rank], strict=True)]
        rank += 1
    return rank


def _inverse(G: list[list[Fraction]]) -> list[list[Fraction]]:
    r = len(G)
    A = [[*row, *(Fraction(int(i == j)) for j in range(r))] for i, row in enumerate(G)]
    for c in range(r):
        pivot = next(i for i in range(c, r) if A[i][c])
        A[c], A[pivot] = A[pivot], A[c]
        A[c] = [x / A[c][c] for x in A[c]]
        for i in range(r):
            if i != c and A[i][c]:
                A[i] = [x - A[i][c] * y for x, y in zip(A[i], A[c], strict=True)]
    return [row[r:] for row in A]


def dots(q: Any, K: Rows) -> list[Fraction]:
    """Scores of all keys."""
    return [sum((Fraction(a) * b for a, b in zip(q, row, strict=True)), Fraction(0)) for row in K]


def told(K: Array, exact: Rows, *, prefixes: bool = False) -> bool:
    """Whether the library sees all directions of keys, and of all prefixes."""
    whole = Keys.of(K)
    rank = _rank([exact[j] for j in np.flatnonzero(whole.some)] or [[0]])
    if not rank or whole.factor.rank < rank or not prefixes:
        return whole.factor.rank >= rank
    rows = np.zeros((len(K), rank))
    rows[whole.some] = whole.X
    return all(
        factor(np.ascontiguousarray(rows[:i])).rank >= _rank(exact[:i])
        for i in range(1, len(K) + 1)
    )


def weights(scores: list[Fraction], p: int) -> list[Fraction]:
    """``|s|^p`` over their sum; nothing where all are 0."""
    powers = [abs(s) ** p for s in scores]
    total = sum(powers)
    return [x / total for x in powers] if total else powers


def keys(rng: np.random.Generator, kind: str, dtype: Any) -> Array:
    """A few keys (n, d), as `dtype` holds them."""
    n, d = int(rng.integers(1, 8)), int(rng.integers(1, 4))
    info = np.finfo(dtype)
    low, high = (int(np.log10(x)) for x in (info.smallest_subnormal, info.max))
    K = rng.standard_normal((n, d))
    with np.errstate(over="ignore"):
        if kind in ("rows", "both"):
            K *= 10.0 ** rng.uniform(low, high - 1, (n, 1))
        if kind in ("columns", "both"):
            K *= 10.0 ** rng.uniform(low / 2, high / 2, d)
    if kind == "copies":
        K = K[rng.integers(0, n, n)]
    if kind == "low rank":
        K = np.round(3 * K[:, :1]) * rng.integers(-2, 3, (1, d))
    if kind == "near":
        K = K[:, :1] * (1 + rng.integers(0, 3, (n, d)) * 10.0 ** rng.uniform(-16, -6))
    if kind == "subnormal":
        K = np.round(8 * K) * float(info.smallest_subnormal)
    elif kind == "largest":
        K = K / abs(K).max() * float(info.max)
    elif kind in ("plain", "copies", "near"):
        K = K * 10.0 ** rng.uniform(low, high - 2)
    K[rng.random(n) < 0.1] = 0
    with np.errstate(over="ignore", under="ignore"):
        return np.clip(K, -float(info.max), float(info.max)).astype(dtype)


UNTOLD = "untold"
Failure = tuple[str, str]


def universal(rng: np.random.Generator, K: Array, p: int) -> Iterator[Failure]:
    """Sets and bounds, causal ones too, under the best query of every key and some others."""
    eps = float(rng.choice(EPSILONS))
    chosen = nlattn.universal_set(K, eps, p=p)
    low, high = nlattn.sensitivity_bounds(K, p)
    inside = {int(j) for j in chosen.keys}
    (exact,) = integers(K)
    if not told(K, exact):
        yield UNTOLD, ""
        return
    tried = [q for q in solved(exact) if q is not None]
    tried += [[Fraction(int(x)) for x in rng.integers(-3, 4, K.shape[1])] for _ in range(2)]
    most = [Fraction(0)] * len(K)
    for q in tried:
        most = [max(a, b) for a, b in zip(most, weights(dots(q, exact), p), strict=True)]
    for j, share in enumerate(most):
        if share >= Fraction(eps) and j not in inside:
            yield "universal_set", f"lacks key {j} of weight {float(share)} for eps={eps}"
        for name, bound in (("universal_set", chosen.upper[j]), ("sensitivity_bounds", high[j])):
            if Fraction(float(bound)) < share * (1 - Fraction(1, 1 << 50)):
                yield name, f"upper bound {bound} of key {j} is below its weight {float(share)}"
        if p == 2 and Fraction(float(low[j])) > share * (1 + Fraction(1, 1 << 50)):
            yield "sensitivity_bounds", f"lower bound {low[j]} of key {j} is above {float(share)}"
    if rng.random() < 0.3 and told(K, exact, prefixes=True):
        yield from causal(K, exact, eps, p)


def causal(K: Array, exact: Rows, eps: float, p: int) -> Iterator[Failure]:
    """Sets of all prefixes."""
    support = nlattn.universal_set(K, eps, p=p, causal=True).support
    for i in range(len(K)):
        row = {int(j) for j in support.indices[support.indptr[i] : support.indptr[i + 1]]}
        prefix = exact[: i + 1]
        for q in solved(prefix):
            for j, share in enumerate(weights(dots(q, prefix), p) if q else []):
                if share >= Fraction(eps) and j not in row:
                    yield "causal", f"row {i} lacks key {j} of weight {float(share)}, eps={eps}"


def heavy(rng: np.random.Generator, K: Array, p: int) -> Iterator[Failure]:
    """Entries, their values and sums, of queries of the same range."""
    Q = keys(rng, str(rng.choice(KINDS)), K.dtype)
    d = min(Q.shape[1], K.shape[1])
    Q, K = np.ascontiguousarray(Q[:, :d]), np.ascontiguousarray(K[:, :d])
    eps = float(rng.choice(EPSILONS))
    A = nlattn.heavy_attention(Q, K, eps, p=p)
    got = A.rows(np.arange(len(Q))) if len(K) else np.zeros((len(Q), 0))
    unit = float(np.finfo(K.dtype).eps)
    near = Fraction(64 * p * (d + len(K)) * U)
    (queries,), (rows,) = integers(Q), integers(K)
    for i, q in enumerate(queries):
        scores = dots(q, rows)
        sizes = [sum(abs(a * b) for a, b in zip(q, row, strict=True)) for row in rows]
        top = max(map(abs, scores), default=Fraction(0))
        for j, share in enumerate(weights(scores, p)):
            # a score whose terms cancel, beside the row's largest, has the digits that are left
            lost = Fraction(sizes[j], 1) * Fraction(4 * d * U)
            if not scores[j]:
                continue
            worst = max(lost / abs(scores[j]), max(sizes) * Fraction(4 * d * U) / top)
            sure = near + 2 * p * worst
            if sure > Fraction(1, 2):
                continue
            if share >= Fraction(eps) * (1 + sure) and got[i, j] == 0:
                yield "heavy_attention", f"lacks entry {i, j} of {float(share)}, eps={eps}"
            if got[i, j] and share < Fraction(eps) * (1 - sure):
                yield "heavy_attention", f"has entry {i, j} of {float(share)}, eps={eps}"
            away = abs(Fraction(float(got[i, j])) - share)
            if got[i, j] and away > share * (sure + Fraction(2 * unit)):
                yield "heavy_attention", f"entry {i, j} is {got[i, j]}, not {float(share)}"


def stream(rng: np.random.Generator, K: Array) -> Iterator[Failure]:
    """Streams cut and merged anywhere."""
    eps = float(rng.choice(EPSILONS))
    n, d = K.shape
    cut = int(rng.integers(0, n + 1))
    whole = nlattn.LeverageStream(d, eps).extend(np.split(K[:cut], [cut // 2]))
    whole.merge(nlattn.LeverageStream(d, eps, first=cut).update(K[cut:]))
    found = whole.result()
    (exact,) = integers(K)
    for j, (q, row) in enumerate(zip(solved(exact), exact, strict=True)):
        share = dots(q, [row])[0] if q else Fraction(0)
        if share >= Fraction(eps) and j not in found.index:
            yield "LeverageStream", f"lacks key {j} of leverage {float(share)}, eps={eps}"


def nearest(rng: np.random.Generator, K: Array) -> Iterator[Failure]:
    """The best key's score is the best, but for what rounding of scores may do."""
    Q = keys(rng, str(rng.choice(KINDS)), K.dtype)
    d = min(Q.shape[1], K.shape[1])
    Q, K = np.ascontiguousarray(Q[:, :d]), np.ascontiguousarray(K[:, :d])
    score = str(rng.choice(["dot", "neg_l2"]))
    try:
        got = nlattn.nearest_keys(Q, K, score=score)
    except ValueError as error:
        if "largest" not in str(error):
            yield "nearest_keys", str(error)
        return
    queries, rows = ([[Fraction(float(x)) for x in row] for row in X] for X in (Q, K))
    unit, tiny = (Fraction(float(x)) for x in (np.finfo(K.dtype).eps, np.finfo(K.dtype).tiny))
    largest = max((abs(x) for row in (*queries, *rows) for x in row), default=Fraction(0))
    tiny += largest**2 / 2**960  # squares that the units of a call do not hold
    for i, q in enumerate(queries):
        if score == "dot":
            values = [sum(a * b for a, b in zip(q, row, strict=True)) for row in rows]
            sizes = [sum(abs(a * b) for a, b in zip(q, row, strict=True)) for row in rows]
        else:
            values = [-sum((a - b) ** 2 for a, b in zip(q, row, strict=True)) for row in rows]
            sizes = [-x for x in values]
        best, j = max(values), int(got.index[i, 0])
        if j < 0:
            yield "nearest_keys", f"has no key of query {i}"
            continue
        room = 8 * (d + 2) * (unit * max(sizes[j], sizes[values.index(best)]) + tiny)
        if values[j] + room < best and np.isfinite(got.score[i, 0]):
            yield "nearest_keys", f"{score}: key {j} of query {i} is not the best"


def certified(rng: np.random.Generator, number: int) -> Iterator[Failure]:
    """Outputs and normalisers of some hundred keys, in 60 digits."""
    import mpmath

    dtype = np.float32 if number % 2 else np.float64
    n, m, d = 3, int(rng.integers(64, 400)), int(rng.integers(1, 4))
    middles = rng.standard_normal((5, d)) * 3
    K = (middles[rng.integers(0, 5, m)] + 0.05 * rng.standard_normal((m, d))).astype(dtype)
    Q = (middles[rng.integers(0, 5, n)] + 0.05 * rng.standard_normal((n, d))).astype(dtype)
    V = (rng.standard_normal((m, 2)) * 10.0 ** rng.uniform(-20, 20)).astype(dtype)
    far, tolerance = 10.0 ** rng.uniform(-14, 14), 10.0 ** rng.uniform(-6, -1)
    Q, K = (Q * far).astype(dtype), (K / far).astype(dtype)
    out, lse, missed = nlattn.certified_attention(
        Q, K, V, tolerance=tolerance, scale=4.0, return_lse=True, return_missed=True
    )
    mpmath.mp.dps = 60
    values = [[mpmath.mpf(float(x)) for x in row] for row in V]
    for i in range(n):
        scores = [
            4
            * mpmath.fsum(
                mpmath.mpf(float(a)) * mpmath.mpf(float(b)) for a, b in zip(Q[i], k, strict=True)
            )
            for k in K
        ]
        top = max(scores)
        powers = [mpmath.exp(s - top) for s in scores]
        total = mpmath.fsum(powers)
        if abs(lse[i] - (top + mpmath.log(total))) > -mpmath.log1p(-missed[i]) + 1e-13 * abs(top):
            yield "certified_attention", f"lse {lse[i]} of query {i}"
        for c in range(2):
            want = mpmath.fsum(w * row[c] for w, row in zip(powers, values, strict=True)) / total
            column = [row[c] for row in values]
            room = mpmath.mpf(float(missed[i])) * (max(column) - min(column))
            if abs(mpmath.mpf(float(out[i, c])) - want) > room + float(np.spacing(abs(out[i, c]))):
                yield "certified_attention", f"output {i, c} beyond missed={missed[i]}"


def tried(number: int, seed: int) -> Iterator[tuple[str, str, Any]]:
    """What is wrong in one instance: the certificate, words, and the keys."""
    rng = np.random.default_rng([seed, number])
    kind = KINDS[number % len(KINDS)]
    K = keys(rng, kind, np.float32 if number % 4 == 3 else np.float64)
    p = int(rng.choice([1, 2, 2, 3, 4]))
    parts: list[Callable[[], Iterator[Failure]]] = [
        lambda: universal(rng, K, p),
        lambda: heavy(rng, K, p),
        lambda: stream(rng, K) if kind not in ("both", "near") else iter(()),
        lambda: nearest(rng, K),
    ]
    if number % 50 == 0:
        parts.append(lambda: certified(rng, number))
    for part in parts:
        try:
            for name, words in part():
                yield name, f"p={p}, {kind}: {words}", K
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            yield type(error).__name__, f"p={p}, {kind}: {error} at {where.name}", K


def main(count: int, seed: int) -> int:
    """Try instances; print what is wrong, at most three of each kind."""
    warnings.simplefilter("error")
    wrong: Counter[str] = Counter()
    left = 0
    for number in range(count):
        for name, words, K in tried(number, seed):
            if name == UNTOLD:
                left += 1
                continue
            wrong[name] += 1
            if wrong[name] <= 3:
                print(f"{number}: {name}: {words}\n  k = {K.tolist()}", flush=True)
    words = dict(wrong) or "nothing wrong"
    print(f"{count} instances of seed {seed}, {left} without sets: {words}")
    return 1 if wrong else 0


if __name__ == "__main__":
    numbers = [int(x) for x in sys.argv[1:]]
    sys.exit(main(numbers[0] if numbers else 1000, numbers[1] if len(numbers) > 1 else 0))
