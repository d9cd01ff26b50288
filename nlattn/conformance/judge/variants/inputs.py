"""Arrays mixed up, whatever the operator: swapped, normalised, misread, added."""

from __future__ import annotations

import numpy as np

from nlattn._types import Result
from nlattn.conformance.judge.variants.base import Array, Call, Run, Variant, after, unit
from nlattn.conformance.table import JUDGED, find

_SETS, _GRIDS = ("triples",), ("grids",)
ANY = ("any",)
"""Fits every operator."""


def _swapped(a: str, b: str) -> Run:
    return lambda c: c.given(**{a: c[b], b: c[a]})()


def _normalised(*names: str) -> Run:
    return lambda c: c.given(**{name: unit(c[name]) for name in names})()


def _misread(c: Call) -> Result:
    """Rows read as long as columns are, from the same memory; the result is written so, too."""
    names = [name for name in ("q", "k", "v", "image") if name in c.arrays]

    def misread(x: Array) -> Array:
        return x.reshape(*x.shape[:-3], x.shape[-2], x.shape[-3], x.shape[-1])

    grids = [n for n in names if "H" in _dims(c.op, n)]
    out = c.given(**{name: misread(c[name]) for name in grids})()
    return misread(out)


def _turned(c: Call) -> Result:
    """Height and width exchanged everywhere but in what belongs to a place."""
    names = [n for n in ("q", "k", "v", "image") if n in c.arrays and "H" in _dims(c.op, n)]
    out = c.given(**{name: np.swapaxes(c[name], -2, -3) for name in names})()
    return np.swapaxes(out, -2, -3)


def _dims(op: str, name: str) -> str:
    return find(op).arrays.get(name, "")


def _flipped(*names: str) -> Run:
    return lambda c: c.given(**{name: np.flip(c[name], -2) for name in names})()


def _by_columns(*names: str) -> Run:
    def run(c: Call) -> Result:
        if any("H" not in _dims(c.op, name) for name in names):
            raise ValueError
        turned = {n: np.swapaxes(c[n], -2, -3).reshape(c[n].shape) for n in names}
        return c.given(**turned)()

    return run


def _of_first_batch(name: str) -> Run:
    def run(c: Call) -> Result:
        if c[name].ndim < 4:
            raise ValueError
        return c.given(**{name: c[name][..., :1, :, :, :]})()

    return run


def _of_first_in_batch(name: str) -> Run:
    def run(c: Call) -> Result:
        if c[name].ndim < 4:
            raise ValueError
        return c.given(**{name: c[name][..., :1, :, :]})()

    return run


def _ungiven(name: str) -> Run:
    """An option that is not looked at."""

    def run(c: Call) -> Result:
        c.options[name]
        return c.given(**{name: None})()

    return run


OPTIONS = sorted(
    {
        name
        for spec in JUDGED
        for factor in (*spec.cases.choices, spec.cases.recipes)
        for level in factor
        for name in level.options
        if not name.startswith("return_") and name not in spec.cases.ways
    }
)
UNGIVEN = tuple(Variant(f"as if {name} were not given", ANY, _ungiven(name)) for name in OPTIONS)

VARIANTS = (
    Variant("with values read by columns, not by rows", _GRIDS, _by_columns("v")),
    Variant("with keys and values read by columns, not by rows", _GRIDS, _by_columns("k", "v")),
    *(
        Variant(f"with the {words} of the first {of} for all", ANY, run(name))
        for name, words in (("mask", "mask"), ("bias", "bias"), ("dropout_mask", "dropout mask"))
        for of, run in (("batch", _of_first_batch), ("head of each batch", _of_first_in_batch))
    ),
    Variant("with queries and keys swapped", _SETS, _swapped("q", "k")),
    Variant("with keys and values swapped", _SETS, _swapped("k", "v")),
    Variant("with queries of length 1", _SETS, _normalised("q")),
    Variant("with keys of length 1", _SETS, _normalised("k")),
    Variant("with queries and keys of length 1", _SETS, _normalised("q", "k")),
    Variant("with values of length 1", _SETS, _normalised("v")),
    Variant("with values in reverse order", _SETS, _flipped("v")),
    Variant("with values of the next key", _SETS, lambda c: c.given(v=np.roll(c["v"], -1, -2))()),
    Variant("with values of the key before", _SETS, lambda c: c.given(v=np.roll(c["v"], 1, -2))()),
    Variant("with the queries added", _SETS, after(lambda c, out: out + c["q"])),
    Variant("with the values added", _SETS, after(lambda c, out: out + c["v"])),
    Variant("less the values", _SETS, after(lambda c, out: out - c["v"])),
    Variant("with the image added", ("patch means",), after(lambda c, out: out + c["image"])),
    Variant("less the image", ("patch means",), after(lambda c, out: out - c["image"])),
    Variant("with height and width swapped in memory", _GRIDS, _misread),
    Variant("with height and width exchanged", _GRIDS, _turned),
)
