"""The ways of computing an attention map, timed, and what the dense way would take."""

from __future__ import annotations

import functools
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import nlattn
from nlattn import images, quality
from nlattn._types import Field, Floats
from nlattn.cli.output import StageClock
from nlattn.files import npy
from nlattn.maps.base import AttentionMap
from nlattn.ops.wish import Wish

_CORNER = 9
_TRIAL = 256  # queries that predict the time of all
_LONG = 5.0  # seconds that are announced beforehand
_COMPONENTS = 2  # of a picture's features on a lattice: more, and most queries meet no key
_BLOCK = 1 << 28  # scores between two looks at the progress bar


@dataclass
class Task:
    """Arrays of one run, on grids or as sets, and what to show of them."""

    name: str
    q: Floats
    k: Floats
    v: Floats | None
    scale: float
    queries: list[tuple[int, int]]
    image: Floats | None = None

    def flat(self, x: Floats) -> Floats:
        """Array as a set, (n, channels)."""
        return x.reshape(-1, x.shape[-1])

    def corner(self) -> Task:
        """A small part that takes the same way through the code."""

        def cut(x: Floats) -> Floats:
            return x[:_CORNER] if x.ndim == 2 else x[:_CORNER, :_CORNER]

        v = None if self.v is None else cut(self.v)
        image = None if self.image is None else cut(self.image)
        return Task(self.name, cut(self.q), cut(self.k), v, self.scale, [(0, 0)], image)

    def shown(self, A: AttentionMap) -> Floats:
        """Rows of a map for the queries to show, on the grid of the keys."""
        return A.rows(self.points).reshape(-1, *self.k.shape[:-1])

    def output(self, A: AttentionMap, stages: StageClock) -> Floats | None:
        """What a map makes of the values, if there are any, on the grid of the queries."""
        if self.v is None:
            return None
        with stages("output"):
            return (A @ self.flat(self.v)).reshape(*self.q.shape[:-1], -1)

    @property
    def points(self) -> list[int]:
        """Raster indices of the queries to show."""
        width = self.q.shape[1] if self.q.ndim == 3 else 1
        return [row * width + column for row, column in self.queries]


@dataclass
class MethodResult:
    """What a method gave."""

    weights: Floats
    """(r, Hk, Wk) or (r, m) attention of the queries to show."""
    map: AttentionMap | None = None
    field: Field | None = None
    out: Floats | None = None
    peak: int | None = None
    operator: AttentionMap | None = None
    """The map where it is not to be saved."""
    missed: Floats | None = None
    """(n,) share of each row that may be misplaced."""
    mass: Floats | None = None
    """(n,) share of exact attention that the keys of each query hold, where all are judged."""
    wish: Wish | None = None
    """What was chosen for a share of exact attention."""


def scram(task: Task, options: Namespace, stages: StageClock) -> MethodResult:
    """Search, support, weights."""
    if options.mass is not None:
        return _wished(task, options, stages)
    with stages("search"):
        field = nlattn.patchmatch(
            task.q,
            task.k,
            candidates=options.candidates,
            iterations=options.iterations,
            topk=options.topk,
            scale=task.scale,
            seed=options.seed,
            progress=stages.part,
        )
    with stages("support"):
        support = nlattn.scram_support(field, kind=options.support, window=options.window)
    with stages("weights"):
        weighted = nlattn.scram_map(task.q, task.k, field=field, support=support, scale=task.scale)
    out = task.output(weighted, stages)
    return MethodResult(task.shown(weighted), weighted, field, out)


def _wished(task: Task, options: Namespace, stages: StageClock) -> MethodResult:
    """The setting that holds the share of exact attention that is wished for, or the best."""
    given = {"mass": options.mass, "scale": task.scale, "seed": options.seed}
    with stages("wish"):
        wish = nlattn.scram_for_mass(task.q, task.k, rows=max(options.rows, 2), **given)
    out = task.output(wish.map, stages)
    return MethodResult(task.shown(wish.map), wish.map, wish.field, out, wish=wish)


def lev(task: Task, options: Namespace, stages: StageClock) -> MethodResult:
    """Few keys for all queries, then the softmax over them."""
    q, k = task.flat(task.q), task.flat(task.k)
    with stages("selection"):
        index = nlattn.lev_keys(
            q, k, keys=options.kept, select=options.select, scale=task.scale, seed=options.seed
        )
    make = functools.partial(nlattn.lev_attention_map, index=index, scale=task.scale)
    return _of_map(task, stages, make)


def hamming(task: Task, options: Namespace, stages: StageClock) -> MethodResult:
    """The keys whose signs agree most; the scale of numbers has no place in it."""
    make = functools.partial(nlattn.hamming_attention_map, keys=options.kept, scale=options.scale)
    return _of_map(task, stages, make)


def permutohedral(task: Task, options: Namespace, stages: StageClock) -> MethodResult:
    """Of a picture, Gaussian weights of its first components; of arrays, the softmax's."""
    if task.image is None:
        make = functools.partial(
            nlattn.permutohedral_attention_map, weight="softmax", scale=task.scale
        )
        return _of_map(task, stages, make)
    how = {"gain": options.gain, "channels": _COMPONENTS}
    points = images.gaussian_points(task.q[..., :-1], scale=task.scale, **how)
    part = Task(task.name, *points, task.v, task.scale, task.queries, task.image)
    return _of_map(part, stages, nlattn.permutohedral_attention_map)


def dense(task: Task, options: Namespace, stages: StageClock) -> MethodResult:
    """Only what is asked for: rows of the queries to show, and the output if there are values."""
    q, k = task.flat(task.q), task.flat(task.k)
    with stages("weights"):
        exact = nlattn.attention_map(q, k, scale=task.scale)
        weights = task.shown(exact)
    out = None
    if task.v is not None and not options.only_shown:
        seconds = predict(task)["seconds"]
        if seconds > _LONG and not options.quiet:
            text = f"{len(q):,} x {len(k):,} scores: {seconds:.0f} s; --only-shown leaves them out"
            print(f"nlattn: {text}", file=sys.stderr)
        with stages("output"):
            out = _in_blocks(q, k, task.flat(task.v), task.scale, stages)
        out = out.reshape(*task.q.shape[:-1], -1)
    return MethodResult(weights, None, None, out, operator=exact)


def certified(task: Task, options: Namespace, stages: StageClock) -> MethodResult:
    """The output within a tolerance; rows of the queries to show are exact."""
    q, k = task.flat(task.q), task.flat(task.k)
    with stages("weights"):
        exact = nlattn.attention_map(q, k, scale=task.scale)
        weights = task.shown(exact)
    if task.v is None:
        return MethodResult(weights)
    with stages("output"):
        v = task.flat(task.v)
        given = {"scale": task.scale, "tolerance": options.tolerance, "progress": stages.part}
        out, missed = nlattn.certified_attention(q, k, v, **given, return_missed=True)
    return MethodResult(weights, out=out.reshape(*task.q.shape[:-1], -1), missed=missed)


def efficient(task: Task, _: Namespace, stages: StageClock) -> MethodResult:
    """Queries and keys share the scale, which is then a temperature of both softmaxes."""
    root = task.q.dtype.type(abs(task.scale) ** 0.5)
    make = nlattn.efficient_attention_map
    return _of_map(task, stages, lambda q, k, **grids: make(root * q, root * k, **grids))


def refined(task: Task, _: Namespace, stages: StageClock) -> MethodResult:
    """Products as they are: a factor on them changes nothing but the size of the output."""
    return _of_map(task, stages, nlattn.refined_self_attention_map)


def enla(task: Task, options: Namespace, stages: StageClock) -> MethodResult:
    """Amplification 6 and 128 features, as published; the scale has no place in it."""
    d = task.q.shape[-1]
    projection = nlattn.orthogonal_features(d, 128, options.seed).astype(task.q.dtype)
    return _of_map(task, stages, functools.partial(nlattn.enla_map, projection=projection))


def nonlocal_mean(task: Task, options: Namespace, stages: StageClock) -> MethodResult:
    """The softmax forms as dense attention, the others through their linear maps."""
    if options.pairwise.endswith("gaussian"):
        return dense(task, options, stages)
    weight = (
        None if options.weight is None else array(options.weight, "--weight").astype(task.q.dtype)
    )
    form = {"pairwise": options.pairwise, "weight": weight}
    return _of_map(task, stages, functools.partial(nlattn.nonlocal_mean_map, **form))


def array(path: Path, name: str) -> Floats:
    """The array in a ``.npy`` file, mapped into memory; ValueError says what is wrong with it."""
    try:
        x: Floats = npy.mapped("map", path, kinds="biufcV")
    except ValueError as error:
        text = f"{name} {path} is not a readable .npy file of one array"
        raise ValueError(f"{text}: {str(error).removeprefix('map: ')}") from None
    return x


def _of_map(task: Task, stages: StageClock, make: Callable[..., AttentionMap]) -> MethodResult:
    with stages("weights"):
        grids = {"query_grid": task.q.shape[:-1], "key_grid": task.k.shape[:-1]}
        one = make(task.flat(task.q), task.flat(task.k), **grids)
        weights = task.shown(one)
    return MethodResult(weights, one, None, task.output(one, stages))


def _in_blocks(q: Floats, k: Floats, v: Floats, scale: float, stages: StageClock) -> Floats:
    out = np.empty((len(q), v.shape[1]), v.dtype)
    step = max(256, _BLOCK // len(k))
    for top in stages.progress(range(0, len(q), step)):
        rows = slice(top, top + step)
        out[rows] = nlattn.attention(q[rows], k, v, scale=scale)
    return out


METHODS: dict[str, Callable[[Task, Namespace, StageClock], MethodResult]] = {
    "scram": scram,
    "lev": lev,
    "hamming": hamming,
    "permutohedral": permutohedral,
    "dense": dense,
    "certified": certified,
    "efficient": efficient,
    "refined": refined,
    "enla": enla,
    "nonlocal": nonlocal_mean,
}
_APPROXIMATE = ("scram", "lev", "hamming", "permutohedral")
"""Methods that mean to be dense attention; the others are operators of their own."""


def prepare(task: Task, options: Namespace) -> None:
    """Go the whole way with a small task, so that all is compiled."""
    small = task.corner()
    result = METHODS[options.method](small, options, StageClock(quiet=True))
    judge(small, result, options)
    judge_all(small, result, options)
    predict(small)


def judge(task: Task, result: MethodResult, options: Namespace) -> quality.Quality | None:
    """An approximate map against float64 dense attention, on sampled queries."""
    if result.map is None or options.method not in _APPROXIMATE:
        return None
    k = task.flat(task.k).astype(np.float64)
    q = np.zeros(task.flat(task.q).shape)  # memory is taken by the rows that are compared alone
    chosen = quality.sample(len(q), options.rows, options.seed)
    q[chosen] = task.flat(task.q)[chosen]
    exact = nlattn.attention_map(q, k, scale=task.scale)
    v = None if task.v is None else task.flat(task.v)
    best = min(8, len(k))
    return quality.compare(result.map, exact, v, rows=options.rows, seed=options.seed, k=best)


def judge_all(task: Task, result: MethodResult, options: Namespace) -> dict[str, float] | None:
    """Recall and mass over all queries: the best keys proved, the mass to the tolerance."""
    A = result.map
    if not options.every or A is None or options.method not in ("scram", "lev"):
        return None
    q, k = task.flat(task.q), task.flat(task.k)
    start = time.perf_counter()
    every = nlattn.certified_attention_map(q, k, scale=task.scale, tolerance=options.tolerance)
    seconds = time.perf_counter() - start
    found = quality.compare_all(A, every)
    result.mass = found.held
    return {
        "queries": found.queries,
        "recall": found.recall,
        "mass": found.mass,
        "mass_p5": found.mass_p5,
        "mass_error": found.mass_error,
        "tolerance": options.tolerance,
        "certified_seconds": seconds,
        "certified_scores_per_query": every.work.scores / len(q),
        "certified_mass": 1 - float(every.missed.max()),
    }


def exact_of_shown(task: Task, result: MethodResult) -> dict[str, Floats]:
    """Exact attention that the keys drawn hold, and that of the strongest of them, by query."""
    points, k = task.points, task.flat(task.k).astype(np.float64)
    q = task.flat(task.q)[points].astype(np.float64)
    rows = nlattn.attention_map(q, k, scale=task.scale).to_dense()
    drawn = result.weights.reshape(rows.shape)
    strongest = drawn.argmax(1)
    mass = np.where(drawn != 0, rows, 0).sum(1)
    return {"mass": mass, "exact": rows[np.arange(len(points)), strongest]}


def predict(task: Task) -> dict[str, float]:
    """Seconds of dense attention, measured on some queries, and bytes of its matrix."""
    q, k = task.flat(task.q), task.flat(task.k)
    v = k if task.v is None else task.flat(task.v).astype(k.dtype, copy=False)
    trial = np.ascontiguousarray(q[:: max(1, len(q) // _TRIAL)])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        nlattn.attention(trial, k, v, scale=task.scale)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": min(seconds) * len(q) / len(trial),
        "measured_on_queries": len(trial),
        "bytes": len(q) * len(k) * q.dtype.itemsize,
    }
