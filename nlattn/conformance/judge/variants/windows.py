"""Learned queries in windows gone wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant, after, needs, softmax, step
from nlattn.conformance.table import find

_QNA, _PLACED, _UP = ("learned queries",), ("placed windows",), ("phases",)


def _taps(wrong: Function) -> Run:
    """``wrong(z, inside)`` in place of the softmax over taps, of scores with their bias."""

    def instead(
        c: Call, f: Function, q: Array, k: Array, taps: Any, bias: Array | None, scale: float
    ) -> Result:
        lse = f(q, k, taps, bias, scale)[1]
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        z = taps.read(factor * np.einsum("...td,...hwd->...thw", q, k))
        z = z if bias is None else z + bias[..., :, None, None, :, :]
        return wrong(z, np.broadcast_to(taps.inside, z.shape), c), lse

    return step("weights", instead)


def _over(z: Array, axes: int) -> Array:
    """Softmax over the last axes together."""
    flat = z.reshape(*z.shape[:-axes], -1)
    return softmax(flat).reshape(z.shape)


def _joint(z: Array, inside: Array, _: Call) -> Array:
    """Softmax over taps and queries together."""
    z = np.moveaxis(np.where(inside, z, -np.inf), -5, -3)
    return np.moveaxis(_over(z, 3), -3, -5)


def _gated_before(c: Call) -> Result:
    gate = c["gate"]

    def wrong(z: Array, inside: Array, _: Call) -> Array:
        return _over(np.where(inside, z * gate[..., :, None, None, :, :], -np.inf), 2)

    if "phases" in find(c.op).wrong:
        raise ValueError
    return _taps(wrong)(c.given(gate=np.ones_like(gate)))


def _gated_sum(c: Call) -> Result:
    """Weights that sum to 1 after the gate, not before it."""
    gate = c["gate"][..., :, None, None, :, :]

    def wrong(z: Array, inside: Array, _: Call) -> Array:
        P = _over(np.where(inside, z, -np.inf), 2) * gate
        return P / P.sum((-2, -1), keepdims=True)

    if "phases" in find(c.op).wrong:
        raise ValueError
    return _taps(wrong)(c.given(gate=np.ones_like(c["gate"])))


def _flipped(c: Call) -> Result:
    """Taps read from the last to the first: convolution in place of correlation."""
    given = {name: np.flip(c[name], (-2, -1)) for name in ("bias", "gate") if name in c.arrays}
    return c.given(**given)()


def _transposed(c: Call) -> Result:
    given = {name: np.swapaxes(c[name], -2, -1) for name in ("bias", "gate") if name in c.arrays}
    return c.given(**given)()


def _of_first_phase(name: str) -> Run:
    return lambda c: c.given(**{name: c[name][..., :1, :, :, :] + 0 * c[name]})()


def _rearranged(order: Callable[[Array, int], Array]) -> Run:
    """Other queries for each phase."""

    def run(c: Call) -> Result:
        s = int(c["scale"])
        axes = {"q": -3, "bias": -4, "gate": -4}
        phases = order(np.arange(s * s).reshape(s, s), s).ravel()
        given = {n: np.take(c[n], phases, axis) for n, axis in axes.items() if n in c.arrays}
        return c.given(**given)()

    return run


def _blocks(c: Call, out: Array) -> Array:
    """Phases side by side in place of interleaved."""
    s = int(c["scale"])
    H, W, e = out.shape[-3:]
    parts = out.reshape(*out.shape[:-3], H // s, s, W // s, s, e)
    return np.moveaxis(parts, (-4, -2), (-5, -3)).reshape(out.shape)


def _shifted(down: int, right: int) -> Run:
    """Every window moved by a pixel."""

    def run(c: Call) -> Result:
        if c.get("stride", 1) != 1 or c.get("padding") is not None:
            raise ValueError
        kh, kw = np.broadcast_to(c["window"], 2)
        out = c.given(padding=[int(kh - 1) // 2 + 1, int(kw - 1) // 2 + 1])()
        H, W = c["k"].shape[-3:-1]
        return out[..., 1 + down : 1 + down + H, 1 + right : 1 + right + W, :]

    return run


def _qna_scale(c: Call) -> float:
    given = None if "phases" in find(c.op).wrong else c.get("scale")
    return float(c["q"].shape[-1] ** -0.5 if given is None else given)


def _queries(c: Call) -> int:
    return int(c["q"].shape[-2])


VARIANTS = (
    Variant(
        "with scores of 0 outside the image, which count",
        _QNA,
        _taps(lambda z, inside, c: _over(np.where(inside, z, 0), 2) * inside),
    ),
    Variant(
        "with the bias alone as score outside the image, which counts",
        _QNA,
        needs(
            "bias",
            _taps(
                lambda z, inside, c: (
                    _over(np.where(inside, z, c["bias"][..., :, None, None, :, :]), 2) * inside
                )
            ),
        ),
    ),
    Variant("with a scale of 1", _QNA, lambda c: c.given(q=c["q"] * _qna_scale(c) ** -1)()),
    Variant("with the scale squared", _QNA, lambda c: c.given(q=c["q"] * _qna_scale(c))()),
    Variant("averaged over queries, not summed", _QNA, after(lambda c, out: out / _queries(c))),
    Variant(
        "with the first query only",
        _QNA,
        lambda c: c.given(
            **{
                n: np.take(c[n], [0], axis)
                for n, axis in (("q", -2), ("bias", -3), ("gate", -3))
                if n in c.arrays
            }
        )(),
    ),
    Variant("with one softmax over all queries and taps", _QNA, _taps(_joint)),
    Variant("without a softmax", _QNA, _taps(lambda z, inside, c: np.where(inside, z, 0))),
    Variant(
        "without the normaliser", _QNA, _taps(lambda z, inside, c: np.where(inside, np.exp(z), 0))
    ),
    Variant("with the gate before the softmax", _QNA, _gated_before),
    Variant("with the gate before the normaliser", _QNA, _gated_sum),
    Variant("without the gate", _QNA, lambda c: c.given(gate=c["gate"] * 0 + 1)()),
    Variant(
        "with the bias of the first query for all",
        _QNA,
        lambda c: c.given(bias=c["bias"][..., :1, :, :] + 0 * c["bias"])(),
    ),
    Variant("with taps from the last to the first: convolution, not correlation", _QNA, _flipped),
    Variant("with rows and columns of taps exchanged", _QNA, _transposed),
    Variant("with windows one row too low", _PLACED, _shifted(1, 0)),
    Variant("with windows one row too high", _PLACED, _shifted(-1, 0)),
    Variant("with windows one column too far right", _PLACED, _shifted(0, 1)),
    Variant("with windows one column too far left", _PLACED, _shifted(0, -1)),
    Variant("with rows and columns of phases exchanged", _UP, _rearranged(lambda f, s: f.T)),
    Variant("with the first phase's queries for all", _UP, _rearranged(lambda f, s: f * 0)),
    Variant("with the first phase's bias for all", _UP, _of_first_phase("bias")),
    Variant("with the first phase's gate for all", _UP, _of_first_phase("gate")),
    Variant("with phases in reverse order", _UP, _rearranged(lambda f, s: np.flip(f))),
    Variant("with phases side by side, not interleaved", _UP, after(_blocks)),
)
