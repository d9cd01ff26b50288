"""Gradients gone wrong behind a forward pass that is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

from nlattn._types import Result
from nlattn.conformance.case import Array, Case
from nlattn.conformance.judge.variants import lost, options, parts, shared
from nlattn.conformance.judge.variants.base import Call
from nlattn.conformance.judge.variants.dense import BLOCKS, stages, translated
from nlattn.conformance.truth.bounds import exact, wide

Gradients = Mapping[str, Array]
Way: TypeAlias = Callable[[Case, Gradients], Result]


def wrong(case: Case, want: Gradients) -> Iterator[tuple[str, dict[str, Array]]]:
    """Names, and the gradients that a backend gives which is wrong in this way."""
    for name, make in (
        *_WAYS,
        *_parts_of_dout(case),
        *_modes(case),
        *parts.GRADIENTS,
        *lost.GRADIENTS,
        *shared.GRADIENTS,
    ):
        try:
            made = make(case, want)
        except (LookupError, TypeError, ValueError):
            continue
        yield name, {**want, **made}


def _parts_of_dout(case: Case) -> Iterator[tuple[str, Way]]:
    """A part of the cotangent that is not read."""
    shape = np.shape(case.arrays[case.directions[0]])
    names = ["channel", "row", "head"] if len(shape) < 4 else ["channel", "column", "row"]
    for axis, name in enumerate(names[: len(shape)], 1):
        for at, which in ((-1, "last"), (0, "first")) if shape[-axis] > 1 else ():
            yield f"without the {which} {name} of {case.directions[0]}", _for(_less(axis, at))


def _less(axis: int, at: int) -> Callable[[Array], Array]:
    def less(x: Array) -> Array:
        x = x.copy()
        np.moveaxis(x, -axis, 0)[at] = 0
        return x

    return less


def _modes(case: Case) -> Iterator[tuple[str, Way]]:
    """Another value of what a gradient alone has as an option."""
    for name, value in options.values(case):
        if name in case.spec.cases.of_gradients:
            yield f"with {name} = {options.shown(value)}", _given(name, value)


def _given(name: str, value: object) -> Way:
    def make(case: Case, _: Gradients) -> Result:
        given = {**case.options, name: value}
        return exact(Case(case.name, case.op, case.kind, case.dtype, case.arrays, given))

    return make


def _exchanged(a: str, b: str) -> Way:
    return lambda _, g: {a: g[b], b: g[a]}


def _for(dout: Callable[[Array], Array]) -> Way:
    """Gradients for another cotangent."""

    def make(case: Case, _: Gradients) -> Result:
        name = case.directions[0]
        arrays = {**case.arrays, name: dout(np.asarray(case.arrays[name], float))}
        return exact(Case(case.name, case.op, case.kind, case.dtype, arrays, case.options))

    return make


def _without_lse(case: Case, _: Gradients) -> Result:
    arrays = {n: x for n, x in case.arrays.items() if n != "dlse"}
    if len(arrays) == len(case.arrays):
        raise ValueError
    return exact(Case(case.name, case.op, case.kind, case.dtype, arrays, case.options))


def _with(**others: object) -> Way:
    """Gradients with other options, of those that the case has."""

    def make(case: Case, _: Gradients) -> Result:
        if not {*others} <= {*case.options}:
            raise ValueError
        given = {n: x for n, x in {**case.options, **others}.items() if x is not None}
        return exact(Case(case.name, case.op, case.kind, case.dtype, case.arrays, given))

    return make


def _sinks_alone(case: Case, want: Gradients) -> Result:
    return {"dsinks": _without_lse(case, want)["dsinks"]}


def _sinks_turned(_: Case, want: Gradients) -> Result:
    return {"dsinks": -want["dsinks"]}


def _without_the_norms(case: Case, _: Gradients) -> Result:
    """Of queries and keys as they are after their norms."""
    eps, arrays = case.options["qk_norm"], dict(case.arrays)
    for name in "qk":
        x = np.asarray(arrays[name], float)
        arrays[name] = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    given = {n: x for n, x in case.options.items() if n != "qk_norm"}
    return exact(Case(case.name, case.op, case.kind, "float64", arrays, given))


def _without_dropout(case: Case) -> dict[str, Array]:
    arrays = {n: x for n, x in case.arrays.items() if n != "dropout_mask"}
    given = {n: x for n, x in case.options.items() if n != "dropout_scale"}
    if len(arrays) == len(case.arrays):
        raise ValueError
    return exact(Case(case.name, case.op, case.kind, case.dtype, arrays, given))


def _undropped(case: Case, want: Gradients) -> Result:
    """Scores' gradients without dropout, of values with it."""
    return {**_without_dropout(case), "dv": want["dv"]}


def _dropped_in_dv(case: Case, _: Gradients) -> Result:
    return {"dv": _without_dropout(case)["dv"]}


def _constant_weights(case: Case, want: Gradients) -> Result:  # noqa: ARG001
    return {name: np.zeros_like(x) for name, x in want.items() if name != "dv"}


def _softmax(change: Callable[[Array, Array, Array], Array]) -> Way:
    """``dS = change(P, dP, inner)`` in place of ``P (dP - inner)``, inner the row sums of P dP."""

    def make(case: Case, _: Gradients) -> Result:
        if case.spec.softmax is None or not case.spec.softmax.own:
            raise ValueError
        c, dS, draw = _of_scores(case, change)
        made = {"dq": c.scale * draw @ c["k"], "dk": c.scale * np.swapaxes(draw, -1, -2) @ c["q"]}
        return {**made, "dbias": dS} if "bias" in case.arrays else made

    return make


def _of_scores(
    case: Case, change: Callable[[Array, Array, Array], Array]
) -> tuple[Call, Array, Array]:
    """A call as one of attention, dS, and the gradient of scores before they are capped."""
    if case.options.get("gqa"):
        raise ValueError
    arrays = wide(case.arrays)
    dout = arrays.pop("dout")
    c = translated(Call(case.op, arrays, case.options))
    st = stages(c)
    dP = dout.reshape(st.out.shape) @ np.swapaxes(c["v"], -1, -2)
    dS = change(st.weights, dP, (st.weights * dP).sum(-1, keepdims=True))
    softcap = c.get("softcap")
    return c, dS, dS if softcap is None else dS * (1 - np.tanh(st.raw / softcap) ** 2)


def _of_one_block_of_keys(part: Callable[[int, int], slice], block: int) -> Way:
    """Dq as that of some keys, where it is the sum over all."""

    def make(case: Case, want: Gradients) -> Result:
        if {"dlse", "sinks", "dropout_mask"} & {*case.arrays} or "qk_norm" in case.options:
            raise ValueError
        c, _, draw = _of_scores(case, lambda P, dP, inner: P * (dP - inner))
        some = part(draw.shape[-1], block)
        return {"dq": (c.scale * draw[..., some] @ c["k"][..., some, :]).reshape(want["dq"].shape)}

    return make


def _of_one_block_of_queries(part: Callable[[int, int], slice], block: int) -> Way:
    """Gradients of keys and values as from some queries, where they are sums over all."""

    def make(case: Case, want: Gradients) -> Result:
        if "n" not in case.spec.out.split() or not {"dk", "dv"} <= {*want}:
            raise ValueError
        arrays = dict(case.arrays)
        for name in case.directions:
            x = np.asarray(arrays[name], float)
            axis = -2 if name == "dout" else -1
            kept = np.zeros(x.shape[axis], bool)
            kept[part(len(kept), block)] = True
            arrays[name] = np.where(kept[:, None] if axis == -2 else kept, x, 0)
        made = exact(Case(case.name, case.op, case.kind, case.dtype, arrays, case.options))
        return {name: made[name] for name in ("dk", "dv")}

    return make


def _last(n: int, block: int) -> slice:
    return slice(_blocks(n, block), None)


def _first(n: int, block: int) -> slice:
    _blocks(n, block)
    return slice(block)


def _blocks(n: int, block: int) -> int:
    """Where the last of several blocks begins."""
    if n <= block:
        raise ValueError
    return (n - 1) // block * block


def _unnormalised(case: Case, want: Gradients) -> Result:
    """Dq from weights that are not divided by their sum."""
    if case.spec.softmax is None or not case.spec.softmax.own:
        raise ValueError
    arrays = {n: x for n, x in case.arrays.items() if n not in ("dout", "dlse")}
    st = stages(Call(case.op, arrays, case.options))
    top = st.masked.max(-1, initial=-np.inf)
    total = np.exp(st.lse - np.where(np.isneginf(top), 0, top))
    return {"dq": want["dq"] * total[..., None]}


def _after_the_slope(case: Case, want: Gradients) -> Result:
    """Dbias with the slope of the softcap, which is that of scores before the bias."""
    softcap = case.options["softcap"]
    c = Call(case.op, {n: x for n, x in case.arrays.items() if n != "dout"}, case.options)
    slope = 1 - np.tanh(stages(c).raw / softcap) ** 2
    if slope.shape != want["dbias"].shape:
        raise ValueError
    return {"dbias": want["dbias"] * slope}


def _without_the_cap(case: Case, _: Gradients) -> Result:
    """Scores capped, but their gradients as if they were not."""
    c = Call(case.op, {n: x for n, x in case.arrays.items() if n != "dout"}, case.options)
    st = stages(c)
    dout, (q, k, v) = case.arrays["dout"], (c[name] for name in "qkv")
    dP = dout @ np.swapaxes(v, -1, -2)
    dS = st.weights * (dP - (st.weights * dP).sum(-1, keepdims=True))
    scale = c.scale
    if not c["softcap"]:
        raise ValueError
    return {"dq": scale * dS @ k, "dk": scale * np.swapaxes(dS, -1, -2) @ q}


_WAYS: tuple[tuple[str, Way], ...] = (
    ("with dk and dv swapped", _exchanged("dk", "dv")),
    ("with dq and dk swapped", _exchanged("dq", "dk")),
    ("with dq and dv swapped", _exchanged("dq", "dv")),
    ("for a cotangent of ones", _for(np.ones_like)),
    ("without the gradient of lse", _without_lse),
    ("with the sign turned", lambda _, g: {name: -x for name, x in g.items()}),
    ("with weights held constant: dv alone", _constant_weights),
    ("without the row sums in the softmax's gradient", _softmax(lambda P, dP, inner: P * dP)),
    (
        "with the row sums added in the softmax's gradient",
        _softmax(lambda P, dP, inner: P * (dP + inner)),
    ),
    (
        "with the gradient of a sigmoid in place of the softmax's",
        _softmax(lambda P, dP, inner: P * (1 - P) * dP),
    ),
    ("without the weights in the softmax's gradient", _softmax(lambda P, dP, inner: dP - inner)),
    (
        "with row sums taken over queries in the softmax's gradient",
        _softmax(lambda P, dP, inner: P * (dP - (P * dP).sum(-2, keepdims=True))),
    ),
    ("without the slope of the softcap", _without_the_cap),
    ("with dbias after the softcap's slope", _after_the_slope),
    ("with dq of weights that are not divided by their sum", _unnormalised),
    ("with the gradient of lse in base e", _with(lse_base=None)),
    ("with dropout in the forward pass alone", _undropped),
    ("with dropped weights in dv", _dropped_in_dv),
    ("without the gradient of the norms", _without_the_norms),
    ("with dsinks from out alone", _sinks_alone),
    *(
        (f"with {names} of the {which} block of {of} alone, in blocks of {size}", make(part, size))
        for names, of, make in (
            ("dq", "keys", _of_one_block_of_keys),
            ("dk and dv", "queries", _of_one_block_of_queries),
        )
        for which, part in (("last", _last), ("first", _first))
        for size in BLOCKS
    ),
    ("with the sign of dsinks turned", _sinks_turned),
)
