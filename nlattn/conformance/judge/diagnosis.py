"""What went wrong: failing results beside the catalogue of wrong variants.

A variant explains results if it leaves a tenth of their error at most, and no more than rounding
makes of a number of their size. Of several the one that leaves least is named, or all that leave
the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from nlattn.conformance.case import Array, Case, dtype_of
from nlattn.conformance.eight_bit import dequantised
from nlattn.conformance.judge import by_formula, combined, recomputed, structure, variants
from nlattn.conformance.judge.amounts import amounts
from nlattn.conformance.judge.hidden import hidden
from nlattn.conformance.judge.measure import (
    Effort,
    Lazy,
    call_of,
    distance,
    results,
    rms,
    slack,
    variants_made,
)
from nlattn.conformance.judge.narrow import narrowed
from nlattn.conformance.judge.per_head import per_head
from nlattn.conformance.judge.promises import promised
from nlattn.conformance.judge.roundings import less_precise
from nlattn.conformance.judge.sight import by_sight
from nlattn.conformance.judge.slopes import Slopes, Way, changed, slopes, whole
from nlattn.conformance.judge.variants import changes, codes, detached, gradients, options
from nlattn.conformance.judge.variants.options import DEFAULT
from nlattn.conformance.truth.arithmetic import precision
from nlattn.conformance.truth.bounds import allowed, exact, ratios

Results: TypeAlias = Mapping[str, Array]
_OF_NAN = (
    "NaN", "masked_rows", "maximum", "nothing", "no key", "empty", "float16", "log", "length",
    "sinks", "after the root", "in the norm", "floor", "eps", "rank", "row", "exponential",
)  # fmt: skip
"""Words of names that explain numbers that are not finite."""
_ALIKE = 1e-10
"""The share of an error that is left by chance at most: what is wrong may round as it likes."""
SAME = "your output equals ours "
"""How a diagnosis begins that names a mistake."""


def diagnose(
    case: Case,
    got: Mapping[str, Array],
    stages: Mapping[str, Array] | None = None,
    two: bool = True,
    effort: Effort | None = None,
) -> str:
    """What happened, as a sentence; empty if nothing is known that explains it.

    `stages` are intermediate results that a backend exposes, named as in `oracle.dense.Stages`.
    `two` says whether two mistakes at once are tried where no single one explains a result. Names
    that earlier failures have, by `effort`, are tried first; then all, until that is over.
    """
    effort = effort or Effort()
    with np.errstate(all="ignore"), effort.spent():
        said = _diagnosis(dequantised(case), got, stages, two, effort)
    if said.startswith(SAME):
        effort.names.update(said.removeprefix(SAME).split(" or "))
    return said


def _diagnosis(
    case: Case,
    got: Mapping[str, Array],
    stages: Mapping[str, Array] | None,
    two: bool,
    effort: Effort,
) -> str:
    want = exact(case)
    got = {name: np.asarray(x, np.float64) for name, x in got.items() if x is not None}
    said = [structure.bisect(case, stages)] if stages else []
    if any(name not in got or got[name].shape != x.shape for name, x in want.items()):
        said.append(structure.shapes(want, got))
    else:
        said.append(
            structure.selection(case, got)
            or _sentence(narrowed(case, _wrong(case, want, got), want, got))
            or _sentence(_explanations(case, got, _again(case, effort.names)))
            or _sentence(_explanations(case, got, _ways(case).within(effort)))
            or _sentence(_explanations(case, got, _in_some(case, want, got, effort)))
            or structure.padding(case, want, got)
            or _sentence(per_head(case, want, got, effort))
            or by_sight(case, want, got)
            or _beside_nan(case, want, got, effort)
            or _sentence(combined.in_part(case, want, got, effort))
            or structure.multiples(case, want, got)
            or _sentence(combined.other_number(case, want, got))
            or _sentence(hidden(case, want, got, effort))
            or structure.unwritten(case, want, got)
            or _sentence(_of_stages(case, want, got, effort, new=two))
            or _sentence(_explanations(case, got, _held(case).within(effort)))
            or _sentence(_in_those_alone(case, want, got, effort))
            or _sentence(_of_saved(case, want, got, effort, new=two))
            or _sentence(_of_formulas(case, want, got, effort, new=two))
            or _sentence(_of_amounts(case, want, got, effort, new=two))
            or structure.describe(case, want, got)
            or _sentence(_of_parts(case, want, got, effort, new=two))
            or (_sentence(combined.pair(case, want, got, effort)) if two else "")
            or ("" if promised(case) else structure.only(case, want, got))
        )
    return "; ".join(filter(None, said))


def _beside_nan(
    case: Case, want: Mapping[str, Array], got: Mapping[str, Array], effort: Effort
) -> str:
    """A variant that is 0 where results are NaN: queries that see no key, divided by nothing."""
    bad = {name: np.isnan(got[name]) & np.isfinite(x) for name, x in want.items()}
    if case.kind != "forward" or not any(x.any() for x in bad.values()):
        return ""
    filled = {name: np.where(bad[name], 0, x) for name, x in got.items() if name in bad}
    found = _sentence(_explanations(case, filled, _ways(case).within(effort)))
    return f"{found}; queries that see no key get NaN" if found else ""


def _tells(case: Case, name: str, wrong: Array) -> bool:
    """Whether what a variant gives is its own: much empties a set, fills it, or makes NaN of all.

    Gradients are finite.
    """
    if case.kind != "forward":
        return bool(np.isfinite(wrong).all())
    if case.spec.cases.result == "set" and wrong.all():
        return False
    overflows = any(word in name for word in ("NaN", "maximum", "float16"))
    return overflows or bool(wrong[np.isfinite(wrong)].any())


def _sentence(found: list[str]) -> str:
    return SAME + " or ".join(found) if found else ""


def _explanations(
    case: Case, got: Mapping[str, Array], ways: Iterable[Way], most: int = 3
) -> list[str]:
    """Names of the variants that leave least of the error, common traps first."""
    unit = precision(dtype_of(case.dtype)).unit
    # weights of eight bits have errors of their own
    part, near = (0.1, 4.0) if case.codes is None else (0.5, 1.2)
    left: dict[str, float] = {}
    want = exact(case)
    with np.errstate(all="ignore"):
        for name, measure in ways:
            theirs, ours = measure(got), measure(want)
            error = distance(theirs, ours)
            if isinstance(measure, Slopes) and measure.least(theirs) > part * error:
                continue
            wrong = measure(None)
            rest = distance(theirs, wrong)
            told = _tells(case, name, wrong)
            by_chance = _ALIKE * error if np.isfinite(error) else 0.0
            if told and rest <= min(part * error, max(slack(case) * rms(wrong), by_chance)):
                left[name] = min(rest, left.get(name, rest))
    left = _apt(left, want, got)
    plain = {
        n: rest
        for n, rest in left.items()
        if not n.startswith("as if ") and not options.GUESS.search(n)
    }
    ungiven = {n: rest for n, rest in left.items() if n.startswith("as if ")}
    left = plain or ungiven or left  # an option not looked at mostly has a better name
    least = min(left.values(), default=0.0)
    said = [n for n, rest in left.items() if rest <= near * least + unit * 1e-3]
    twice = {n for n in said if " in place of" in n and n.partition(" in place of")[0] in said}
    twice |= {n for n in said for plainer in said if n.startswith(f"{plainer}, ")}
    said = [n for n in said if n not in twice]
    stems = [*dict.fromkeys(map(_stem, said))][:most]  # a block may be of any size
    said = [n for n in said if _stem(n) in stems]
    return [n for n in said if n.startswith(DEFAULT)] or said


def _stem(name: str) -> str:
    return name.rstrip("0123456789")


def _apt(left: dict[str, float], want: Results, got: Results) -> dict[str, float]:
    """Of names that fit those that speak of NaN, where nothing but NaN is wrong."""
    finite = {n: np.isfinite(got[n]) & np.isfinite(x) for n, x in want.items() if n in got}
    with np.errstate(all="ignore"):
        off = [abs(got[n] - want[n])[some].max(initial=0) for n, some in finite.items()]
        size = [abs(want[n])[some].max(initial=0) for n, some in finite.items()]
    missing = any((np.isnan(x) & np.isfinite(got[n])).any() for n, x in want.items() if n in got)
    if all(some.all() for some in finite.values()) or max(off) > 1e-3 * max(size):
        return left
    words = ("NaN", "masked_rows") if missing else _OF_NAN
    return {n: rest for n, rest in left.items() if any(word in n for word in words)}


@lru_cache(maxsize=64)
def _ways(case: Case) -> Lazy[Way]:
    """All variants that make sense for a case, by name."""
    return Lazy({"forward": _forward, "vjp": _vjp, "jvp": _jvp}[case.kind](case))


def _again(case: Case, names: set[str]) -> Iterator[Way]:
    """Those variants that have one of these names."""
    if not names:
        return
    if case.kind == "forward":
        call = call_of(case)
        for variant in _known(case):
            if variant.name in names and (made := results(case, variant, call)) is not None:
                yield variant.name, whole(made, precision(dtype_of(case.dtype)).huge)
    elif case.kind == "vjp":
        some = (*_known(case), *detached.paths(case))
        yield from slopes(case, [v for v in some if v.name in names])


def _known(case: Case) -> list[variants.Variant]:
    return [*variants.of(case.op), *options.others(case)]


@lru_cache(maxsize=64)
def _held(case: Case) -> Lazy[Way]:
    """Gradients that leave out a path."""
    return Lazy(slopes(case, detached.paths(case)) if case.kind == "vjp" else iter(()))


def _forward(case: Case) -> Iterator[Way]:
    huge = precision(dtype_of(case.dtype)).huge
    for name, made in codes.wrong(case):
        yield name, whole(made, huge)
    for variant, made in variants_made(case).within(Effort()):
        yield variant.name, whole(made, huge)


def _vjp(case: Case) -> Iterator[Way]:
    """Gradients of variants along random directions; then what goes wrong in gradients alone."""
    yield from slopes(case, _known(case))
    for name, made in _of_gradients(case).within(Effort()):
        yield name, whole(made)


@lru_cache(maxsize=64)
def _of_gradients(case: Case) -> Lazy[tuple[str, dict[str, Array]]]:
    want = exact(case)
    made = gradients.wrong(case, want)
    return Lazy(x for x in made if all(x[1][n].shape == y.shape for n, y in want.items()))


def _in_some(case: Case, want: Results, got: Results, effort: Effort) -> Iterator[Way]:
    """What goes wrong in gradients, made in those alone that are wrong."""
    wrong = _wrong(case, want, got)
    if case.kind == "vjp" and 0 < len(wrong) < len(want) and all(got[n].any() for n in wrong):
        for name, made in _of_gradients(case).within(effort):
            given = {n: made[n] if n in wrong else x for n, x in want.items()}
            yield f"{name}, in {' and '.join(wrong)} alone", whole(given)


@lru_cache(maxsize=64)
def _known_of(case: Case, names: tuple[str, ...]) -> Lazy[Way]:
    """Gradients of these names alone of variants."""
    also = f", in {' and '.join(names)} alone"
    made = slopes(case, (*_known(case), *detached.paths(case)), names)
    return Lazy((f"{name}{also}", slope) for name, slope in made)


def _in_those_alone(case: Case, want: Results, got: Results, effort: Effort) -> list[str]:
    """Variants that some gradients alone are of, in cases too large to try formulas in.

    Names of earlier failures are tried whatever it takes, then all.
    """
    names = _wrong(case, want, got)
    if case.kind != "vjp" or len(names) == len(want) or combined.pairs(case) <= by_formula.LARGEST:
        return []
    ways = _known_of(case, names)
    before = (way for way in ways.within(Effort()) if way[0] in effort.names)
    found = _explanations(case, got, before) if effort.names else []
    return found or _explanations(case, got, ways.within(effort))


def _jvp(case: Case) -> Iterator[Way]:
    """What goes wrong in changes alone; then variants along the case's own directions."""
    want = exact(case)
    for name, made in changes.wrong(case, want):
        if all(made[n].shape == x.shape for n, x in want.items()):
            yield name, whole(made)
    for variant in _known(case):
        if made := changed(case, variant):
            yield variant.name, whole(made)


@lru_cache(maxsize=64)
def _by_formula(case: Case, names: tuple[str, ...]) -> Lazy[Way]:
    return Lazy(by_formula.ways(case, names, _known(case)))


@lru_cache(maxsize=64)
def _without_a_part(case: Case, names: tuple[str, ...]) -> Lazy[Way]:
    return Lazy(by_formula.without_a_part(case, names))


def _of_formulas(case: Case, want: Results, got: Results, effort: Effort, new: bool) -> list[str]:
    """Changes of the oracle's formulas that explain those results that are wrong."""
    return _first(case, got, _by_formula(case, _wrong(case, want, got)), effort, new)


def _of_parts(case: Case, want: Results, got: Results, effort: Effort, new: bool) -> list[str]:
    """Parts of stages that are left out."""
    return _first(case, got, _without_a_part(case, _wrong(case, want, got)), effort, new)


def _first(case: Case, got: Results, ways: Lazy[Way], effort: Effort, new: bool) -> list[str]:
    """Those that explain results; names of earlier failures are tried first, others if `new`."""
    before = (way for way in ways.within(effort) if way[0] in effort.names) if effort.names else ()
    found = _explanations(case, got, before)
    if not found and new and combined.pairs(case) <= by_formula.LARGEST:
        found = _explanations(case, got, ways.within(effort), most=2)
    return found


@lru_cache(maxsize=64)
def _from_saved(case: Case, names: tuple[str, ...]) -> Lazy[Way]:
    return Lazy(recomputed.ways(case, _known(case), names))


def _of_saved(case: Case, want: Results, got: Results, effort: Effort, new: bool) -> list[str]:
    """What is wrong in weights that gradients make again; names of earlier failures, or `new`.

    Where all that is wrong is 0 it was left out, and its place says more.
    """
    names, bounds = _wrong(case, want, got), allowed(case)
    zero = all(not got[n][ratios(got[n], want[n], bounds[n]) > 1].any() for n in names)
    if zero or combined.pairs(case) > by_formula.LARGEST:
        return []
    return _first(case, got, _from_saved(case, names), effort, new)


def _of_stages(case: Case, want: Results, got: Results, effort: Effort, new: bool) -> list[str]:
    return less_precise(case, _wrong(case, want, got), want, got, effort, new)


def _of_amounts(case: Case, want: Results, got: Results, effort: Effort, new: bool) -> list[str]:
    return amounts(case, _wrong(case, want, got), want, got, effort, new)


def _wrong(case: Case, want: Results, got: Results) -> tuple[str, ...]:
    right = structure.fine(case, want, got)
    return tuple(n for n in want if n not in right)
