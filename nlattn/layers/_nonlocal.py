"""Names and shapes of a non-local block's weights, in both published conventions."""

from __future__ import annotations

from typing import NamedTuple, get_args

from nlattn import _check
from nlattn._modes import Convention, Pairwise
from nlattn._types import StateDict
from nlattn.layers._projection import Projection

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
_CAFFE2 = ("embedded_gaussian", "dot_product")
_PAIRWISE: tuple[Pairwise, ...] = get_args(Pairwise)
_CONCAT = "concat_project.0.weight"
_GRIDS = {1: "L", 2: "H W", 3: "T H W"}


class Affine(NamedTuple):
    """Names of a scale and a shift."""

    scale: str
    shift: str


class Norm(NamedTuple):
    """Names of what batch normalisation keeps, and its epsilon."""

    mean: str
    variance: str
    counter: str | None
    eps: float


class Names(NamedTuple):
    """Which weights a block has, and how they are put together."""

    pairwise: Pairwise
    g: Projection
    out: Projection
    theta: Projection | None
    phi: Projection | None
    concat: str | None
    affine: Affine | None
    """Scale and shift behind the output."""
    norm: Norm | None
    """What normalises before them."""
    axes: int
    """Spatial axes."""
    flat: bool
    """Whether the concatenation's kernel has two axes whatever the others have, as published."""
    pool: tuple[int, ...] | None
    """Window of the maximum."""
    pool_first: bool
    """Whether the input is pooled, or keys and values are."""
    scaled: bool
    """Whether scores are divided by the root of the inner channels."""

    @property
    def grid(self) -> str:
        """Dimensions of the input."""
        return f"{_GRIDS[self.axes]} C"

    @property
    def shapes(self) -> dict[str, str]:
        """Dimensions of every weight, as `_weights.take` reads them."""
        ones = " 1" * self.axes
        shapes: dict[str, str] = {}
        for pair in filter(None, (self.g, self.theta, self.phi)):
            shapes |= {pair.weight: f"c C{ones}", pair.bias: "c"}
        if self.concat:
            shapes[self.concat] = "1 2c 1 1" if self.flat else f"1 2c{ones}"
        shapes |= {self.out.weight: f"C c{ones}", self.out.bias: "C"}
        if self.affine:
            shapes |= dict.fromkeys(self.affine, "C")
        if self.norm:
            shapes |= dict.fromkeys(self.norm[:2], "C")
        return shapes

    @property
    def counters(self) -> tuple[str, ...]:
        """Weights that are whole numbers."""
        return (self.norm.counter,) if self.norm and self.norm.counter else ()


def find(
    op: str, weights: StateDict, pairwise: object, convention: object, subsample: object
) -> Names:
    """The weights that these options ask for, and those that the given names announce."""
    convention = _check.choice(op, "convention", convention, CONVENTIONS)
    pairwise = _check.choice(op, "pairwise", pairwise, _PAIRWISE)
    subsample = _check.flag(op, "subsample", subsample)
    if convention == "caffe2":
        if pairwise not in _CAFFE2:
            listed = " or ".join(map(repr, _CAFFE2))
            _check.fail(op, f"pairwise={pairwise!r},", f"expected {listed} of convention='caffe2'")
        return _caffe2(weights, pairwise, subsample)
    return _pytorch(weights, pairwise, subsample)


def _pytorch(weights: StateDict, pairwise: Pairwise, subsample: bool) -> Names:
    inner = ".0" if subsample else ""
    normed = any(str(name).startswith(("W.0.", "W.1.")) for name in weights)
    embedded = pairwise != "gaussian"
    g = Projection.named(f"g{inner}")
    axes = _axes(weights, g.weight)
    return Names(
        pairwise,
        g,
        Projection.named("W.0" if normed else "W"),
        Projection.named("theta") if embedded else None,
        Projection.named(f"phi{inner}") if embedded else None,
        _CONCAT if pairwise == "concatenation" else None,
        Affine("W.1.weight", "W.1.bias") if normed else None,
        Norm("W.1.running_mean", "W.1.running_var", "W.1.num_batches_tracked", 1e-5)
        if normed
        else None,
        axes,
        getattr(weights.get(_CONCAT), "ndim", 0) == 4,
        _window(axes) if subsample else None,
        False,
        False,
    )


def _caffe2(weights: StateDict, pairwise: Pairwise, subsample: bool) -> Names:
    names = ("nl_g", "nl_out", "nl_theta", "nl_phi")
    g, out, theta, phi = (Projection(f"{name}_w", f"{name}_b") for name in names)
    kept, affine = ("nl_bn_rm", "nl_bn_riv"), Affine("nl_bn_s", "nl_bn_b")
    normed = any(name in weights for name in kept)
    axes = _axes(weights, g.weight, 3)
    return Names(
        pairwise,
        g,
        out,
        theta,
        phi,
        None,
        affine if normed or any(name in weights for name in affine) else None,
        Norm(*kept, None, 1.0000001e-5) if normed else None,
        axes,
        False,
        _window(axes) if subsample else None,
        True,
        pairwise == "embedded_gaussian",
    )


def _axes(weights: StateDict, name: str, otherwise: int = 2) -> int:
    """Spatial axes of a convolution's kernel."""
    axes = getattr(weights.get(name), "ndim", 0) - 2
    return axes if axes in _GRIDS else otherwise


def _window(axes: int) -> tuple[int, ...]:
    return (1, 2, 2) if axes == 3 else (2,) * axes
