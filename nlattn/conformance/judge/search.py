"""Searches are judged by what they find, over seeds: never by comparing indices.

On each of `SEEDS` pictures what a backend found and what the oracle's search found, of as many
iterations, are given their faults: matches their regret (mean score gap to the best key) and how
many queries miss their best key; the outputs of attention that searches for itself their distance
from what a search of all keys would give. If both search equally well, either is the worse one as
often as the other, so that the number of pictures on which the backend is worse exceeds `MOST`
with a chance below `ALARM`. Pictures are of six `KINDS` in turn. Matches that go wrong with one of
them alone are a fault, too, and so are keys that are never found, `judge/places.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import comb
from typing import TYPE_CHECKING

import numpy as np

from nlattn._types import Array, JsonObject
from nlattn.conformance.backends.perform import Reply
from nlattn.conformance.backends.process import Died
from nlattn.conformance.case import Case, dtype_of
from nlattn.conformance.cases.arrays import lay
from nlattn.conformance.judge.places import Places
from nlattn.conformance.judge.readings import Readings
from nlattn.conformance.judge.verdict import Status, Verdict
from nlattn.conformance.table import TABLE, find
from nlattn.conformance.truth.bounds import wide
from nlattn.conformance.truth.transcription import transcription

if TYPE_CHECKING:
    from nlattn.conformance.runner import Subject
from nlattn.oracle.dense import attention
from nlattn.oracle.patchmatch import patches, patchmatch, scores
from nlattn.oracle.psal import known_patches

DTYPES = ("float64", "float32")
SEEDS = {"matches": 72}
"""Pictures by what faults are counted against; of all others `FEW`."""
FEW = 20
KINDS = ("plain", "strided", "other grid", "masked", "patches", "scores")
SCORES = ("neg_l2", "cosine", "absdot")
"""What is special about a picture: how arrays lie, a grid of keys of its own, hidden keys of which
two are asked for, patches of 3 x 3 that are compared, scores that are no products."""
QUERIES, OTHER = (8, 9), (7, 11)
ALARM = 1e-3
"""Chance of blaming a search that is as good as ours, of both tests of matches together."""


@dataclass(frozen=True)
class SearchJudge:
    """An operator that searches."""

    op: str
    options: JsonObject
    faults: Callable[[Case, Array], dict[str, float]]
    """Of a result by name, 0 for the best there is."""
    by: str
    """What faults are counted against."""
    grids: bool = True
    """Whether queries and keys lie on grids."""
    random: bool = True
    """Whether it draws."""


def tail(worse: int, of: int) -> float:
    """Chance of at least so many heads of so many fair coins."""
    return float(sum(comb(of, i) for i in range(worse, of + 1)) / 2**of)


def most(of: int) -> int:
    """On how many of so many pictures an equal search may be the worse one."""
    return max(c for c in range(of + 1) if tail(c, of) > ALARM / 4)


def verdict_name(op: str, dtype: str) -> str:
    """As a case's name."""
    return f"{op}/search/{dtype}/own"


HIDDEN = 1e3
"""Values of hidden keys, where others are of size 1."""
NEAR = 1e-6
"""Scores of unit vectors that count as equal."""


def kind_of(seed: int) -> str:
    """What is special about the picture of a seed."""
    return KINDS[seed % len(KINDS)]


def picture(search: SearchJudge, seed: int, dtype: str, kind: str = "") -> Case:
    """Waves and noise, and the same a few pixels further on with other noise; noise as values."""
    kind = kind or kind_of(seed)
    rng = np.random.default_rng([seed, 5])
    h, w = OTHER if kind == "other grid" else QUERIES
    y, x = np.mgrid[:16, :20]
    waves = [np.cos(a * y + b * x + c) for a, b, c in rng.uniform(0.1, 0.9, (4, 3))]
    whole = np.stack(waves, -1) + 0.1 * rng.standard_normal((16, 20, 4))
    down, right = rng.integers(1, 4, 2)
    q, k = whole[:8, :9], whole[down : down + h, right : right + w]
    arrays: dict[str, Array] = {"q": q, "k": k + 0.1 * rng.standard_normal(k.shape)}
    if (
        search.by == "matches" and kind != "scores"
    ):  # of one length, so that many keys are the best of some query
        arrays = {n: z / np.linalg.norm(z, axis=-1, keepdims=True) for n, z in arrays.items()}
    more: JsonObject = {"seed": seed} if search.random else {}
    if "v" in find(search.op).arrays:
        arrays["v"] = rng.standard_normal((h, w, 3))
    if kind == "masked" and search.by == "matches":
        arrays["key_mask"], more["topk"] = rng.random((h, w)) < 0.6, 2
    if kind == "patches" and search.by == "matches":
        more["patch"] = 3
    if kind == "scores" and search.by == "matches":
        more["score"] = SCORES[seed // len(KINDS) % len(SCORES)]
    if kind == "masked" and search.by == "nearest patch":  # whoever takes a hidden key shows it
        mask = np.ones((h, w), bool)
        mask[down : down + 2, right : right + 3] = False
        hidden = ~known_patches(mask, search.options["patch"])
        arrays["v"] = np.where(hidden[..., None], HIDDEN, arrays["v"])
        arrays["key_mask"] = mask
    if not search.grids:
        arrays = {name: z.reshape(-1, z.shape[-1]) for name, z in arrays.items()}
    cast = {n: z if z.dtype == bool else z.astype(dtype_of(dtype)) for n, z in arrays.items()}
    return Case(
        f"{search.op}/search/{dtype}/seed-{seed}", search.op, "forward", dtype,
        {n: lay(z, "strided" if kind == "strided" else "C") for n, z in cast.items()},
        {**search.options, **more}, "smoke", seed,
    )  # fmt: skip


def search_verdict(subject: Subject, search: SearchJudge, dtype: str) -> Verdict:
    """Validity and faults of what a backend finds."""
    base = Verdict(verdict_name(search.op, dtype), "pass", ratio=0.0, output="seeds")
    worse: dict[str, dict[str, int]] = {}
    places, readings = Places(), Readings(lambda case, index: _found(case, index)[1])
    seeds = SEEDS.get(search.by, FEW)
    for seed in range(seeds):
        case, reply = _asked(subject, search, seed, dtype)
        if isinstance(reply, Died):
            return replace(base, status=reply.status, detail=str(reply), seed=seed)
        if reply.unsupported:
            return replace(base, status="unsupported", detail=reply.unsupported)
        if reply.raised:
            refused = subject.capabilities.refused(reply.raised)
            status: Status = "unsupported" if refused else "fail"
            return replace(base, status=status, detail=f"raised {reply.raised}", seed=seed)
        out = reply.outputs["out"]
        if search.by == "matches" and out.shape[:2] == QUERIES and out.dtype.kind in "iu":
            readings.look(case, out)
        wrong = "; ".join(reply.flaws) or invalid(case, out)
        if wrong:
            said = readings.said()
            return replace(base, status="fail", detail=wrong, diagnosis=said, seed=seed)
        mine = ours(
            search.op, seed, bool({"patch", "score"} & {*case.options}) or "key_mask" in case.arrays
        )
        for name, size in search.faults(case, out).items():
            count = worse.setdefault(name, dict.fromkeys(KINDS, 0))
            count[kind_of(seed)] += not size <= 1.0001 * mine[name] + 1e-6
        if search.by == "matches":
            best, gap = _found(case, out)
            places.look(best, gap <= NEAR, case.arrays["k"].shape[:2])
    base = replace(base, ratio=max(sum(c.values()) for c in worse.values()) / most(seeds))
    bad = _too_often(worse, seeds) or places.never()
    if not bad:
        return base
    ratio = max(base.ratio, 1.01)
    return replace(base, status="fail", ratio=ratio, detail=bad, diagnosis=readings.said())


def _asked(
    subject: Subject, search: SearchJudge, seed: int, dtype: str
) -> tuple[Case, Reply | Died]:
    """A picture and the reply; as a plain one where a backend does not take what is special."""
    case = picture(search, seed, dtype)
    try:
        reply: Reply = subject.ask(case)
        if (reply.unsupported or reply.raised) and kind_of(seed) not in ("plain", "other grid"):
            case = picture(search, seed, dtype, "plain")
            reply = subject.ask(case)
    except Died as end:
        return case, end
    return case, reply


def _too_often(worse: dict[str, dict[str, int]], seeds: int) -> str:
    """Faults that a search as good as ours has on so many pictures too rarely."""
    said, each = [], seeds // len(KINDS)
    for what, count in worse.items():
        total = sum(count.values())
        if total > most(seeds):
            said.append(f"{what} is worse on {total} of {seeds} seeds")
        elif each > most(each):
            said += [
                f"{what} is worse on {n} of {each} seeds whose picture is of the kind {kind!r}"
                for kind, n in count.items()
                if n > most(each)
            ]
    return f"{', '.join(said)}; an equal search has a chance below {ALARM} of that" if said else ""


@cache
def ours(op: str, seed: int, special: bool = False) -> dict[str, float]:
    """Faults of the oracle's search, in float64."""
    plain = kind_of(seed) in ("masked", "patches", "scores") and not special
    case = picture(SEARCHES[op], seed, "float64", "plain" if plain else "")
    if SEARCHES[op].by == "chosen keys":
        return {"the output's error": 0.0}
    found = transcription(op, wide(case.arrays), case.options)
    return SEARCHES[op].faults(case, np.asarray(found))


def invalid(case: Case, out: Array) -> str:
    """What is wrong with a result, whatever was found."""
    matches = case.spec.cases.result == "index"
    last, name = (case.options.get("topk", 1), "index") if matches else (3, "out")
    dims = QUERIES if SEARCHES[case.op].grids else (72,)
    if out.shape != (*dims, last):
        return f"{name} has shape {out.shape}, not {(*dims, last)}"
    if out.dtype.kind not in "biuf" and out.dtype.name != "bfloat16":
        return f"{name} has dtype {out.dtype}"
    if not matches:
        shows = "key_mask" in case.arrays and abs(out).max() > HIDDEN / 10
        return "out holds values of keys that key_mask hides" if shows else ""
    m = int(np.prod(case.arrays["k"].shape[:2]))
    if out.dtype.kind in "iu" and (out == -1).any() and ((out >= -1) & (out < m)).all():
        return "index holds -1, no match, where there are enough keys that are not hidden"
    if out.dtype.kind not in "iu" or not ((out >= 0) & (out < m)).all():
        return f"index holds what is no key: expected integers from 0 to {m - 1} for 72 queries"
    if last > 1 and (out[..., 0] == out[..., 1]).any():
        return "index holds a key twice"
    hidden = ~case.arrays.get("key_mask", np.ones(m, bool)).ravel()
    return "index holds keys that key_mask hides" if hidden[out].any() else ""


def _found(case: Case, index: Array) -> tuple[Array, Array]:
    """The best key of every query, and how much worse the best that was found is."""
    arrays = wide(case.arrays)
    q, k = (patches(arrays[n], case.options.get("patch", 1)) for n in "qk")
    every = np.asarray(scores(q, k, score=case.options.get("score", "dot")))
    every[:, ~case.arrays.get("key_mask", np.ones(len(k), bool)).ravel()] = -np.inf
    kept = np.take_along_axis(every, index.reshape(len(every), -1), 1).max(1)
    return every.argmax(1), every.max(1) - kept


def _of_matches(case: Case, index: Array) -> dict[str, float]:
    """Of scores of unit vectors."""
    gap = _found(case, index)[1]
    return {"regret": float(gap.mean()), "recall": float((gap > NEAR).mean())}


def _of_scram(case: Case, out: Array) -> dict[str, float]:
    """Beside attention to all keys."""
    flat = [x.reshape(-1, x.shape[-1]) for x in wide(case.arrays).values()]
    return _distance(out, np.asarray(attention(*flat, scale=case.options["scale"])))


def _of_psal(case: Case, out: Array) -> dict[str, float]:
    """Beside attention to the matches of an exact search."""
    arrays = wide(case.arrays)
    how = {name: case.options[name] for name in ("patch", "topk")}
    mask = arrays.pop("key_mask", None)
    if mask is not None:
        how["key_mask"] = known_patches(mask, how["patch"])
    index = patchmatch(arrays["q"], arrays["k"], score="neg_l2", method="exact", **how).index
    best = transcription("psal", {**arrays, "field.index": index}, {"patch": case.options["patch"]})
    return _distance(out, best)


def _of_chosen(case: Case, out: Array) -> dict[str, float]:
    """Beside attention to the keys of largest leverage; keys are chosen, not drawn."""
    want = transcription(case.op, wide(case.arrays), case.options)
    error = _distance(out, np.asarray(want))["the output's error"]
    return {"the output's error": float(error > 1e-3)}


def _distance(out: Array, best: Array) -> dict[str, float]:
    error = (out.astype(np.float64).ravel() - best.ravel()) ** 2
    return {"the output's error": float(np.sqrt(error.mean()))}


_FAULTS = {
    "matches": _of_matches,
    "all keys": _of_scram,
    "nearest patch": _of_psal,
    "chosen keys": _of_chosen,
}
SEARCHES = {
    spec.name: SearchJudge(
        spec.name,
        dict(spec.cases.search.options),
        _FAULTS[spec.cases.search.by],
        spec.cases.search.by,
        "Hq" in spec.arrays["q"].split(),
        spec.cases.search.by != "chosen keys",
    )
    for spec in TABLE
    if spec.cases.search is not None
}


def searches(
    subject: Subject, ops: tuple[str, ...], dtypes: tuple[str, ...] | None
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
