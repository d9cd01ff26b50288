"""What a backend says it can do, checked word by word, and the cases that it is therefore asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from nlattn._types import Function, JsonObject, Options
from nlattn.conformance.case import DTYPES, Case
from nlattn.conformance.cases.arrays import layout_of
from nlattn.conformance.cases.shapes import Shapes
from nlattn.conformance.eight_bit import QUANTISED, SCALES
from nlattn.conformance.table import FUNCTIONS, OpSpec, find, owner
from nlattn.conformance.truth.arithmetic import ACCUMULATE, PRODUCTS, RESULTS, WEIGHTS, Arithmetic

_F = TypeVar("_F", bound=Function)
_BUGS = ("AttributeError", "NameError", "KeyError", "IndexError", "ZeroDivisionError",
         "UnboundLocalError", "RecursionError", "MemoryError", "SystemExit", "LinAlgError",
         "FloatingPointError", "OverflowError", "WrongResult")  # fmt: skip
"""Exceptions that refuse nothing, unless a pattern of refusals says otherwise."""
_MISUSE = re.compile(
    r"TypeError: .*(unsupported operand type|object is not|object cannot be interpreted"
    r"|required positional argument|positional arguments?\b|indices must be|can't multiply"
    r"|can only concatenate|cannot unpack|only integer scalar arrays|only length-1 arrays"
    r"|not supported between instances|multiple values for argument)"
)
"""Python's and NumPy's own words for code that is wrong: these refuse nothing, either."""


def capable(**words: object) -> Callable[[_F], _F]:
    """A decorator that says what a plain function can do: ``@capable(dtypes=("float16",), d=64)``.

    Words are those of `Capabilities`; any other is a dimension, as in `cases.shapes`.
    """
    known = {k: x for k, x in words.items() if k in _WORDS}
    sizes = {k: x for k, x in words.items() if k not in _WORDS}

    def mark(function: _F) -> _F:
        function.capabilities = {**known, **({"shapes": sizes} if sizes else {})}  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; what it leaves out is tried."""

    operators: frozenset[str] | None = None
    """Operators, and gradients as ``qna_vjp``, forward mode as ``qna_jvp``."""
    dtypes: tuple[str, ...] = DTYPES
    options: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Operator to the options and optional arrays that it takes."""
    gradients: bool = True
    deterministic: bool | str = True
    """Whether a call gives the same bits again; "batch" if a head alone gives them, too."""
    forward_mode: bool = False
    """Whether operators that have one are asked for ``<op>_jvp``, too."""
    largest_n: int | None = None
    stages: bool = False
    shapes: Mapping[str, Shapes] = field(default_factory=dict)
    """Operator to the sizes that it takes."""
    refusals: tuple[str, ...] | None = None
    """Patterns of exceptions that mean "unsupported"; by default all but those of bugs do."""
    accumulate: str = "float32"
    """Format of sums of 16-bit numbers: "float32" or their "own"."""
    products: str = "own"
    """Of float32 matrices: "own", "tf32" or "3xtf32"."""
    compiles: bool = False
    """Whether the first call of each function, dtype and shape may take ten times as long."""
    scales: str = "head"
    """What shares a scale of inputs of eight bits: "tensor", "head", "row" or "block"."""
    weights: str = "e4m3"
    """Format in which a softmax's weights meet values of eight bits."""
    results: str = "bfloat16"
    """Dtype of results of inputs of eight bits."""
    told: Options = field(default_factory=dict)
    """The backend's own words."""

    @classmethod
    def of(cls, told: Options) -> Capabilities:
        """From a backend's words; ValueError names one that says nothing."""
        wrong = {*told} - _WORDS
        if wrong:
            raise ValueError(
                f"capabilities name {sorted(wrong)[0]!r}, expected some of "
                f"{', '.join(sorted(_WORDS))}"
            )
        found: JsonObject = {**told, "told": dict(told)}
        for name in ("operators", "dtypes", "refusals"):
            if isinstance(told.get(name), str):
                found[name] = (told[name],)
            if found.get(name) is not None:
                found[name] = tuple(found[name])
        if found.get("operators") is not None:
            found["operators"] = frozenset(_known("operators", found["operators"], _NAMES))
        found["dtypes"] = tuple(
            _known("dtypes", found.get("dtypes") or DTYPES, (*DTYPES, *QUANTISED))
        )
        options = found.get("options") or {}
        _known("options", options, _NAMES)
        found["options"] = {op: frozenset(taken) for op, taken in options.items()}
        found["shapes"] = {
            op: Shapes.of(x, dimensions(find(op)))
            for op, x in _by_operator(told.get("shapes") or {}, found.get("operators")).items()
        }
        _known("accumulate", [told.get("accumulate", "float32")], ACCUMULATE)
        for name, known in (("scales", SCALES), ("weights", WEIGHTS), ("results", RESULTS)):
            _known(name, [told.get(name, known[0])], known)
        _known("products", [told.get("products", "own")], PRODUCTS)
        return cls(**{k: x for k, x in found.items() if x is not None})

    def arithmetic(self, dtype: str) -> Arithmetic:
        """In which it is expected to compute."""
        if dtype in QUANTISED:
            return Arithmetic.of_codes(self.weights, self.results, self.accumulate)
        return Arithmetic.of(dtype, self.accumulate, self.products)

    def claims(self, op: str) -> bool:
        """Whether it names an operator or its gradient; all, if it names none."""
        return self.operators is None or any(owner(f) == op for f in self.operators)

    def asked(self, kind: str, function: str) -> bool:
        """Whether functions of a kind are asked for: forward mode of those alone that say so."""
        if function in (self.operators or ()):
            return True
        return {"vjp": self.gradients, "jvp": self.forward_mode}.get(kind, True)

    @property
    def narrow(self) -> Callable[[Case], bool] | None:
        """Which cases it takes, if it names its options; for `suite.cases`."""
        return (lambda case: not unsupported(self, case)) if self.options else None

    def refused(self, raised: str) -> bool:
        """Whether an exception, as ``Type: text (place)``, says that a call is not supported."""
        if self.refusals is not None:
            return any(re.search(pattern, raised) for pattern in self.refusals)
        return not raised.startswith(_BUGS) and not _MISUSE.match(raised)


_NAMES = tuple(FUNCTIONS)
_WORDS = {*Capabilities.__dataclass_fields__} - {"told"}


def dimensions(spec: OpSpec) -> tuple[str, ...]:
    """Names of an operator's dimensions, in order."""
    letters = " ".join([*spec.arrays.values(), *spec.extras.values()]).split()
    return tuple(dict.fromkeys(letters))


def unsupported(able: Capabilities | Options, case: Case) -> str:
    """Why a backend of these capabilities is not asked for a case; empty if it is."""
    able = able if isinstance(able, Capabilities) else Capabilities.of(able)
    operators = able.operators
    if operators is not None and not {case.op, case.function} & operators:
        return f"no {case.op}"
    if not able.asked(case.kind, case.function):
        return "no gradients" if case.kind == "vjp" else "no forward mode"
    if case.dtype not in able.dtypes:
        return f"no {case.dtype}"
    taken = able.options.get(case.function, able.options.get(case.op))
    if taken is not None:
        needed = {*case.options, *(n.split(".")[0] for n in case.arrays)}
        needed -= {f"{n}_scale" for n in case.spec.cases.quantised}
        needed -= {*case.spec.arrays, *case.spec.extras, *case.directions} - {*case.spec.optional}
        if needed - {*taken}:
            return f"takes no {', '.join(sorted(needed - {*taken}))}"
    if able.largest_n is not None:
        longest = max((n for x in case.arrays.values() for n in np.shape(x)), default=0)
        longest = max([longest, *(place["size"] for place in case.whole.values())])
        if longest > able.largest_n:
            return f"no n above {able.largest_n}"
    shapes = able.shapes.get(case.op)
    return _layout(shapes, case) or shapes.fault(case.sizes()) if shapes else ""


def _layout(shapes: Shapes, case: Case) -> str:
    wrong = {layout_of(x) for x in case.arrays.values()} - {*shapes.layouts}
    return f"takes no {', '.join(sorted(wrong))} arrays" if wrong else ""


_Words = TypeVar("_Words", bound=Iterable[str])


def _known(what: str, words: _Words, known: tuple[str, ...]) -> _Words:
    for word in words:
        if word not in known:
            near = [x for x in known if len(known) < 12 or x[:3] == str(word)[:3]]
            hint = f"expected some of {', '.join(near)}" if near else "nlattn list names them"
            raise ValueError(f"capabilities: {what} name {word!r}; {hint}")
    return words


def _by_operator(shapes: JsonObject, operators: frozenset[str] | None) -> JsonObject:
    """Sizes of each operator; those of a backend with one operator need not say whose they are."""
    own = {owner(op) for op in operators or ()}
    if isinstance(shapes, Mapping) and not {*shapes} & {*FUNCTIONS} and len(own) == 1:
        return {own.pop(): shapes} if shapes else {}
    _known("shapes", shapes, _NAMES)
    return {owner(op): x for op, x in shapes.items()}
