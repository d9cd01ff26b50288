"""Results that no variant explains: where they are right, and what they are a multiple of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import STAGES, Case, dtype_of
from nlattn.conformance.judge.coarse import coarse
from nlattn.conformance.judge.relations import relation
from nlattn.conformance.judge.variants.base import Call
from nlattn.conformance.judge.variants.dense import stages as oracle_stages
from nlattn.conformance.judge.where import axes, place
from nlattn.conformance.truth.arithmetic import precision
from nlattn.conformance.truth.bounds import allowed, ratios, wide

_LEFT = 0.3
"""The share of an error that a factor may leave if it is to explain it."""


def slack(unit: float) -> float:
    """Relative error of a result that is explained; those of 16 bits are rounded once."""
    return 64 * unit if unit < 1e-6 else 3 * unit


def shapes(want: Mapping[str, Array], got: Mapping[str, Array]) -> str:
    """What is wrong with the shapes of results."""
    for name, x in want.items():
        if name not in got:
            return f"{name} is missing"
        if got[name].shape != x.shape:
            other = [n for n, y in want.items() if n != name and y.shape == got[name].shape]
            if other:
                return f"{name} has the shape of {other[0]}: are they swapped?"
            turned = got[name].shape == x.shape[::-1] or sorted(got[name].shape) == sorted(x.shape)
            more = ", its axes in another order" if turned else ""
            return f"{name} has shape {got[name].shape}, expected {x.shape}{more}"
    return ""


def selection(case: Case, got: Mapping[str, Array]) -> str:
    """Whether a set holds nothing, or everything; empty otherwise."""
    if case.spec.cases.result != "set" or not got["out"].size:
        return ""
    if not got["out"].any():
        return "your set is empty: nothing is selected"
    return "your set holds all keys: everything is selected" if got["out"].all() else ""


def describe(case: Case, want: Mapping[str, Array], got: Mapping[str, Array]) -> str:
    """Each result that is wrong: a multiple of ours, right in part, or of less precision."""
    unit = precision(dtype_of(case.dtype)).unit
    with np.errstate(all="ignore"):
        right = fine(case, want, got)
        said = {
            name: "right" if name in right else _one(case, want[name], got[name], unit, name)
            for name in want
        }
    wrong = {name: text for name, text in said.items() if text != "right"}
    if not wrong or not any(wrong.values()):
        return coarse(case, want, got)
    said = {name: text or "wrong" for name, text in said.items()}
    wrong = {name: text or "wrong" for name, text in wrong.items()}
    if len(set(wrong.values())) == 1 and len(wrong) == len(want):
        return f"your output is {next(iter(wrong.values()))}"
    return ", ".join(f"{name} is {text}" for name, text in said.items())


def multiples(case: Case, want: Mapping[str, Array], got: Mapping[str, Array]) -> str:
    """Results that are multiples of ours, where all that are wrong are; empty otherwise."""
    unit = precision(dtype_of(case.dtype)).unit
    with np.errstate(all="ignore"):
        wrong = [n for n in want if n not in fine(case, want, got)]
        said = {name: _multiple(case, want[name], got[name], unit) for name in wrong}
    return describe(case, want, got) if said and all(said.values()) else ""


def unwritten(case: Case, want: Mapping[str, Array], got: Mapping[str, Array]) -> str:
    """The description, where a result is 0 or NaN everywhere; empty otherwise."""
    return describe(case, want, got) if any(_stale(x, got[n]) for n, x in want.items()) else ""


def padding(case: Case, want: Mapping[str, Array], got: Mapping[str, Array]) -> str:
    """Results that are right but in rows beyond the lengths of their sequences; else empty."""
    bounds, wrong = allowed(case), list[str]()
    for name, x in want.items():
        bad = ratios(got[name], x, bounds[name]) > 1
        if not bad.any():
            continue
        if name not in ("out", "lse", "dq", "dk", "dv"):  # such as slopes of heads
            return ""
        of = "key_lengths" if name in ("dk", "dv") else "query_lengths"
        rows = bad if name == "lse" else bad.any(-1)
        lengths = case.arrays.get(of)
        if lengths is None or (rows & (np.arange(rows.shape[-1]) < lengths[..., None])).any():
            return ""
        due = "-inf" if name == "lse" else "0"
        wrong.append(f"{name} is right but for rows of padding, beyond {of}, which are to be {due}")
    return ", ".join(wrong)


def fine(case: Case, want: Mapping[str, Array], got: Mapping[str, Array]) -> list[str]:
    """Results within their bounds, of which nothing may be said; none if all of them are."""
    bounds = allowed(case)
    right = [n for n, x in want.items() if (ratios(got[n], x, bounds[n]) <= 1).all()]
    return right if len(right) < len(want) else []


def _one(case: Case, want: Array, got: Array, unit: float, name: str = "") -> str:
    size = float(abs(want[np.isfinite(want)]).max(initial=0))
    wrong = ~((abs(got - want) <= slack(unit) * size) | (got == want))
    wrong &= ~(np.isnan(got) & np.isnan(want))
    if not wrong.any():
        return "right"
    if (np.isnan(want) & ~np.isnan(got)).any():
        return (
            _stale(want, got)
            or relation(want, got, slack(unit))
            or _where(wrong, want, got, axes(case, want, name))
        )
    return (
        _stale(want, got)
        or _multiple(case, want, got, unit)
        or _where(wrong, want, got, axes(case, want, name))
        or relation(want, got, slack(unit))
    )


def only(case: Case, want: Mapping[str, Array], got: Mapping[str, Array]) -> str:
    """Which results are wrong, if others are right."""
    unit = precision(dtype_of(case.dtype)).unit
    with np.errstate(all="ignore"):
        right = fine(case, want, got)
        right = [n for n in want if n in right or _one(case, want[n], got[n], unit) == "right"]
    wrong = [name for name in want if name not in right]
    if wrong and all(_reordered(want[n], got[n], slack(unit)) for n in wrong):
        return f"{' and '.join(wrong)} holds ours, each row in another order"
    if not right or not wrong:
        return ""
    return (
        f"{' and '.join(wrong)} {'are' if len(wrong) > 1 else 'is'} wrong, not {' or '.join(right)}"
    )


def _reordered(want: Array, got: Array, share: float) -> bool:
    """Whether each row has our numbers, at other places."""
    if want.ndim < 1 or want.shape[-1] < 2:
        return False
    mine, ours = np.sort(got, -1), np.sort(want, -1)
    size = abs(ours[np.isfinite(ours)]).max(initial=0)
    with np.errstate(invalid="ignore"):
        return bool(((abs(mine - ours) <= share * size) | (mine == ours)).all())


def _stale(want: Array, got: Array) -> str:
    if not got.any() and want.any():
        return "0 everywhere: nothing was written"
    if np.isinf(got).all() and np.isfinite(want).all():
        return "infinite everywhere"
    return "NaN everywhere" if np.isnan(got).all() else ""


def _multiple(case: Case, want: Array, got: Array, unit: float) -> str:
    """``ours times a factor``, the factor in words where it is one of the operator's numbers."""
    if not np.isfinite(got).all() or not np.isfinite(want).all() or got.size < 2:
        return ""
    factor = float((got * want).sum() / max((want * want).sum(), 1e-300))
    rest = np.sqrt(((got - factor * want) ** 2).mean())
    if rest > slack(unit) * np.sqrt((got**2).mean()) or abs(factor) < 1e-12:
        return ""
    if rest > _LEFT * np.sqrt(((got - want) ** 2).mean()):
        return ""
    tolerance = max(slack(unit), 1e-9) * abs(factor)
    words = [name for name, x in numbers(case) if abs(x - factor) <= tolerance]
    number = (
        f"{factor:.6g}" if abs(factor - 1) > 1e-4 else f"1 {'+-'[factor < 1]} {abs(factor - 1):.2g}"
    )
    return f"ours times {words[0] if words else number}"


def numbers(case: Case) -> Iterator[tuple[str, float]]:
    """Factors that are forgotten or used twice."""
    yield "-1", -1.0
    yield from _of_options(case)
    arrays = case.arrays
    if {"q", "k"} <= arrays.keys():
        dims = len(case.spec.arrays["q"].split()) - 1
        q, k = arrays["q"], arrays["k"]
        n, m = (math.prod(x.shape[-dims - 1 : -1]) for x in (q, k))
        heads = math.prod(q.shape[: -dims - 1])
        numbers = {"d": q.shape[-1], "m": m, "n": n}
        numbers |= {"heads": heads, "n heads": n * heads} if heads > 1 else {}
        for name, x in numbers.items():
            if x > 1:
                yield f"{name}, which is {x}", float(x)
                yield f"1/{name}, with {name} = {x}", 1 / x
        if n != m:
            yield f"sqrt(m/n), with n = {n}, m = {m}: sqrt(n m) in place of m?", (m / n) ** 0.5
        d = q.shape[-1]
        if d > 1:
            yield f"sqrt(d), with d = {d}: a factor 1/sqrt(d) is missing", d**0.5
            yield f"1/sqrt(d), with d = {d}: once too often", d**-0.5
        for name, x in numbers.items():
            if x > 2:
                yield f"{name}/({name} - 1), with {name} = {x}: divided by {name} - 1?", x / (x - 1)
                yield f"sqrt({name}), with {name} = {x}", x**0.5
                yield f"1/sqrt({name}), with {name} = {x}", x**-0.5
    given = case.options.get("scale")
    if "q" in arrays and isinstance(given, float) and given:
        default = arrays["q"].shape[-1] ** -0.5
        yield (
            f"the default scale over {given:g}: scale = {given:g} is not looked at",
            default / given,
        )
    yield "2: added to a buffer that already held it, or counted twice", 2.0
    yield "1/2", 0.5
    yield "log 2", math.log(2)
    yield "1/log 2", 1 / math.log(2)


def _of_options(case: Case) -> Iterator[tuple[str, float]]:
    """Simple functions of options: one that is forgotten, or used twice."""
    for name, x in case.options.items():
        if type(x) not in (int, float) or x in (0, 1):
            continue
        yield f"1/{name}, with {name} = {x:g}: the {name} is missing", 1 / x
        yield f"{name}, {x:g}, once too often", float(x)
        yield f"{name} squared, {x:g} twice too often", float(x * x)
        yield f"1/{name}^2, with {name} = {x:g}: its square is missing", 1 / (x * x)
        if x > 0:
            yield f"sqrt({name}), with {name} = {x:g}", x**0.5
            yield f"1/sqrt({name}), with {name} = {x:g}: the root of {name} is missing", x**-0.5


def _where(wrong: Array, want: Array, got: Array, names: Sequence[str]) -> str:
    """Along which axis the wrong elements are the last ones, or the first, or of few places."""
    what = "NaN" if np.isnan(got[wrong]).all() else "0" if not got[wrong].any() else "wrong"
    where, _ = place(wrong, names)
    if not where:
        return ""
    if what == "wrong":
        return f"right, but not {where}"
    if not np.isfinite(want[wrong]).any():
        due = "NaN" if np.isnan(want[wrong]).all() else "infinite"
        return f"right but {what} {where}, where it should be {due}"
    tail = where.startswith("from") and "head" not in where and "batch" not in where
    left = ", as if the rest of a block were left out" if tail else ""
    return f"right but {what} {where}{left}"


def bisect(case: Case, stages: Mapping[str, Array]) -> str:
    """The first of the named stages that differs from ours; empty where an operator has none."""
    if not case.spec.cases.stages or case.kind != "forward":
        return ""
    ours = oracle_stages(Call(case.op, wide(case.arrays), case.options))._asdict()
    unit = precision(dtype_of(case.dtype)).unit
    names = {"output": "out"}
    right = ""
    for name in STAGES:
        if name not in stages:
            continue
        want, got = ours[names.get(name, name)], np.asarray(stages[name], float)
        if got.shape != want.shape:
            return f"stage {name} has shape {got.shape}, expected {want.shape}"
        size = abs(want[np.isfinite(want)]).max(initial=0)
        with np.errstate(invalid="ignore"):
            same = (abs(got - want) <= slack(unit) * size) | (got == want)
        if not same.all():
            index = tuple(int(i) for i in np.argwhere(~same)[0])
            values = f"got {got[index]:.6g}, want {want[index]:.6g}"
            after = f"{right} is right, " if right else ""
            return f"{after}{name} is the first stage that differs: at {list(index)} {values}"
        right = name
    return ""
