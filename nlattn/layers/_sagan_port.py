"""The self-attention block of SAGAN's PyTorch port, which refined self-attention shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats, StateDict
from nlattn.layers import _dual, _state, _weights
from nlattn.layers._conv import pixels
from nlattn.layers._projection import Projection
from nlattn.layers._weights import Weights

_CONVS = [Projection.named(name) for name in ("query_conv", "key_conv", "value_conv")]
_EMBEDDINGS = {"query_conv.weight": "c C 1 1", "sn_conv_theta.w": "1 1 C c"}


class Port(NamedTuple):
    """Checked input and weights of one call: ``y = gamma attend(q, k, v) + x``."""

    fit: _check.Fit
    w: Weights

    @classmethod
    def of(cls, op: str, weights: object, nonfinite: Nonfinite, **arrays: Floats) -> Port:
        """Check everything."""
        given = _state.mapping(op, weights)
        fit = start(op, nonfinite, given, **arrays)
        inner = fit.dims["C"] // 8
        shapes = {"gamma": "1"}
        for c, channels in zip(_CONVS, (inner, inner, "C"), strict=True):
            shapes |= {c.weight: f"{channels} C 1 1", c.bias: f"{channels}"}
        return cls(fit, _weights.take(fit, given, shapes, nonfinite=nonfinite))

    def embed(self) -> list[Floats]:
        """Queries, keys and values (B, n, channels)."""
        x = pixels(self.fit["x"])
        return [c.of(self.w, x) for c in _CONVS]

    def forward(self, attend: Callable[..., Floats]) -> Floats:
        """``y`` in the shape of x."""
        out = attend(*self.embed(), nonfinite="propagate")
        x = self.fit["x"]
        return self.fit.unfold(self.w["gamma"] * out.reshape(x.shape) + x)

    def backward(
        self, attend: Callable[..., Floats], attend_vjp: Callable[..., tuple[Floats, ...]]
    ) -> tuple[Floats, dict[str, Floats]]:
        """Gradients of x and of every weight."""
        x, dy = pixels(self.fit["x"]), pixels(self.fit["dout"])
        sets = self.embed()
        found = {"gamma": inner(dy, attend(*sets, nonfinite="propagate"))}
        gradients = attend_vjp(*sets, self.w["gamma"] * dy, nonfinite="propagate")
        dx = dy.copy()
        for c, dz in zip(_CONVS, gradients, strict=True):
            dx += c.vjp(self.w, x, dz, found)
        return self.fit.unfold(dx.reshape(self.fit["x"].shape)), self.w.gradients(found)


def start(op: str, nonfinite: Nonfinite, given: StateDict, **arrays: Floats) -> _check.Fit:
    """The input, which needs channels enough for an eighth of them."""
    fit = _dual.fit(op, {name: (z, "H W C") for name, z in arrays.items()}, nonfinite=nonfinite)
    if fit.dims["C"] < 8:
        text = f"has {fit.dims['C']} channels, expected at least 8: queries have an eighth of them"
        turned = _state.channels_first(fit, given, _EMBEDDINGS)
        _check.fail_all(op, [f"x {text}", *filter(None, [turned])])
    return fit


def one_image(fit: _check.Fit) -> None:
    """Refuse leading axes."""
    if fit.lead:
        _check.fail(fit.op, "x", f"has leading axes {fit.lead}, expected one image (H, W, C)")


def inner(a: Floats, b: Floats) -> Floats:
    """``sum(a * b)``, accumulated in float64."""
    return np.asarray((a * b).sum(dtype=np.float64))
