"""What traps and bug reports are made of: the plain transcription, spoilt by a line.

It computes in float64; arguments are changed before it, results after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlattn.conformance.truth.transcription import transcription

Arrays = dict[str, Any]
Options = dict[str, Any]
Results = list[Any]
ALL = ("float64", "float32", "float16", "bfloat16")


def computed(op: str, a: Arrays, o: Options) -> Results:
    """The transcription's results, a list of arrays of our own."""
    result = transcription(op, a, o)
    return [np.array(x) for x in (result if isinstance(result, tuple) else (result,))]


def again(op: str, a: Arrays, o: Options, **changes: Any) -> Results:
    """The results with some arrays or options exchanged; None leaves one out."""
    given, rest = dict(a), dict(o)
    for name, x in changes.items():
        (given if isinstance(x, np.ndarray) or name in given else rest)[name] = x
    given = {n: x for n, x in given.items() if x is not None}
    return computed(op, given, {n: x for n, x in rest.items() if x is not None})


def sizes(a: Arrays) -> tuple[int, int]:
    """Queries and keys."""
    return a["q"].shape[-2], a["k"].shape[-2]


def keep_only(a: Arrays, keep: Callable[[Any, Any], Any]) -> None:
    """One more mask, of places ``keep(i, j)``."""
    n, m = sizes(a)
    yes = np.broadcast_to(keep(*np.ogrid[:n, :m]), (n, m))
    a["mask"] = yes & a["mask"] if "mask" in a else yes


@dataclass(frozen=True, eq=False)
class Trap:
    """One wrong backend."""

    op: str
    what: str
    expected: str
    """What the diagnosis should say; empty where nothing is known to say."""
    before: Callable[[Arrays, Options], None] | None = None
    """Changes arrays (in float64) and options in place."""
    after: Callable[[Results, Arrays, Options], Results] | None = None
    """Changes the results."""
    dtypes: tuple[str, ...] = ALL

    @property
    def name(self) -> str:
        """For reports."""
        return f"{self.op}: {self.what}"

    def run(self, op: str, arrays: Arrays, options: Options) -> Any:
        """Compute a case."""
        if op != self.op:
            raise NotImplementedError
        dtype = next(
            x.dtype for x in arrays.values() if x.dtype.kind == "f" or x.dtype.itemsize == 2
        )
        given = {n: x.astype(float) if x.dtype == dtype else x.copy() for n, x in arrays.items()}
        rest = dict(options)
        with np.errstate(all="ignore"):
            if dtype.name in self.dtypes and self.before:
                self.before(given, rest)
            results = computed(op, given, rest)
            if dtype.name in self.dtypes and self.after:
                results = self.after(results, given, rest)
            return tuple(np.asarray(x).astype(dtype) for x in results)


@dataclass(frozen=True, eq=False)
class Lying(Trap):
    """A trap that looks at how arrays lie in memory, which `arrays` still shows."""

    spoil: Callable[[Arrays, Arrays, Options], None] | None = None
    """Of the arrays as given, and in float64."""
    results: Callable[[Results, Arrays], Results] | None = None

    def run(self, op: str, arrays: Arrays, options: Options) -> Any:
        """Compute a case."""
        before = None if self.spoil is None else lambda a, o: self.spoil(arrays, a, o)  # type: ignore[misc]
        after = None if self.results is None else lambda r, _, __: self.results(r, arrays)  # type: ignore[misc]
        return Trap(self.op, self.what, "", before, after, self.dtypes).run(op, arrays, options)
