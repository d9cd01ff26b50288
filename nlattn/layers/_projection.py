"""1x1 convolutions of a layer, by the names of their weights."""

from __future__ import annotations

from typing import NamedTuple

from nlattn._types import Floats
from nlattn.layers._conv import conv, conv_vjp
from nlattn.layers._weights import Weights


class Projection(NamedTuple):
    """Names of a convolution's weight and bias."""

    weight: str
    bias: str

    @classmethod
    def named(cls, name: str) -> Projection:
        """As PyTorch names them."""
        return cls(f"{name}.weight", f"{name}.bias")

    def of(self, w: Weights, x: Floats) -> Floats:
        """The convolution of x (B, ..., C)."""
        return conv(x, w.matrix(self.weight), w[self.bias])

    def vjp(self, w: Weights, x: Floats, dy: Floats, found: dict[str, Floats]) -> Floats:
        """Gradient of x; those of the weights are added to `found`."""
        g = conv_vjp(x, w.matrix(self.weight), dy)
        found |= {self.weight: g.weight, self.bias: g.bias}
        return g.x
