"""The report of a run: as data for ``report.json``, as a table for people."""

from __future__ import annotations

import platform
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nlattn import __version__, _check
from nlattn._types import Floats, JsonObject
from nlattn.cli.methods import MethodResult, Task
from nlattn.cli.output import table
from nlattn.cli.words import printable
from nlattn.engines.estimates import Estimate
from nlattn.ops.wish import Wish
from nlattn.quality import LEVELS, Quality
from nlattn.runtime import threads

_NOT_RUN = ("compile", "compare", "write")
_BESIDE = {
    "compare": "with exact attention on some queries; --rows 1 is fastest",
    "write": "the map, pictures and arrays",
}
_USELESS = 0.5
"""Of the best possible mass, or of the output: less, or more, is of no use."""
_PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "threadpoolctl", "matplotlib", "pillow", "tqdm")


def collect(
    task: Task,
    result: MethodResult,
    quality: Quality | None,
    every: dict[str, float] | None,
    dense: dict[str, float],
    options: Namespace,
    seconds: dict[str, float],
) -> JsonObject:
    """Everything that is known of a run."""
    run = {name: spent for name, spent in seconds.items() if name not in _NOT_RUN}
    n, m = (len(task.flat(x)) for x in (task.q, task.k))
    work = None if result.field is None else result.field.work
    return {
        "command": options.command,
        "input": task.name,
        "method": options.method,
        "query_grid": task.q.shape[:-1],
        "key_grid": task.k.shape[:-1],
        "queries": n,
        "keys": m,
        "channels": task.q.shape[-1],
        "dtype": str(task.q.dtype),
        "scale": task.scale,
        "seconds": {**seconds, "run": sum(run.values())},
        "scores": None if work is None else work.scores,
        "scores_per_query": None if work is None else work.scores / n,
        "quality": quality,
        "all_queries": every,
        "wish": _wish(result.wish, options),
        "missed": None if result.missed is None else _missed(result.missed),
        "flat": None if quality is None else quality.flat,
        "warnings": warnings(quality),
        "peak_bytes": result.peak,
        "map_bytes": None if result.map is None else result.map.nbytes,
        "dense": dense,
        "shown": [
            {"query": point, "keys": int((w > 0).sum()), "strongest": float(w.max())}
            for point, w in zip(task.queries, result.weights, strict=True)
        ],
        "threads": threads.threads(),
        "options": {
            name: value
            for name, value in vars(options).items()
            if name not in ("module", "function", "command")
        },
        **environment(),
    }


def _wish(wish: Wish | None, options: Namespace) -> JsonObject | None:
    """What was wished for and what was chosen, without arrays."""
    if wish is None:
        return None
    tried = [{**t.setting._asdict(), **t._asdict()} for t in wish.tried]
    for t in tried:
        del t["setting"]
    at = wish.tried.index(wish.chosen)
    return {"mass": options.mass, "reached": wish.reached, "chosen": tried[at], "tried": tried}


def _wished(w: JsonObject) -> list[tuple[str, str, str, str]]:
    t = w["chosen"]
    kept = f"{t['topk']} matches, {' and '.join(t['kind'])} of {t['window']}"
    cost = f"{t['keys']:.0f} keys and {t['scores']:.0f} scores a query"
    how = f"{t['method']} search, {kept}: {cost}"
    name = "mass as wished" if w["reached"] else "mass not reached, best"
    return [(name, f"{t['held']:.3f}", f"{t['low']:.3f} or more", f"of {w['mass']:g}; {how}")]


def _every(r: dict[str, float]) -> list[tuple[str, str, str, str]]:
    """What is known of all queries, not of a sample."""
    low = f"off by at most {r['mass_error']:.1g}; 5 % of queries hold {r['mass_p5']:.4f} or less"
    rows = [("mass, all queries", f"{r['mass']:.4f}", "", low)]
    if "recall" in r:
        rows.append(("recall, all queries", f"{r['recall']:.4f}", "", "best keys are proved"))
    looked = f"{r['certified_scores_per_query']:,.0f} keys and boxes looked at for a query"
    held = f"mass {r['certified_mass']:.4f} or more in every row, recall 1"
    note = f"the normalisers of all keys; {looked}; {held}"
    rows.append(("certified attention, seconds", f"{r['certified_seconds']:.2f}", "", note))
    return rows


def _missed(share: Floats) -> dict[str, float]:
    return {"mean": float(share.mean()), "max": float(share.max())}


def environment() -> JsonObject:
    """Versions and the kind of machine."""
    return {
        "versions": {"nlattn": __version__, "python": platform.python_version(), **versions()},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of the packages that matter, those that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def text(r: JsonObject, folder: Path) -> str:
    """The table that a run prints."""
    seconds = dict(r["seconds"])
    total, compiled = seconds.pop("run"), seconds.pop("compile", 0.0)
    parts = ", ".join(f"{name} {s:.2f}" for name, s in seconds.items() if name not in _NOT_RUN)
    beside = {name: s for name, s in seconds.items() if name in _NOT_RUN}
    rows = [
        ("", "value", "95 % interval", ""),
        ("seconds, run", f"{total:.2f}", "", parts),
        ("seconds, compile", f"{compiled:.2f}", "", "once; later runs read it from the cache"),
        *((f"seconds, {name}", f"{s:.2f}", "", _BESIDE[name]) for name, s in beside.items()),
    ]
    if r["scores_per_query"] is not None:
        exact = f"of {r['keys']:,} that exact attention takes"
        rows.append(("score evaluations per query", f"{r['scores_per_query']:.1f}", "", exact))
    if r["missed"] is not None:
        most, mean = r["missed"]["max"], r["missed"]["mean"]
        note = f"of each row's weight, proved; {mean:.2g} in the mean"
        rows.append(("misplaced at most", f"{most:.2g}", "", note))
    if r["quality"] is not None:
        rows += _quality(r["quality"])
    if r["wish"] is not None:
        rows += _wished(r["wish"])
    if r["all_queries"] is not None:
        rows += _every(r["all_queries"])
    if r["peak_bytes"]:
        note = f"this process with its libraries; the map itself {_check.size(r['map_bytes'] or 0)}"
        rows.append(("peak memory", _check.size(r["peak_bytes"]), "", note))
    dense = r["dense"]
    rows += [
        (
            "dense, predicted seconds",
            f"{dense['seconds']:.1f}",
            "",
            f"n x m scores, from {dense['measured_on_queries']} queries",
        ),
        ("dense, memory of its matrix", _check.size(dense["bytes"]), "", "if it were held"),
    ]
    grids = " x ".join(map(str, r["query_grid"])), " x ".join(map(str, r["key_grid"]))
    head = (
        f"{printable(r['input'])}, {r['method']} attention: {r['queries']:,} queries ({grids[0]}), "
        f"{r['keys']:,} keys ({grids[1]}), {r['channels']} channels, {r['dtype']}"
    )
    files = f"{printable(folder)}: {', '.join(r['files'])}"
    warning = "".join(f"\nwarning: {text}" for text in r["warnings"])
    return f"{head}\n\n{table(rows)}\n{warning}\n{files}"


def warnings(q: Quality | None) -> list[str]:
    """What makes a result useless, in words."""
    found: list[str] = []
    if q is None:
        return found
    if q.flat:
        found.append("attention is not peaked here: few keys stand for little of it")
    if q.mass.value < _USELESS * q.mass_best:
        found.append(
            f"the keys kept hold {q.mass.value:.2g} of exact attention, the best as many would "
            f"hold {q.mass_best:.2g}"
        )
    if q.output is not None and q.output.value > _USELESS:
        found.append(
            f"the output is off by {q.output.value:.0%} of its size; zeros would be off by 100%"
        )
    if found:
        found.append("this map does not stand for exact attention; --method dense computes it")
    return found


def _quality(q: Quality) -> list[tuple[str, str, str, str]]:
    where = "exact, on all queries" if q.rows >= q.of else f"on {q.rows} queries drawn"
    bounds = f"best {q.mass_best:.3f} and random {q.mass_random:.1g}"
    rows = [
        ("argmax recall", q.recall, f"strongest key found; {where}"),
        (f"recall of the {q.k} best", q.recall_k, "keys in the support"),
        ("score gap", q.gap, f"in deviations of the scores; 95th percentile {q.gap_p95:.2g}"),
        (
            "captured mass",
            q.mass,
            f"of exact attention; as many keys ({q.support:.1f}) hold at {bounds}",
        ),
    ]
    shares = " ".join(_short(x) for x in q.mass_above)
    if q.output is not None:
        rows.append(("output error", q.output, "relative, against float64 dense attention"))
    table_rows = [(name, _short(e.value), _interval(e), note) for name, e, note in rows]
    above = ("queries above", shares, "", f"of the mass {', '.join(map(str, LEVELS))}")
    return [*table_rows, above]


def _interval(e: Estimate) -> str:
    return f"{_short(e.low)} to {_short(e.high)}"


def _short(x: float) -> str:
    return f"{x:.3f}" if x == 0 or abs(x) >= 0.1 else f"{x:.2g}"
