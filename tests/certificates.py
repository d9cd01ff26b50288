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
from operator import itemgetter, mul
from typing import Any
from unittest.mock import patch

import numpy as np

import nlattn
from nlattn.engines import certified as engine
from nlattn.engines.sensitivity import Keys
from nlattn.engines.whitened import U, factor
from nlattn.runtime import threads

Array = np.ndarray[Any, Any]
Rows = list[list[int]]
EPSILONS = (0.02, 0.1, 0.3, 0.5, 1.0)
KINDS = ("plain", "rows", "columns", "both", "copies", "low rank", "subnormal", "largest", "near")


def integers(*arrays: Array, least: int = 0) -> list[Rows]:
    """Rows of all arrays times one power of two, as integers; it is ``2^least`` or more."""
    ratios = [[[x.as_integer_ratio() for x in row] for row in X.tolist()] for X in arrays]
    powers = [d.bit_length() - 1 for rows in ratios for row in rows for _, d in row]
    power = max([least, *powers])
    return [
        [[n << (power - d.bit_length() + 1) for n, d in row] for row in rows] for rows in ratios
    ]


def solved(K: Rows) -> tuple[list[list[int] | None], int]:
    """For every key k the query ``det G^+ k`` of it, None for keys of zeros; and ``det``.

    That query gives k the largest weight in squares that any query gives it, its leverage
    ``k.G^+ k``. A maximal set of independent columns spans the same rows' space of scores.
    """
    d, basis = len(K[0]), pivots(K)
    columns = [[row[c] for row in K] for c in basis]
    G = [[sum(map(mul, a, b)) for b in columns] for a in columns]
    adjugate, det = _adjugate(G)
    found: list[list[int] | None] = []
    for row in K:
        y, part = [0] * d, [row[c] for c in basis]
        for c, line in zip(basis, adjugate, strict=True):
            y[c] = sum(map(mul, line, part))
        found.append(y if any(row) else None)
    return found, det


def pivots(rows: Rows) -> list[int]:
    """The first columns that are independent, by elimination without fractions."""
    left, found, last = [row for row in rows if any(row)], list[int](), 1
    for c in range(len(rows[0])):
        done = len(found)
        pivot = next((i for i in range(done, len(left)) if left[i][c]), None)
        if pivot is None:
            continue
        left[done], left[pivot] = left[pivot], left[done]
        top = left[done]
        for i in range(done + 1, len(left)):
            head = left[i][c]
            left[i] = [(top[c] * x - head * y) // last for x, y in zip(left[i], top, strict=True)]
        last = top[c]
        found.append(c)
    return found


def _adjugate(G: Rows) -> tuple[Rows, int]:
    """``det G^-1`` and ``det`` of a positive definite matrix of integers."""
    r, last = len(G), 1
    A = [[*row, *(int(i == j) for j in range(r))] for i, row in enumerate(G)]
    for c, top in enumerate(A):
        for i in range(r):
            if i != c:
                head = A[i][c]
                A[i] = [(top[c] * x - head * y) // last for x, y in zip(A[i], top, strict=True)]
        last = top[c]
    return [row[r:] for row in A], last


def dots(q: list[int], K: Rows) -> list[int]:
    """Scores of all keys."""
    return [sum(map(mul, q, row)) for row in K]


def told(K: Array, exact: Rows, *, prefixes: bool = False) -> bool:
    """Whether the library sees all directions of keys, and of all prefixes."""
    whole = Keys.of(K)
    rank = len(pivots([exact[j] for j in np.flatnonzero(whole.some)] or [[0]]))
    if not rank or whole.factor.rank < rank or not prefixes:
        return whole.factor.rank >= rank
    rows = np.zeros((len(K), whole.X.shape[1]))
    rows[whole.some] = whole.X
    return all(
        factor(np.ascontiguousarray(rows[:i])).rank >= len(pivots(exact[:i]))
        for i in range(1, len(K) + 1)
    )


def weights(scores: list[int], p: int) -> tuple[list[int], int]:
    """``|s|^p``, and their sum."""
    powers = [abs(s) ** p for s in scores]
    return powers, sum(powers)


def reaches(part: int, whole: int, eps: float) -> bool:
    """Whether ``part / whole >= eps``, exactly."""
    if not whole or part / whole < eps * (1 - 1e-12):  # integers are divided to the last bit
        return False
    number, by = eps.as_integer_ratio()
    return part * by >= number * whole


def below(x: float, part: int, whole: int) -> bool:
    """Whether ``x < part / whole``, by more than ``2^-50`` of it, exactly."""
    number, by = x.as_integer_ratio()
    return number * whole << 50 < by * part * ((1 << 50) - 1)


def above(x: float, part: int, whole: int) -> bool:
    """Whether ``x > part / whole``, by more than ``2^-50`` of it, exactly."""
    number, by = x.as_integer_ratio()
    return number * whole << 50 > by * part * ((1 << 50) + 1)


def ratio(a: int, b: int) -> float:
    """``a / b``, of any size."""
    try:
        return a / b
    except OverflowError:
        return float("inf")


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
    names = {"universal_set": chosen.upper}
    low: Array = np.zeros(len(K))
    if p == 2 or rng.random() < 1 / 3:  # else mostly the same weights, found more slowly
        low, names["sensitivity_bounds"] = nlattn.sensitivity_bounds(K, p)
    inside = {int(j) for j in chosen.keys}
    (exact,) = integers(K)
    if not told(K, exact):
        yield UNTOLD, ""
        return
    tried = [q for q in solved(exact)[0] if q is not None]
    tried += [[int(x) for x in rng.integers(-3, 4, K.shape[1])] for _ in range(2)]
    most = [(0.0, 0, 1)] * len(K)
    for q in tried:
        powers, total = weights(dots(q, exact), p)
        if total:
            shares = ((part / total, part, total) for part in powers)
            most = [max(a, b, key=itemgetter(0)) for a, b in zip(most, shares, strict=True)]
    for j, (share, part, total) in enumerate(most):
        if j not in inside and reaches(part, total, eps):
            yield "universal_set", f"lacks key {j} of weight {share} for eps={eps}"
        for name, high in names.items():
            if below(float(high[j]), part, total):
                yield name, f"upper bound {high[j]} of key {j} is below its weight {share}"
        if p == 2 and above(float(low[j]), part, total):
            yield "sensitivity_bounds", f"lower bound {low[j]} of key {j} is above {share}"
    if rng.random() < 0.3 and told(K, exact, prefixes=True):
        yield from causal(K, exact, eps, p)


def causal(K: Array, exact: Rows, eps: float, p: int) -> Iterator[Failure]:
    """Sets of all prefixes."""
    support = nlattn.universal_set(K, eps, p=p, causal=True).support
    for i in range(len(K)):
        row = {int(j) for j in support.indices[support.indptr[i] : support.indptr[i + 1]]}
        prefix = exact[: i + 1]
        for q in filter(None, solved(prefix)[0]):
            powers, total = weights(dots(q, prefix), p)
            for j, part in enumerate(powers):
                if j not in row and reaches(part, total, eps):
                    words = f"row {i} lacks key {j} of weight {part / total}, eps={eps}"
                    yield "causal", words


STATED = 1e-10
"""Of eps: what `heavy_attention` says that its sums, of a factor of the keys, may be off."""


def heavy(rng: np.random.Generator, K: Array, p: int) -> Iterator[Failure]:
    """Entries, their values and sums, of queries of the same range."""
    Q = keys(rng, str(rng.choice(KINDS)), K.dtype)
    d = min(Q.shape[1], K.shape[1])
    Q, K = np.ascontiguousarray(Q[:, :d]), np.ascontiguousarray(K[:, :d])
    eps = float(rng.choice(EPSILONS))
    A = nlattn.heavy_attention(Q, K, eps, p=p)
    got = A.rows(np.arange(len(Q))).tolist() if len(K) else [[]] * len(Q)
    unit = float(np.finfo(K.dtype).eps)
    near = 64 * p * (d + len(K)) * U
    (queries,), (rows,) = integers(Q), integers(K)
    for i, q in enumerate(queries):
        scores = dots(q, rows)
        sizes = dots([abs(a) for a in q], [[abs(b) for b in row] for row in rows])
        top, largest = max(map(abs, scores), default=0), max(sizes, default=0)
        powers, total = weights(scores, p)
        for j, score in enumerate(scores):
            if not score:
                continue
            # a score whose terms cancel, beside the row's largest, has the digits that are left
            worst = 4 * d * U * max(ratio(sizes[j], abs(score)), ratio(largest, top))
            sure, share = near + 2 * p * worst, powers[j] / total
            if sure > 1 / 2:
                continue
            if share >= eps * (1 + sure) and got[i][j] == 0:
                yield "heavy_attention", f"lacks entry {i, j} of {share}, eps={eps}"
            if got[i][j] and share < eps * (1 - max(sure, STATED)):
                yield "heavy_attention", f"has entry {i, j} of {share}, eps={eps}"
            if got[i][j] and abs(got[i][j] - share) > share * (sure + 2 * unit):
                yield "heavy_attention", f"entry {i, j} is {got[i][j]}, not {share}"


def stream(rng: np.random.Generator, K: Array) -> Iterator[Failure]:
    """Streams cut and merged anywhere."""
    eps = float(rng.choice(EPSILONS))
    n, d = K.shape
    cut = int(rng.integers(0, n + 1))
    whole = nlattn.LeverageStream(d, eps).extend(np.split(K[:cut], [cut // 2]))
    whole.merge(nlattn.LeverageStream(d, eps, first=cut).update(K[cut:]))
    kept = set(whole.result().index.tolist())
    (exact,) = integers(K)
    queries, det = solved(exact)
    for j, (q, row) in enumerate(zip(queries, exact, strict=True)):
        if q and j not in kept and reaches(dots(q, [row])[0], det, eps):
            yield "LeverageStream", f"lacks key {j}, eps={eps}"


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
    queries, rows, ((one,),) = integers(Q, K, np.ones((1, 1)), least=511)
    digits, tiny = np.finfo(K.dtype).nmant, -int(np.finfo(K.dtype).minexp)
    largest = max((abs(x) for row in (*queries, *rows) for x in row), default=0)
    # the least normal number, and squares that the units of a call do not hold
    least = (one**2 >> tiny) + (largest**2 >> 960) + 1
    for i, q in enumerate(queries):
        if score == "dot":
            values = dots(q, rows)
            sizes = dots([abs(a) for a in q], [[abs(b) for b in row] for row in rows])
        else:
            sizes = [sum((a - b) ** 2 for a, b in zip(q, row, strict=True)) for row in rows]
            values = [-x for x in sizes]
        best, j = max(values), int(got.index[i, 0])
        if j < 0:
            yield "nearest_keys", f"has no key of query {i}"
            continue
        room = 8 * (d + 2) * (max(sizes[j], sizes[values.index(best)]) + (least << digits))
        if (best - values[j]) << digits > room and np.isfinite(got.score[i, 0]):
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
    with patch.multiple(engine, _FEW=0, _MANY=0):  # a tree of few keys is tried, too
        out, lse, missed = nlattn.certified_attention(
            Q, K, V, tolerance=tolerance, scale=4.0, return_lse=True, return_missed=True
        )
    mpmath.mp.dps = 60
    values = [[mpmath.mpf(x) for x in row] for row in V.tolist()]
    queries, rows, ((one,),) = integers(Q, K, np.ones((1, 1)))
    for i in range(n):
        scores = [mpmath.mpf(4 * s) / one**2 for s in dots(queries[i], rows)]
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
    p = int(rng.choice([1, 2, 2, 2, 2, 2, 2, 3, 4]))  # of 2 they take a third of the time
    parts: list[Callable[[], Iterator[Failure]]] = [
        lambda: universal(rng, K, p),
        lambda: heavy(rng, K, p),
        lambda: stream(rng, K) if kind not in ("both", "near") else iter(()),
        lambda: nearest(rng, K),
    ]
    if number % 100 == 0:
        parts.append(lambda: certified(rng, number))
    for part in parts:
        try:
            for name, words in part():
                yield name, f"p={p}, {kind}: {words}", K
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            yield type(error).__name__, f"p={p}, {kind}: {error} at {where.name}", K


@threads.serial_blas  # as a whole on a helping thread: no call has to ask for one
def _some(numbers: range, seed: int) -> list[tuple[int, str, str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [(i, *failure) for i in numbers for failure in tried(i, seed)]


def main(count: int, seed: int) -> int:
    """Try instances; print what is wrong, at most three of each kind."""
    wrong: Counter[str] = Counter()
    left = 0
    nlattn.set_threads(1)
    for first in range(0, count, 100):
        for number, name, words, K in _some(range(first, min(first + 100, count)), seed):
            if name == UNTOLD:
                left += 1
                continue
            wrong[name] += 1
            if wrong[name] <= 3:
                print(f"{number}: {name}: {words}\n  k = {K.tolist()}", flush=True)
    found = dict(wrong) or "nothing wrong"
    print(f"{count} instances of seed {seed}, {left} without sets: {found}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    numbers = [int(x) for x in sys.argv[1:]]
    sys.exit(main(numbers[0] if numbers else 1000, numbers[1] if len(numbers) > 1 else 0))
