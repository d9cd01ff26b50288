"""The picture of a sweep: work and time over n, with slopes and cliffs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nlattn._types import JsonObject
from nlattn.scaling.growth import growth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
_MARKERS = "os^Dv<>"
_SLOPES = ("n", "n log n", "n^1.5", "n^2")
_INK = "#22252a"


def draw(report: JsonObject) -> Figure:
    """Left, work over ``c n log n``: flat or falling is within the law; right, seconds."""
    from matplotlib.figure import Figure

    subjects = report["subjects"]
    timed = [s for s in subjects if s["time"] is not None]
    figure = Figure(figsize=(10.5 if timed else 5.4, 4.3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, 1 + bool(timed)))
    figure.patch.set_facecolor("white")
    _work(panels[0], subjects, report["claim"])
    if timed:
        _seconds(panels[1], subjects)
    for axes in panels:
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8, frameon=False, loc="upper left")
        axes.set_xlabel("queries n", color=_INK)
        axes.grid(True, which="major", lw=0.4, c="#cccccc")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def _work(axes: Axes, subjects: Sequence[JsonObject], claim: str) -> None:
    for i, one in enumerate(subjects):
        known = [row for row in one["sizes"] if row["work"] is not None]
        if not known:
            continue
        n = np.array([row["n"] for row in known])
        work = np.array([row["work"]["multiply_adds"] for row in known], float)
        ratio = work / growth(claim)(n)
        label = f"{one['name']}: {one['verdict']}" + " (law)" * (one["source"] == "law")
        axes.loglog(n, ratio / ratio[0], c=_colour(i), marker=_MARKERS[i % 7], ms=4, label=label)
    axes.axhline(1, c="#888888", lw=0.8, ls=":")
    axes.set_title(f"work over {claim}, 1 at the smallest n", fontsize=10, color=_INK)


def _seconds(axes: Axes, subjects: Sequence[JsonObject]) -> None:
    for i, one in enumerate(subjects):
        rows = [row for row in one["sizes"] if row["seconds"] is not None]
        if not rows:
            continue
        n = np.array([row["n"] for row in rows])
        middle, low, high = np.array([row["seconds"][:3] for row in rows], float).T
        bars = [middle - low, high - middle]
        axes.errorbar(n, middle, bars, c=_colour(i), lw=1.2, capsize=2, label=_slope(one))
        whole = np.array([row["queries_timed"] == row["n"] for row in rows])
        for some, face in ((whole, _colour(i)), (~whole, "white")):
            style: JsonObject = {
                "marker": _MARKERS[i % 7],
                "ms": 4,
                "ls": "",
                "mec": _colour(i),
                "mfc": face,
            }
            axes.plot(n[some], middle[some], **style)
        verdict = one["time"]["verdict"]
        for before, after, factor in () if verdict is None else verdict.cliffs:
            axes.axvspan(before, after, color=_colour(i), alpha=0.15, lw=0)
            text = f"x {factor:.2g}"
            place = (float(np.sqrt(before * after)), float(np.interp(after, n, middle)))
            axes.annotate(
                text, place, (0, -14), textcoords="offset points", fontsize=7, ha="center"
            )
    axes.set(xscale="log", yscale="log")
    _guides(axes)
    axes.set_title("seconds: median, quartiles; hollow: from some queries", fontsize=10, color=_INK)


def _guides(axes: Axes) -> None:
    """Slopes of the laws, from the lower left corner."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    start = max(left, 2.0)  # below, logarithms are no growth
    n = np.geomspace(start, max(right, start), 50)
    for law in _SLOPES:
        y = bottom * growth(law)(n) / growth(law)(start)
        inside = y <= max(top, y[0])
        axes.plot(n[inside], y[inside], c="#aaaaaa", lw=0.7, ls="--", zorder=0)
        axes.annotate(law, (n[inside][-1], y[inside][-1]), fontsize=7, color="#777777", ha="right")
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _slope(one: JsonObject) -> str:
    exponents = one["time"]["exponents"]
    if not exponents:
        return str(one["name"])
    tail = np.mean([e["exponent"].value for e in exponents[len(exponents) // 2 :]])
    return f"{one['name']}: n^{tail:.2f} above"


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]
