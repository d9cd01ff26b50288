"""Windowed multi-head self-attention with relative positions (Swin), as published beside QnA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Bools, Floats, Ints, StateDict
from nlattn.layers import _dual
from nlattn.layers._conv import conv, conv_vjp
from nlattn.layers._operators import attention
from nlattn.layers._state import mapping
from nlattn.layers._weights import Weights, take
from nlattn.ops.dense import attention_vjp

TABLE = "RelativePositionalEmbedding_0.rpe_bias"


def window_attention_block(
    x: Floats,
    weights: StateDict,
    *,
    heads: int,
    window: int | tuple[int, int],
    mask: Bools | None = None,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """Every pixel of a window attends to all of it: ``softmax(q.k/sqrt(d) + T[position]) v``.

    Parameters
    ----------
    x : (..., a b, C) array, float32 or float64
        Windows of a x b pixels, row by row.
    weights : mapping
        ``to_qkv.kernel`` (C, 3 F), whose columns are ``[q | k | v]`` for each head,
        ``RelativePositionalEmbedding_0.rpe_bias`` ((2a - 1)(2b - 1), heads), ``to_out.kernel``
        (F, Cout); if present ``to_qkv.bias`` (3 F,) and ``to_out.bias`` (Cout,).
    heads : int
        Number of heads.
    window : int or (a, b)
        Size of the windows.
    mask : bool array that broadcasts to (..., a b, a b), optional
        True where a pixel may attend to another.

    Returns
    -------
    (..., a b, Cout) array, dtype of `x`

    Raises
    ------
    ValueError, TypeError
        A weight is missing, superfluous or does not fit; an option is malformed.

    Notes
    -----
    Row ``(dy + a - 1)(2b - 1) + dx + b - 1`` of the table belongs to a query dy rows below and dx
    columns right of its key. Source: [liu2021], [arar2022]. Status: author code.

    Examples
    --------
    >>> y = nlattn.layers.window_attention_block(x, weights, heads=2, window=(3, 4))
    """
    asked = _Asked(heads, window, mask, nonfinite)
    call = _Call("window_attention_block", {"x": (x, "n C")}, weights, asked)
    return call.fit.unfold(call.forward()[1])


def window_attention_block_vjp(
    x: Floats,
    weights: StateDict,
    dout: Floats,
    *,
    heads: int,
    window: int | tuple[int, int],
    mask: Bools | None = None,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``; arguments as for `window_attention_block`.

    Examples
    --------
    >>> options = {"heads": 2, "window": (3, 4)}
    >>> y = nlattn.layers.window_attention_block(x, weights, **options)
    >>> dx, dw = nlattn.layers.window_attention_block_vjp(x, weights, np.ones_like(y), **options)
    """
    arrays = {"x": (x, "n C"), "dout": (dout, "n Cout")}
    asked = _Asked(heads, window, mask, nonfinite)
    call = _Call("window_attention_block_vjp", arrays, weights, asked)
    dx, found = call.backward()
    return call.fit.reduce("x", dx), call.weights.gradients(found)


class _Asked(NamedTuple):
    """The options of a call, as they came."""

    heads: int
    window: int | tuple[int, int]
    mask: Bools | None
    nonfinite: Nonfinite


class _Attention(TypedDict):
    """Options of the attention inside."""

    bias: Floats
    mask: Bools | None
    nonfinite: Nonfinite


class _Call:
    """One call: its arrays, and what it takes in and out of heads."""

    def __init__(
        self, op: str, arrays: Mapping[str, tuple[object, str]], weights: object, asked: _Asked
    ):
        self.fit = fit = _dual.fit(op, arrays, nonfinite=asked.nonfinite)
        given = mapping(op, weights)
        self.heads = _check.integer(op, "heads", asked.heads, low=1)
        a, b = _check.pair(op, "window", asked.window, 1)
        if fit.dims["n"] != a * b:
            text = f"has shape {fit.given('x')}, expected (..., {a * b}, C) from window=({a}, {b})"
            _check.fail(op, "x", text)
        shapes = {
            "to_out.kernel": "F Cout",
            "to_qkv.kernel": "C 3F",
            TABLE: f"{(2 * a - 1) * (2 * b - 1)} {self.heads}",
            "to_qkv.bias": "3F",
            "to_out.bias": "Cout",
        }
        wanted = {
            n: s for n, s in shapes.items() if n in given or n not in ("to_qkv.bias", "to_out.bias")
        }
        self.weights: Weights = take(fit, given, wanted, nonfinite=asked.nonfinite)
        features = self.weights.sizes["F"]
        if features % self.heads:
            text = f"does not divide the {features} features of to_out.kernel"
            _check.fail(op, f"heads={self.heads}", text)
        self.place = _places(a, b)
        mask = asked.mask
        if mask is not None:
            mask = np.asarray(mask)
            mask = mask if mask.ndim < 3 else _folded(op, mask, fit)
        qkv = conv(fit["x"], self.weights["to_qkv.kernel"].T, self.weights.get("to_qkv.bias"))
        self.qkv = np.split(qkv.reshape(*qkv.shape[:2], self.heads, -1).swapaxes(1, 2), 3, axis=-1)
        bias = np.moveaxis(self.weights[TABLE][self.place], -1, 0)
        self.options = _Attention(bias=bias, mask=mask, nonfinite="propagate")

    def forward(self) -> tuple[Floats, Floats]:
        """The heads side by side, and the result."""
        out = attention(*self.qkv, **self.options).swapaxes(1, 2)
        heads: Floats = out.reshape(len(out), out.shape[1], -1)
        return heads, conv(heads, self.weights["to_out.kernel"].T, self.weights.get("to_out.bias"))

    def backward(self) -> tuple[Floats, dict[str, Floats]]:
        """Gradients of the input and of all weights."""
        w, dy = self.weights, self.fit["dout"]
        heads, _ = self.forward()
        last = conv_vjp(heads, w["to_out.kernel"].T, dy)
        dout = last.x.reshape(*last.x.shape[:2], self.heads, -1).swapaxes(1, 2)
        q, k, v = self.qkv
        *dqkv, dbias = attention_vjp(q, k, v, dout, **self.options)
        joined = np.concatenate(dqkv, axis=-1).swapaxes(1, 2)
        of_qkv = conv_vjp(
            self.fit["x"], w["to_qkv.kernel"].T, joined.reshape(*joined.shape[:2], -1)
        )
        dtable = np.zeros(w[TABLE].shape)
        np.add.at(dtable, self.place, np.moveaxis(dbias, 0, -1))
        found = {
            "to_qkv.kernel": of_qkv.weight.T,
            "to_qkv.bias": of_qkv.bias,
            TABLE: dtable,
            "to_out.kernel": last.weight.T,
            "to_out.bias": last.bias,
        }
        return of_qkv.x, found


def _places(a: int, b: int) -> Ints:
    """Rows of the table, (a b, a b): of each query against each key."""
    y, x = np.divmod(np.arange(a * b), b)
    dy, dx = y[:, None] - y, x[:, None] - x
    places: Ints = (dy + a - 1) * (2 * b - 1) + dx + b - 1
    return places


def _folded(op: str, mask: Bools, fit: _check.Fit) -> Bools:
    """A mask of several windows, with one axis for them and one for heads."""
    n = fit.dims["n"]
    try:
        whole = np.broadcast_to(mask, (*fit.lead, n, n))
    except ValueError:
        _check.fail(
            op,
            "mask",
            f"has shape {mask.shape}, expected one that broadcasts to {(*fit.lead, n, n)}",
        )
    return whole.reshape(fit.batch, 1, n, n)
