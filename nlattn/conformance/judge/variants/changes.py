"""Forward mode gone wrong behind a forward pass that is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from nlattn._types import Result
from nlattn.conformance.case import Array, Case, scale_of
from nlattn.conformance.judge.variants.base import Call
from nlattn.conformance.truth.bounds import exact

Changes = Mapping[str, Array]


def wrong(case: Case, want: Changes) -> Iterator[tuple[str, dict[str, Array]]]:
    """Names, and the changes that a backend gives which is wrong in this way."""
    for name in case.directions:
        yield f"without the part of {name}", {**want, **_along(case, **{name: np.zeros_like})}
        yield f"with {name} of the other sign", {**want, **_along(case, **{name: np.negative})}
        alone = {other: np.zeros_like for other in case.directions if other != name}
        yield f"with the part of {name} alone", {**want, **_along(case, **alone)}
    for words, make in _WAYS:
        try:
            yield words, {**want, **make(case, want)}
        except (LookupError, TypeError, ValueError):
            continue


def _along(case: Case, **moved: Callable[[Array], Array]) -> dict[str, Array]:
    """Changes along other directions."""
    arrays = {n: moved[n](x) if n in moved else x for n, x in case.arrays.items()}
    return exact(replace(case, arrays=arrays))


def _exchanged(a: str, b: str) -> Callable[[Case, Changes], Result]:
    def make(case: Case, _: Changes) -> Result:
        arrays = {**case.arrays, a: case.arrays[b], b: case.arrays[a]}
        if arrays[a].shape != arrays[b].shape:
            raise ValueError
        return exact(replace(case, arrays=arrays))

    return make


def _value(case: Case, _: Changes) -> Result:
    """The forward pass at arrays that have moved by their whole change."""
    arrays = dict(case.arrays)
    for name in case.directions:
        arrays[name[1:]] = arrays[name[1:]] + arrays.pop(name)
    moved = exact(replace(case, kind="forward", arrays=arrays))
    return {f"d{name}": x for name, x in moved.items()}


def _result(case: Case, _: Changes) -> Result:
    arrays = {n: x for n, x in case.arrays.items() if n not in case.directions}
    return {f"d{n}": x for n, x in exact(replace(case, kind="forward", arrays=arrays)).items()}


def _without_means(case: Case, want: Changes) -> Result:
    """``P dS v`` in place of ``P (dS - mean) v``, where the mean is the change of lse."""
    if case.spec.softmax is None and "weight" not in case.options and case.options.get("power"):
        raise ValueError
    whole = replace(case, options={**case.options, "return_lse": True, "lse_base": "e"})
    if "lse_base" not in case.options:
        whole = replace(case, options={**case.options, "return_lse": True})
    mean = exact(whole)["dlse"]
    return {"dout": want["dout"] + mean[..., None] * _out(case)}


def _out(case: Case) -> Array:
    arrays = {n: x for n, x in case.arrays.items() if n not in case.directions}
    out: Array = exact(replace(case, kind="forward", arrays=arrays))["out"]
    return out


def _unscaled(case: Case, _: Changes) -> Result:
    """Scores are scaled, and their change is not."""
    scale = scale_of(case.options, case.arrays["q"])

    def more(x: Array) -> Array:
        return np.asarray(np.asarray(x, float) / scale)

    return _along(case, dq=more, dk=more)


def _second_order(case: Case, _: Changes) -> Result:
    """The change of weights times values that have moved already."""
    v = np.asarray(case.arrays["v"], float) + case.arrays["dv"]
    return exact(replace(case, arrays={**case.arrays, "v": v}))


def _other_base(case: Case, want: Changes) -> Result:
    two = case.options.get("lse_base") == "2"
    return {"dlse": want["dlse"] * (np.log(2) if two else 1 / np.log(2))}


def _flat_cap(case: Case, _: Changes) -> Result:
    """As if the soft cap were a straight line: scores are capped, and their change is not."""
    softcap = case.options["softcap"]
    arrays = {n: np.asarray(x, float) if x.dtype.kind != "b" else x for n, x in case.arrays.items()}
    way = {name: arrays.pop(name) for name in case.directions}
    scale = scale_of(case.options, arrays["q"])
    if case.options.get("gqa") or case.options.get("qk_norm"):
        raise ValueError
    raw = scale * arrays["q"] @ np.swapaxes(arrays["k"], -1, -2)
    moved = scale * (
        way["dq"] @ np.swapaxes(arrays["k"], -1, -2) + arrays["q"] @ np.swapaxes(way["dk"], -1, -2)
    )
    capped = softcap * np.tanh(raw / softcap)
    rest = {n: x for n, x in case.options.items() if n != "softcap"}
    bias = arrays.pop("bias", 0.0) + capped + 1e-30j * (moved + way.get("dbias", 0.0))
    values = arrays["v"] + 1e-30j * way["dv"]
    zero = np.zeros_like(arrays["q"])
    out = Call(case.op, {**arrays, "q": zero, "v": values, "bias": bias}, rest, case.dtype)()
    given = out if isinstance(out, tuple) else (out,)
    return {f"d{n}": np.imag(x) / 1e-30 for n, x in zip(case.results, given, strict=True)}


_WAYS: tuple[tuple[str, Callable[[Case, Changes], Result]], ...] = (
    ("with dq and dk exchanged", _exchanged("dq", "dk")),
    ("with dk and dv exchanged", _exchanged("dk", "dv")),
    ("without the mean in the softmax's change", _without_means),
    ("without the slope of the softcap", _flat_cap),
    ("with the change of scores not scaled", _unscaled),
    ("with the change of weights times values that have moved", _second_order),
    ("with the result in place of its change", _result),
    ("with the whole change of arrays, not the first order of it", _value),
    ("with the change of lse in the other base", _other_base),
    ("with twice the change", lambda _, want: {n: 2 * x for n, x in want.items()}),
    ("with the sign turned", lambda _, want: {n: -x for n, x in want.items()}),
)
