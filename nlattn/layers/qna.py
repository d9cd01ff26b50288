"""The layer of QnA [arar2022]: local attention with learned queries, in place of a convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import numpy as np

from nlattn import _check
from nlattn._modes import Gate, Nonfinite, Position
from nlattn._types import Floats, StateDict
from nlattn.layers import _dual, _qna
from nlattn.layers._conv import conv, conv_vjp
from nlattn.layers._operators import qna
from nlattn.layers._state import mapping
from nlattn.layers._weights import Weights, take
from nlattn.ops.qna import qna_vjp


def qna_block(
    x: Floats,
    weights: StateDict,
    *,
    heads: int,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
    gate: Gate = "normal",
    position: Position = "relative_pos",
    normalize_queries: bool = True,
    detach_query_norm: bool = False,
    scale_rpe_bias: bool = False,
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """``y = [heads of qna(query, x Wk, x to_v)] to_out``, with learned biases and gates.

    Parameters
    ----------
    x : (..., H, W, C) array, float32 or float64
        Image.
    weights : mapping
        ``query`` (t, F), ``Wk`` (C, F), ``to_v.kernel`` (C, F), ``to_out.kernel`` (F, Cout); if
        present ``Wk_b`` (heads, d), which has no effect, ``to_v.bias``, ``to_out.bias``; and those
        of gate and position. Head g owns features ``g d : (g + 1) d``.
    heads, window, stride, padding
        As in `qna`; ``padding=None`` is ``(window - 1) // 2``.
    gate : {"normal", "normal_elementwise", "ones", "avg", "posneg", "none"}
        ``attn_scale_weights`` (1, 1, kh kw, t heads) or (1, 1, 1, t heads); ``attn_scale_pos``
        (1, 1, kh kw, t, heads); 1/t; 1 and -1 for half of the columns each; 1.
    position : {"relative_pos", "absolute_pos", "contextual_pos", "none"}
        ``rpe_bias`` (kh kw, t heads); ``absolute_pos_embedding`` (kh kw, t, F); ``rpe_bias.kernel``
        (heads, d, kh kw, heads) and ``rpe_bias.bias`` (kh kw, heads).
    normalize_queries, detach_query_norm : bool
        Divide each head's query by its norm plus 1e-6; hold the norm for a constant in gradients.
    scale_rpe_bias : bool
        Divide ``rpe_bias`` by ``sqrt(d)``.
    parity : bool
        Multiply an absolute bias by the number of images, as the published code does.

    Returns
    -------
    (..., Ho, Wo, Cout) array, dtype of `x`

    Raises
    ------
    ValueError, TypeError
        A weight is missing, superfluous or does not fit; an option is malformed.

    Notes
    -----
    ``H W C (F + t heads)`` multiply-adds beside those of `qna`. Status: author code.

    Examples
    --------
    >>> y = nlattn.layers.qna_block(x, weights, heads=2, window=3)
    """
    asked = _Asked(heads, window, stride, padding, gate, position, normalize_queries,
        detach_query_norm, scale_rpe_bias, parity, nonfinite)  # fmt: skip
    call = _Call("qna_block", {"x": (x, "H W C")}, weights, asked)
    return call.fit.unfold(call.forward()[1])


def qna_block_vjp(
    x: Floats,
    weights: StateDict,
    dout: Floats,
    *,
    heads: int,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | None = None,
    gate: Gate = "normal",
    position: Position = "relative_pos",
    normalize_queries: bool = True,
    detach_query_norm: bool = False,
    scale_rpe_bias: bool = False,
    parity: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``, dweights with the names of the weights.

    Arguments as for `qna_block`, `dout` in the shape of its result. ``Wk_b`` shifts all scores of a
    query alike: its gradient is 0.

    Examples
    --------
    >>> y = nlattn.layers.qna_block(x, weights, heads=2, window=3)
    >>> dx, dweights = nlattn.layers.qna_block_vjp(x, weights, np.ones_like(y), heads=2, window=3)
    """
    arrays = {"x": (x, "H W C"), "dout": (dout, "Ho Wo Cout")}
    asked = _Asked(heads, window, stride, padding, gate, position, normalize_queries,
        detach_query_norm, scale_rpe_bias, parity, nonfinite)  # fmt: skip
    call = _Call("qna_block_vjp", arrays, weights, asked)
    dx, found = call.backward()
    return call.fit.reduce("x", dx), call.weights.gradients(found)


class _Asked(NamedTuple):
    """The options of a call, as they came."""

    heads: int
    window: int | tuple[int, int]
    stride: int | tuple[int, int]
    padding: int | tuple[int, int] | None
    gate: Gate
    position: Position
    normalize_queries: bool
    detach_query_norm: bool
    scale_rpe_bias: bool
    parity: bool
    nonfinite: Nonfinite


class _Attention(TypedDict):
    """Options of the attention inside."""

    window: tuple[int, int]
    stride: int | tuple[int, int]
    padding: int | tuple[int, int] | None
    bias: Floats | None
    gate: Floats | None
    scale: float
    nonfinite: Nonfinite


class _Call:
    """One call: its arrays, and what it takes in and out of heads."""

    def __init__(
        self, op: str, arrays: Mapping[str, tuple[object, str]], weights: object, asked: _Asked
    ):
        self.fit = fit = _dual.fit(op, arrays, nonfinite=asked.nonfinite)
        given = mapping(op, weights)
        heads = _check.integer(op, "heads", asked.heads, low=1)
        parity = _check.flag(op, "parity", asked.parity)
        self.kind = kind = _qna.QnaKind(
            heads,
            _check.pair(op, "window", asked.window, 1),
            _check.choice(op, "gate", asked.gate, _qna.GATES),
            _check.choice(op, "position", asked.position, _qna.POSITIONS),
            _check.flag(op, "normalize_queries", asked.normalize_queries),
            _check.flag(op, "detach_query_norm", asked.detach_query_norm),
            _check.flag(op, "scale_rpe_bias", asked.scale_rpe_bias),
            fit.batch if parity else 1,
        )
        self.t = t = (np.shape(given.get("query", ())) or (1,))[0]
        features = np.shape(given.get("query", ()))[-1:]
        fit.dims["d"] = features[0] // heads if features else 0
        if features and features[0] % heads:
            text = f"does not divide the {features[0]} features of query"
            _check.fail(op, f"heads={heads}", text)
        if kind.gate == "posneg" and t * heads % 2:
            text = f"needs an even number of queries and heads, got {t} x {heads}"
            _check.fail(op, "gate='posneg'", text)
        shapes = _qna.shapes(kind, t, given)
        self.weights: Weights = take(fit, given, shapes, nonfinite=asked.nonfinite)
        self.x: Floats = fit["x"]
        self.q = _qna.queries(kind, self.weights["query"])
        self.options = _Attention(
            window=kind.window,
            stride=asked.stride,
            padding=asked.padding,
            bias=_qna.bias(kind, self.weights, self.q),
            gate=_qna.gate(kind, self.weights, t, fit.dtype),
            scale=1.0,
            nonfinite="propagate",
        )
        self.v = self._split(
            conv(self.x, self.weights["to_v.kernel"].T, self.weights.get("to_v.bias"))
        )

    def _split(self, y: Floats) -> Floats:
        """(B, H, W, F) to (B, h, H, W, d)."""
        return np.moveaxis(y.reshape(*y.shape[:3], self.kind.heads, -1), 3, 1)

    def _join(self, y: Floats) -> Floats:
        return np.moveaxis(y, 1, 3).reshape(len(y), *y.shape[2:4], -1)

    def forward(self) -> tuple[Floats, Floats]:
        """The heads side by side, and the result."""
        w = self.weights
        keys = w["Wk"].reshape(len(w["Wk"]), self.kind.heads, -1)
        seen = np.einsum("chd,htd->htc", keys, self.q)  # t h columns, where keys have F
        heads = self._join(qna(seen, self.x[:, None], self.v, **self.options))
        return heads, conv(heads, w["to_out.kernel"].T, self.weights.get("to_out.bias"))

    def backward(self) -> tuple[Floats, dict[str, Floats]]:
        """Gradients of the input and of all weights."""
        w, dy = self.weights, self.fit["dout"]
        heads, y = self.forward()
        if dy.shape[1:] != y.shape[1:]:
            wanted = ", ".join(map(str, y.shape[1:]))
            text = f"has shape {self.fit.given('dout')}, expected (..., {wanted})"
            _check.fail(self.fit.op, "dout", text)
        last = conv_vjp(heads, w["to_out.kernel"].T, dy)
        k = self._split(conv(self.x, w["Wk"].T))
        dq, dk, dv, dbias, dgate = qna_vjp(self.q, k, self.v, self._split(last.x), **self.options)
        of_v = conv_vjp(self.x, w["to_v.kernel"].T, self._join(dv))
        of_k = conv_vjp(self.x, w["Wk"].T, self._join(dk))
        of_position, dq_too = _qna.bias_vjp(self.kind, w, self.q, dbias)
        found = {
            "query": _qna.queries_vjp(self.kind, w["query"], dq + dq_too),
            "Wk": of_k.weight.T,
            "Wk_b": np.zeros_like(self.q[:, 0]),
            "to_v.kernel": of_v.weight.T,
            "to_v.bias": of_v.bias,
            **_qna.gate_vjp(self.kind, dgate),
            **of_position,
            "to_out.kernel": last.weight.T,
            "to_out.bias": last.bias,
        }
        return of_v.x + of_k.x, found
