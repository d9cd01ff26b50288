"""The permutohedral attention module: features and positions filter values, split by split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Lattice, Nonfinite
from nlattn._types import Floats, StateDict
from nlattn.layers import _dual, _state, _weights
from nlattn.layers._operators import permutohedral_attention
from nlattn.layers._projection import Projection
from nlattn.layers._weights import Weights
from nlattn.ops.permutohedral import permutohedral_attention_vjp

_LEAK = 0.01
_FEAT, _DESC = Projection.named("conv_feat"), Projection.named("conv_desc")


def pam_block(
    x: Floats,
    weights: StateDict,
    *,
    splits: int = 1,
    normalize: bool = False,
    lattice: Lattice = "published",
    nonfinite: Nonfinite = "raise",
) -> Floats:
    """``y = [F_t[desc(x)_t] for each split t]``, F_t the filter of ``leaky(feat(x, positions))_t``.

    Parameters
    ----------
    x : (..., H, W, C) or (..., T, H, W, C) array, float32 or float64
        Image or volume; `scaling_spatial` says which.
    weights : mapping of str to array
        `scaling_spatial` (1, s, 1, ...) for s spatial axes, `conv_feat.weight` (F, C + s, 1, ...)
        and `conv_desc.weight` (E, C, 1, ...), each with `.bias`; of the dtype of `x`.
    splits : int
        How many lattices; split t owns features and values number t of `splits` equal parts.
    normalize, lattice
        As in `permutohedral_attention`; the published module does not normalise.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    (..., H, W, E) array, dtype of `x`; no residual is added

    Raises
    ------
    ValueError
        Weights are missing, superfluous or misshaped (all are named), or sizes do not fit.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    Positions count from the middle, ``i - H // 2``, times `scaling_spatial`. Every item has its own
    lattice, where the published code has one for the batch. Source: [joutard2019]. Status: author
    code.

    Examples
    --------
    >>> y = nlattn.layers.pam_block(x, weights, splits=2)
    """
    call = _Call.of("pam_block", {"x": x}, weights, splits, nonfinite)
    features, values = call.embed()[1:]
    out = permutohedral_attention(
        features, features, values, normalize=normalize, lattice=lattice, nonfinite="propagate"
    )
    return call.fit.unfold(call.joined(out))


def pam_block_vjp(
    x: Floats,
    weights: StateDict,
    dout: Floats,
    *,
    splits: int = 1,
    normalize: bool = False,
    lattice: Lattice = "published",
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``; arguments as for `pam_block`.

    Examples
    --------
    >>> y = nlattn.layers.pam_block(x, weights, splits=2)
    >>> dx, dweights = nlattn.layers.pam_block_vjp(x, weights, np.ones_like(y), splits=2)
    """
    call = _Call.of("pam_block_vjp", {"x": x, "dout": dout}, weights, splits, nonfinite)
    w, image = call.w, call.fit["x"]
    placed, features, values = call.embed()
    dq, dk, dv = permutohedral_attention_vjp(
        features,
        features,
        values,
        call.split(call.fit["dout"]),
        normalize=normalize,
        lattice=lattice,
        nonfinite="propagate",
    )
    slope = np.where(features > 0, 1, _LEAK).astype(image.dtype)
    found: dict[str, Floats] = {}
    dplaced = _FEAT.vjp(w, placed, call.joined(slope * (dq + dk)), found)
    dx = _DESC.vjp(w, image, call.joined(dv), found)
    C, axes = image.shape[-1], tuple(range(image.ndim - 1))
    moved = dplaced[..., C:].astype(np.float64) * call.positions
    found["scaling_spatial"] = moved.sum(axes)
    return call.fit.unfold(dplaced[..., :C] + dx), w.gradients(found)


class _Call(NamedTuple):
    """Checked input and weights of one call."""

    fit: _check.Fit
    w: Weights
    splits: int
    positions: Floats
    """(..., s) of every pixel, from the middle."""

    @classmethod
    def of(
        cls,
        op: str,
        arrays: Mapping[str, object],
        weights: object,
        splits: object,
        nonfinite: Nonfinite,
    ) -> _Call:
        given = _state.mapping(op, weights)
        scaling = np.shape(given.get("scaling_spatial", 0))
        if len(scaling) not in (4, 5) or scaling[1] != len(scaling) - 2:
            text = f"has shape {scaling}, expected (1, 2, 1, 1) or (1, 3, 1, 1, 1)"
            _check.fail(op, "scaling_spatial", text)
        s, ones = scaling[1], "1 " * scaling[1]
        grid = "H W" if s == 2 else "T H W"
        dims = {"x": f"{grid} C", "dout": f"{grid} E"}
        fit = _dual.fit(op, {n: (z, dims[n]) for n, z in arrays.items()}, nonfinite=nonfinite)
        shapes = {
            "scaling_spatial": f"1 {s} {ones}",
            "conv_feat.weight": f"F {fit.dims['C'] + s} {ones}",
            "conv_feat.bias": "F",
            "conv_desc.weight": f"E C {ones}",
            "conv_desc.bias": "E",
        }
        w = _weights.take(fit, given, shapes, nonfinite=nonfinite)
        parts = _check.integer(op, "splits", splits, low=1)
        for name, letter in (("conv_feat", "F"), ("conv_desc", "E")):
            if w.sizes[letter] % parts:
                text = f"has {w.sizes[letter]} channels, expected a multiple of splits={parts}"
                _check.fail(op, f"{name}.weight", text)
        axes = [np.arange(size) - size // 2 for size in fit["x"].shape[1:-1]]
        places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(fit.dtype)
        return cls(fit, w, parts, places)

    def embed(self) -> tuple[Floats, Floats, Floats]:
        """Input with positions, features and values of every split (B, splits, n, channels)."""
        x, w = self.fit["x"], self.w
        places = self.positions * w["scaling_spatial"].reshape(-1)
        shape = (*x.shape[:-1], places.shape[-1])
        placed = np.concatenate([x, np.broadcast_to(places, shape)], -1)
        z = _FEAT.of(w, placed)
        features = np.where(z > 0, z, z.dtype.type(_LEAK) * z)
        return placed, self.split(features), self.split(_DESC.of(w, x))

    def split(self, z: Floats) -> Floats:
        """Channels of every split apart, (B, splits, n, channels)."""
        return np.moveaxis(z.reshape(len(z), -1, self.splits, z.shape[-1] // self.splits), 2, 1)

    def joined(self, z: Floats) -> Floats:
        """Back to grids, (B, ..., channels)."""
        return np.moveaxis(z, 1, 2).reshape(*self.fit["x"].shape[:-1], -1)
