"""Searches are judged by what they find, over seeds: never by comparing indices.

On each of `SEEDS` pictures a backend's matches and the oracle's, of as many iterations, are given
their regret (mean score gap to the best key) and recall (share of queries whose best key was
found). If both search equally well, either is the worse one as often as the other, so that the
number of pictures on which the backend is worse exceeds `MOST` with a chance below `ALARM`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from math import comb
from typing import Any

import numpy as np

from nlattn.conformance.case import Array, Case, dtype_of
from nlattn.conformance.judge import Verdict
from nlattn.conformance.perform import Reply
from nlattn.conformance.plain import transcription
from nlattn.conformance.process import Died
from nlattn.oracle.patchmatch import scores

SEEDS = 20
ALARM = 1e-3
"""Chance of blaming a search that is as good as ours, of both tests together."""
_OPTIONS = {"iterations": 2}


def tail(worse: int, of: int) -> float:
    """Chance of at least so many heads of so many fair coins."""
    return float(sum(comb(of, i) for i in range(worse, of + 1)) / 2**of)


MOST = max(c for c in range(SEEDS + 1) if tail(c, SEEDS) > ALARM / 2)


def picture(seed: int, dtype: str) -> Case:
    """Waves and noise, and the same a few pixels further on with other noise."""
    rng = np.random.default_rng([seed, 5])
    y, x = np.mgrid[:8, :9]
    waves = [np.cos(a * y + b * x + c) for a, b, c in rng.uniform(0.1, 0.9, (4, 3))]
    q = np.stack(waves, -1) + 0.1 * rng.standard_normal((8, 9, 4))
    k = np.roll(q, rng.integers(1, 5, 2), (0, 1)) + 0.1 * rng.standard_normal(q.shape)
    arrays = {"q": q.astype(dtype_of(dtype)), "k": k.astype(dtype_of(dtype))}
    options = {**_OPTIONS, "seed": seed}
    return Case(
        f"patchmatch/search/{dtype}/seed-{seed}", "patchmatch", "forward", dtype, arrays, options,
        "smoke", seed,
    )  # fmt: skip


def search_verdict(subject: Any, dtype: str) -> Verdict:
    """Validity, regret and recall of a backend's PatchMatch."""
    name = f"patchmatch/search/{dtype}/regret-and-recall"
    base = Verdict(name, "pass", ratio=0.0, output="seeds")
    worse = {"regret": 0, "recall": 0}
    for seed in range(SEEDS):
        case = picture(seed, dtype)
        try:
            reply: Reply = subject.ask(case)
        except Died as end:
            return replace(base, status=end.status, detail=str(end), seed=seed)
        if reply.unsupported:
            return replace(base, status="unsupported", detail=reply.unsupported)
        if reply.raised:
            return replace(base, status="fail", detail=f"raised {reply.raised}", seed=seed)
        index, all_scores = reply.outputs["out"], table(case)
        wrong = invalid(index, all_scores)
        if wrong:
            return replace(base, status="fail", detail=wrong, seed=seed)
        mine, theirs = ours(seed, dtype), quality(index, all_scores)
        worse["regret"] += theirs[0] > mine[0]
        worse["recall"] += theirs[1] < mine[1]
    base = replace(base, ratio=max(worse.values()) / MOST)
    bad = [f"{what} is worse on {n} of {SEEDS} seeds" for what, n in worse.items() if n > MOST]
    if not bad:
        return base
    detail = f"{', '.join(bad)}; an equal search has a chance below {ALARM} of that"
    return replace(base, status="fail", detail=detail)


@cache
def ours(seed: int, dtype: str) -> tuple[float, float]:
    """Regret and recall of the oracle's search."""
    case = picture(seed, dtype)
    index = transcription("patchmatch", wide_keys(case), case.options)
    return quality(index, table(case))


def wide_keys(case: Case) -> dict[str, Array]:
    """Queries and keys in float64."""
    return {name: x.astype(np.float64) for name, x in case.arrays.items()}


def table(case: Case) -> Array:
    """All scores, (n, m)."""
    q, k = (x.reshape(-1, x.shape[-1]) for x in wide_keys(case).values())
    return np.asarray(scores(q, k))


def invalid(index: Array, all_scores: Array) -> str:
    """What is wrong with matches, whatever their quality."""
    n, m = all_scores.shape
    if index.shape != (8, 9, 1):
        return f"index has shape {index.shape}, not (8, 9, 1)"
    if index.dtype.kind not in "iu" or not ((index >= 0) & (index < m)).all():
        return f"index holds what is no key: expected integers from 0 to {m - 1} for {n} queries"
    return ""


def quality(index: Array, all_scores: Array) -> tuple[float, float]:
    """Regret and recall; scores are equal within a millionth of the largest."""
    found = all_scores[np.arange(len(all_scores)), index[..., 0].ravel()]
    gap = all_scores.max(1) - found
    return float(gap.mean()), float((gap <= 1e-6 * abs(all_scores).max()).mean())


def searches(subject: Any, dtypes: tuple[str, ...] | None) -> Iterator[Verdict]:
    """A verdict for float64 and float32, where these are asked for."""
    about = subject.capabilities
    for dtype in ("float64", "float32"):
        if dtypes is not None and dtype not in dtypes:
            continue
        if "patchmatch" not in about.get("operators", ["patchmatch"]):
            continue
        if dtype in about.get("dtypes", [dtype]):
            yield search_verdict(subject, dtype)
