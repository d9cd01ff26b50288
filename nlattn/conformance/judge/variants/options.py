"""Options that were read as others: every value that the operator's row knows, and common slips."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from nlattn.conformance.case import Case
from nlattn.conformance.judge.variants.base import Call, Variant
from nlattn.conformance.judge.variants.formats import coarser, rounded
from nlattn.conformance.judge.variants.roundings import Rounding, settings
from nlattn.conformance.table import find
from nlattn.conformance.truth.bounds import wide

DEFAULT = "with the default in place of "
"""How a variant begins that takes an option of 0 for one that is not given."""
GUESS = re.compile(r" = [-0-9.e+\[\], ]+ in place of [-0-9.e+\[\], ]+(, its [a-z]+)?$")
"""A number in place of another, or several, which may fit by chance."""
_SLIPS: dict[str, Callable[[float], float]] = {
    "reciprocal": lambda x: 1 / x, "square": lambda x: x * x, "root": lambda x: abs(x) ** 0.5,
    "double": lambda x: 2 * x, "half": lambda x: x / 2,
}  # fmt: skip
"""What is computed of an option, or not, by mistake."""
_OFF = (-1, 1, -2, 2)
MOST_STEPS = 40
"""Steps of an iteration that is stopped too soon."""


def others(case: Case) -> Iterator[Variant]:
    """Variants of a case with one option of another value."""
    for name, x in case.options.items():
        if x == 0 and name in case.spec.cases.zeros:
            words = f"{DEFAULT}{name} = 0, as if 0 were nothing"
            yield Variant(words, (), partial(_with, name, None))
    found = dict[str, Variant]()
    for name, value in values(case):
        words, own = f"with {name} = {shown(value)}", _own(case, name)
        if name in case.options or type(own) is type(value) is int:
            words += f" in place of {shown(own)}{_slip(value, own)}"
        found.setdefault(words, Variant(words, (), partial(_with, name, value)))
    yield from found.values()
    yield from _narrow(case)


@lru_cache(maxsize=64)
def _narrow(case: Case) -> list[Variant]:
    """One option, or a single number such as the default scale, in less precision."""
    arrays = {n: x for n, x in wide(case.arrays).items() if n not in case.directions}
    call = Call(case.op, arrays, dict(case.options), case.dtype)
    forms, found = coarser(case.dtype), list[Variant]()
    for name, x in case.options.items():
        for form in forms if type(x) is float else ():
            narrow = partial(_with, name, float(rounded(np.asarray(x), form)))
            found.append(Variant(f"with {name} {form.words}", (), narrow))
    for stage in settings(case.op, call) if forms else ():
        for form in forms if stage.words.strip("`") not in case.options else ():
            one = Rounding(stage, "kept", form)
            found.append(Variant(one.name, (), partial(one, case.op)))
    return found


def _own(case: Case, name: str) -> object:
    """What an option is in a case, or by default."""
    return case.options.get(name, _taken(case.spec.name).get(name))


def values(case: Case) -> Iterator[tuple[str, Any]]:
    """Options and what else they may be."""
    now = case.options
    for name, known in _known(case.spec.name):
        for value in known:
            likely = name in now or isinstance(value, (str, bool, int))
            if likely and not _same(value, now.get(name)):
                yield name, value
    for name, own in case.spec.options.items():
        if name not in now:  # the default was to be taken
            yield name, own
            default = _taken(case.spec.name).get(name)
            if isinstance(default, (int, float)):
                yield from ((name, type(default)(y)) for y in (default / 2, 2 * default))
    for name, x in now.items():
        if type(x) is float and x:
            made = (slip(x) for slip in _SLIPS.values())
            yield from ((name, y) for y in made if y != x)
    for name in {**now, **dict(_known(case.spec.name))}:
        yield from ((name, y) for y in _whole(_own(case, name)))
    if "steps" in _taken(case.spec.name) and "steps" not in case.spec.cases.ways:
        yield from (("steps", n) for n in range(MOST_STEPS))


def _whole(x: Any) -> Iterator[Any]:
    """Whole numbers that are one or two off; of several one, or all."""
    if type(x) is int:
        yield from (y for by in _OFF if (y := x + by) >= 0)
    elif isinstance(x, list) and x and all(type(y) is int for y in x):
        for by in _OFF:
            made = [[*x[:i], y + by, *x[i + 1 :]] for i, y in enumerate(x)]
            yield from (y for y in (*made, [y + by for y in x]) if min(y) >= 0)


def _slip(value: object, own: object) -> str:
    """What of an option a number is, in words."""
    if type(value) is not float or type(own) is not float or not own:
        return ""
    return next((f", its {word}" for word, slip in _SLIPS.items() if slip(own) == value), "")


def shown(value: object) -> str:
    """A value in a sentence."""
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _with(name: str, value: object, call: Call) -> Any:
    return call.given(**{name: value})()


@cache
def _known(op: str) -> list[tuple[str, list[Any]]]:
    """Options of a row's recipes, and all values that these have."""
    spec = find(op)
    found: dict[str, list[Any]] = {}
    for recipe in (*(r for some in spec.cases.choices for r in some), *spec.cases.recipes):
        for name, value in recipe.options.items():
            if name not in spec.cases.ways and not name.startswith("return_"):
                some = found.setdefault(name, [])
                some += [value] if not any(_same(value, x) for x in some) else []
    for name, some in found.items():
        own = spec.options.get(name, _taken(op).get(name))
        if own is not None and not any(_same(own, x) for x in some):
            some.append(own)
    return [*found.items()]


@cache
def _taken(op: str) -> dict[str, Any]:
    """Options of the operator and their defaults, those of the oracle first."""
    spec = find(op)
    return _defaults(spec.function()) | _defaults(spec.oracle())


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _same(x: object, y: object) -> bool:
    return type(x) is type(y) and x == y
