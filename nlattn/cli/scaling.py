"""``nlattn scaling``: how the cost of operators grows."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec

from nlattn import _check
from nlattn._types import JsonObject
from nlattn.cli.output import Output, say, table, to_json
from nlattn.cli.report import environment
from nlattn.runtime import threads
from nlattn.scaling import report as reports
from nlattn.scaling import subject
from nlattn.scaling.growth import growth
from nlattn.scaling.judge import GrowthVerdict
from nlattn.scaling.models import Range
from nlattn.scaling.scene import Scene
from nlattn.scaling.sweep import Sweep, grids

_CLAIM = "n log n"
_DENSE = "attention"


def scaling(options: Namespace) -> int:
    """Sweep, judge, print; 1 if a claim on work (time, where that is unknown) or memory breaks."""
    claim = options.claim or _CLAIM
    for law in filter(None, (claim, options.claim_memory)):
        growth(law)
    subjects = [subject.find(name) for name in dict.fromkeys(options.operators)]
    sizes = _sizes(subjects, options)
    drawn = find_spec("matplotlib") is not None
    files = ["scaling.json", *["scaling.png"] * drawn]
    output = Output(options.out, files, force=options.force)
    found = _sweep(subjects, sizes, options)
    report = _report(found, [s.name for s in subjects], sizes, claim, options)
    output.write("scaling.json", lambda path: path.write_text(to_json(report) + "\n"))
    if drawn:
        from nlattn.scaling import figure

        output.write("scaling.png", lambda path: figure.draw(report).savefig(path, dpi=110))
    report["written"] = [str(output.folder / name) for name in output.commit()]
    if options.json:
        print(to_json(report))
    elif not options.quiet:
        print(_text(report))
    return int(any(_outgrows(one, options) for one in report["subjects"]))


def _sizes(subjects: list[subject.CostSubject], options: Namespace) -> list[tuple[int, int]]:
    """Grids that are asked for, or else show how the work of every subject grows."""
    first, last, points = (max(each) for each in zip(*(one.sides for one in subjects), strict=True))
    least, most = options.sizes or ((first, first), (last, last))
    return grids(least, most, options.points or points)


def _outgrows(one: JsonObject, options: Namespace) -> bool:
    """Whether a subject breaks a law that was claimed."""
    memory = one["memory"] and one["memory"]["verdict"].verdict
    return (options.claim is not None and one["verdict"] == "inconsistent") or (
        options.claim_memory is not None and memory == "inconsistent"
    )


def _sweep(
    subjects: list[subject.CostSubject], sizes: list[tuple[int, int]], options: Namespace
) -> Sweep:
    """Work, and all else unless it is not wanted; dense attention is timed for comparison."""
    also = [] if options.count else [subject.find(_DENSE)]
    everyone = [*subjects, *(s for s in also if s.name not in [o.name for o in subjects])]
    scenes = [Scene(grid, options.channels, options.seed) for grid in sizes]
    sweep = Sweep(
        everyone,
        scenes,
        runs=options.runs,
        budget=options.budget,
        seed=options.seed,
        say=say if sys.stderr.isatty() and not options.quiet else lambda _: None,
    )
    if not options.count:
        sweep.compile()
    sweep.count()
    if not options.count:
        sweep.time()
        sweep.measure()
    if sys.stderr.isatty() and not options.quiet:
        say("")
    return sweep


def _report(
    sweep: Sweep, names: list[str], sizes: list[tuple[int, int]], claim: str, options: Namespace
) -> JsonObject:
    at = None if options.predict is None else options.predict[0] * options.predict[1]
    dense = sweep.curves.get(_DENSE)
    return {
        "command": "scaling",
        "claim": claim,
        "claim_memory": options.claim_memory or claim,
        "grids": sizes,
        "channels": options.channels,
        "runs": options.runs,
        "seed": options.seed,
        "budget": options.budget,
        "subjects": [
            reports.subject(
                sweep.curves[n], claim, None if n == _DENSE else dense, at, options.claim_memory
            )
            for n in names
        ],
        "left_out": sorted({*sweep.left_out}),
        "threads": threads.threads(),
        **environment(),
    }


def _text(report: JsonObject) -> str:
    ends = [" x ".join(map(str, report["grids"][i])) for i in (0, -1)]
    head = (
        f"{len(report['grids'])} sizes, {ends[0]} to {ends[1]}, judged against {report['claim']}; "
        f"{report['threads']} threads"
    )
    parts = [head, table(_work(report))]
    if any(one["time"] for one in report["subjects"]):
        parts.append(table(_times(report)))
    if any(one["memory"] for one in report["subjects"]):
        parts.append(table(_memory(report)))
    if any(row["quality"] for one in report["subjects"] for row in one["sizes"]):
        parts.append(table(_quality(report)))
    parts += _notes(report)
    return "\n\n".join([*parts, ", ".join(report["written"])])


def _work(report: JsonObject) -> list[Sequence[str]]:
    beyond = "exponent beyond"
    rows: list[Sequence[str]] = [
        ("work", "source", f"c in c {report['claim']}", beyond, "verdict", "exact law")
    ]
    for one in report["subjects"]:
        for unit, v in one["verdicts"].items():
            law = one["law"] or "" if unit == "multiply_adds" else ""
            rows.append(_row(f"{one['name']}, {_words(one, unit)}", one["source"], v, law))
        if not one["verdicts"]:
            word = one["verdict"] or "undecided"
            rows.append(
                (one["name"], one["judged"] or "none", "", "", word, "its work is not known")
            )
        if one["instructions"] is not None:
            rows.append(
                _row(f"{one['name']}, instructions", "read", one["instructions"]["verdict"])
            )
        elif one["time"]:
            note = "this system does not let them be read"
            rows.append((f"{one['name']}, instructions", "not measured", "", "", "", note))
    return rows


def _words(one: JsonObject, unit: str) -> str:
    return "number returned" if one["source"] == "number" else unit.replace("_", "-")


def _row(name: str, source: str, v: GrowthVerdict, law: str = "") -> Sequence[str]:
    beyond = f"{v.excess:+.3f} ({v.low:+.3f} to {v.high:+.3f})"
    return name, source, f"{v.constant:.4g}", beyond, v.verdict, law


def _times(report: JsonObject) -> list[Sequence[str]]:
    first = ("time", "compile", "first touch", "steady", "last exponent", "laws", "verdict")
    rows: list[Sequence[str]] = [(*first, "faster than dense from")]
    for one in report["subjects"]:
        timed = [row for row in one["sizes"] if row["seconds"] is not None]
        if not timed:
            continue
        last, times = timed[-1], one["time"]
        steady = last["seconds"]
        verdict = times["verdict"]
        rows.append(
            (
                f"{one['name']}, n = {last['n']:,}",
                _seconds(times["compile"]),
                _seconds(last["first_touch"]),
                f"{_seconds(steady.median)} ({_seconds(steady.low)} to {_seconds(steady.high)})",
                _range(times["exponents"][-1]["exponent"]) if times["exponents"] else "",
                _believed(times["laws"]),
                "" if verdict is None else verdict.verdict,
                _crossover(one["crossover"], [row["n"] for row in timed]),
            )
        )
    return rows


def _memory(report: JsonObject) -> list[Sequence[str]]:
    claim = report["claim_memory"]
    rows: list[Sequence[str]] = [
        ("memory", "peak", "foretold by smaller sizes", f"beyond {claim}", "laws", "verdict")
    ]
    for one in report["subjects"]:
        memory = one["memory"]
        if memory:
            v = memory["verdict"]
            rows.append(
                (
                    f"{one['name']}, n = {memory['n']:,}",
                    _check.size(memory["measured"]),
                    _check.size(memory["predicted"]),
                    f"{v.excess:+.3f} ({v.low:+.3f} to {v.high:+.3f})",
                    _believed(memory["laws"]),
                    v.verdict,
                )
            )
    return rows


def _believed(laws: dict[str, float] | None) -> str:
    best = sorted((laws or {}).items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{law} {share:.0%}" for law, share in best)


def _quality(report: JsonObject) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("against dense attention", "argmax recall", "mass", "best mass", "output error")
    ]
    for one in report["subjects"]:
        for row in one["sizes"]:
            q = row["quality"]
            if q is not None:
                error = "" if q["error"] is None else _estimate(q["error"])
                figures = _estimate(q["recall"]), _estimate(q["mass"]), f"{q['mass_best']:.3f}"
                rows.append((f"{one['name']}, n = {row['n']:,}", *figures, error))
    return rows


def _notes(report: JsonObject) -> list[str]:
    notes = []
    for one in report["subjects"]:
        for unit, v in one["verdicts"].items():
            if v.part and v.verdict != "consistent":
                notes.append(f"{one['name']}, {_words(one, unit)}: {v.reason}")
        times, ahead = one["time"], one["predicted"]
        if times is not None and times["verdict"] is not None:
            if times["verdict"].verdict == "undecided":
                notes.append(f"{one['name']}: time is undecided: {times['verdict'].reason}")
            if times["unstable"]:
                sizes = ", ".join(f"{n:,}" for n in times["unstable"])
                notes.append(f"{one['name']}: unstable times at n = {sizes}; close other programs")
        if ahead is not None and ahead["seconds"] is not None:
            s = ahead["seconds"]
            held = "" if ahead["bytes"] is None else f", {_check.size(ahead['bytes'])}"
            notes.append(
                f"{one['name']} at n = {ahead['n']:,} will take {_seconds(s.value)} "
                f"({_seconds(s.low)} to {_seconds(s.high)}){held}"
            )
    if report["left_out"]:
        notes.append(
            f"left out for --budget {report['budget']:g}: "
            + ", ".join(f"{name} at n = {n:,} ({what})" for name, n, what in report["left_out"])
        )
    return ["\n".join(notes)] if notes else []


def _seconds(s: float) -> str:
    return f"{s:.2f} s" if s >= 1 else f"{1e3 * s:.3g} ms"


def _range(r: Range) -> str:
    return f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})"


def _estimate(e: Range) -> str:
    return f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})"


def _crossover(r: Sequence[float] | None, sizes: list[int]) -> str:
    if r is None:
        return ""

    def end(n: float) -> str:
        if n == 0:
            return f"below {sizes[0]:,}"
        return f"above {sizes[-1]:,}" if n == float("inf") else f"{n:,.0f}"

    ends = [end(x) for x in r]
    return ends[0] if len({*ends}) == 1 else f"{ends[0]} ({ends[1]} to {ends[2]})"
