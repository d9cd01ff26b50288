"""Searches are judged by what they find, over seeds: never by comparing indices.

On each of `SEEDS` pictures what a backend found and what the oracle's search found, of as many
iterations, are given their faults: matches their regret (mean score gap to the best key) and how
many queries miss their best key; the outputs of attention that searches for itself their distance
from what a search of all keys would give. If both search equally well, either is the worse one as
often as the other, so that the number of pictures on which the backend is worse exceeds `MOST`
with a chance below `ALARM`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import comb
from typing import Any

import numpy as np

from nlattn.conformance.backends.perform import Reply
from nlattn.conformance.backends.process import Died
from nlattn.conformance.case import Array, Case, dtype_of
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.table import TABLE, find
from nlattn.conformance.truth.bounds import wide
from nlattn.conformance.truth.transcription import transcription
from nlattn.oracle.dense import attention
from nlattn.oracle.patchmatch import patchmatch, scores

DTYPES = ("float64", "float32")
SEEDS = 20
ALARM = 1e-3
"""Chance of blaming a search that is as good as ours, of both tests of matches together."""


@dataclass(frozen=True)
class SearchJudge:
    """An operator that searches."""

    op: str
    options: dict[str, Any]
    faults: Callable[[Case, Array], dict[str, float]]
    """Of a result by name, 0 for the best there is."""


def tail(worse: int, of: int) -> float:
    """Chance of at least so many heads of so many fair coins."""
    return float(sum(comb(of, i) for i in range(worse, of + 1)) / 2**of)


MOST = max(c for c in range(SEEDS + 1) if tail(c, SEEDS) > ALARM / 2)


def verdict_name(op: str, dtype: str) -> str:
    """As a case's name."""
    return f"{op}/search/{dtype}/own"


def picture(search: SearchJudge, seed: int, dtype: str) -> Case:
    """Waves and noise, and the same a few pixels further on with other noise; noise as values."""
    rng = np.random.default_rng([seed, 5])
    y, x = np.mgrid[:8, :9]
    waves = [np.cos(a * y + b * x + c) for a, b, c in rng.uniform(0.1, 0.9, (4, 3))]
    q = np.stack(waves, -1) + 0.1 * rng.standard_normal((8, 9, 4))
    k = np.roll(q, rng.integers(1, 5, 2), (0, 1)) + 0.1 * rng.standard_normal(q.shape)
    arrays = {"q": q, "k": k}
    if "v" in find(search.op).arrays:
        arrays["v"] = rng.standard_normal((8, 9, 3))
    return Case(
        f"{search.op}/search/{dtype}/seed-{seed}", search.op, "forward", dtype,
        {name: x.astype(dtype_of(dtype)) for name, x in arrays.items()},
        {**search.options, "seed": seed}, "smoke", seed,
    )  # fmt: skip


def search_verdict(subject: Any, search: SearchJudge, dtype: str) -> Verdict:
    """Validity and faults of what a backend finds."""
    base = Verdict(verdict_name(search.op, dtype), "pass", ratio=0.0, output="seeds")
    worse: dict[str, int] = {}
    for seed in range(SEEDS):
        case = picture(search, seed, dtype)
        try:
            reply: Reply = subject.ask(case)
        except Died as end:
            return replace(base, status=end.status, detail=str(end), seed=seed)
        if reply.unsupported:
            return replace(base, status="unsupported", detail=reply.unsupported)
        if reply.raised:
            refused = subject.capabilities.refused(reply.raised)
            status: Any = "unsupported" if refused else "fail"
            return replace(base, status=status, detail=f"raised {reply.raised}", seed=seed)
        out = reply.outputs["out"]
        wrong = "; ".join(reply.flaws) or invalid(case, out)
        if wrong:
            return replace(base, status="fail", detail=wrong, seed=seed)
        mine = ours(search.op, seed, dtype)
        for name, size in search.faults(case, out).items():
            worse[name] = worse.get(name, 0) + (not size <= mine[name])
    base = replace(base, ratio=max(worse.values()) / MOST)
    bad = [f"{what} is worse on {n} of {SEEDS} seeds" for what, n in worse.items() if n > MOST]
    if not bad:
        return base
    detail = f"{', '.join(bad)}; an equal search has a chance below {ALARM} of that"
    return replace(base, status="fail", detail=detail)


@cache
def ours(op: str, seed: int, dtype: str) -> dict[str, float]:
    """Faults of the oracle's search."""
    case = picture(SEARCHES[op], seed, dtype)
    found = transcription(op, wide(case.arrays), case.options)
    return SEARCHES[op].faults(case, np.asarray(found))


def invalid(case: Case, out: Array) -> str:
    """What is wrong with a result, whatever was found."""
    matches = case.spec.cases.result == "index"
    last, name = (1, "index") if matches else (3, "out")
    if out.shape != (8, 9, last):
        return f"{name} has shape {out.shape}, not (8, 9, {last})"
    if out.dtype.kind not in "biuf" and out.dtype.name != "bfloat16":
        return f"{name} has dtype {out.dtype}"
    if matches and (out.dtype.kind not in "iu" or not ((out >= 0) & (out < 72)).all()):
        return "index holds what is no key: expected integers from 0 to 71 for 72 queries"
    return ""


def _of_matches(case: Case, index: Array) -> dict[str, float]:
    """Scores are equal within a millionth of the largest."""
    q, k = (x.reshape(-1, x.shape[-1]) for x in wide(case.arrays).values())
    every = np.asarray(scores(q, k))
    gap = every.max(1) - every[np.arange(len(every)), index[..., 0].ravel()]
    return {
        "regret": float(gap.mean()),
        "recall": float((gap > 1e-6 * abs(every).max()).mean()),
    }


def _of_scram(case: Case, out: Array) -> dict[str, float]:
    """Beside attention to all keys."""
    flat = [x.reshape(-1, x.shape[-1]) for x in wide(case.arrays).values()]
    return _distance(out, attention(*flat, scale=case.options["scale"]))


def _of_psal(case: Case, out: Array) -> dict[str, float]:
    """Beside attention to the matches of an exact search."""
    arrays = wide(case.arrays)
    how = {name: case.options[name] for name in ("patch", "topk")}
    index = patchmatch(arrays["q"], arrays["k"], score="neg_l2", method="exact", **how).index
    best = transcription("psal", {**arrays, "field.index": index}, {"patch": how["patch"]})
    return _distance(out, best)


def _distance(out: Array, best: Array) -> dict[str, float]:
    error = (out.astype(np.float64).ravel() - best.ravel()) ** 2
    return {"the output's error": float(np.sqrt(error.mean()))}


_FAULTS = {"matches": _of_matches, "all keys": _of_scram, "nearest patch": _of_psal}
SEARCHES = {
    spec.name: SearchJudge(
        spec.name, dict(spec.cases.search.options), _FAULTS[spec.cases.search.by]
    )
    for spec in TABLE
    if spec.cases.search is not None
}


def searches(
    subject: Any, ops: tuple[str, ...], dtypes: tuple[str, ...] | None
) -> Iterator[Verdict]:
    """Verdicts for float64 and float32 of some of `SEARCHES`, where these are asked for."""
    able = subject.capabilities
    for search in (SEARCHES[op] for op in ops):
        for dtype in DTYPES:
            if dtypes is not None and dtype not in dtypes:
                continue
            if able.operators is not None and search.op not in able.operators:
                continue
            if dtype in able.dtypes:
                yield search_verdict(subject, search, dtype)
