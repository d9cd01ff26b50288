"""The non-local block: embeddings, a non-local mean, an output convolution, a residual."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

from nlattn import _check
from nlattn._modes import Convention, Nonfinite
from nlattn._types import Array, Floats, JsonObject, Result, StateDict
from nlattn.layers import _dual, _nonlocal, _operators, _state, _weights
from nlattn.layers._conv import pixels, total
from nlattn.layers._nonlocal import Names, Norm
from nlattn.layers._norm import Statistics, moved, normalise, normalise_vjp, statistics
from nlattn.layers._pool import max_pool, max_pool_vjp
from nlattn.layers._projection import Projection
from nlattn.layers._weights import Weights
from nlattn.maps.base import AttentionMap
from nlattn.ops import nonlocal_mean as ops


def nonlocal_block(
    x: Floats,
    weights: StateDict,
    *,
    pairwise: str,
    convention: Convention = "pytorch",
    subsample: bool = False,
    training: bool = False,
    tolerance: float = 0.0,
    nonfinite: Nonfinite = "raise",
) -> Result:
    """Non-local block: ``y = x + BN(W(nonlocal_mean(theta(x), phi(x), g(x))))``.

    Parameters
    ----------
    x : (..., L, C), (..., H, W, C) or (..., T, H, W, C) array, float32 or float64
        As many spatial axes as the weights' kernels have.
    weights : mapping of str to array
        Under the published names, of the dtype of `x`; docs/layers.md lists them.
    pairwise : {"gaussian", "embedded_gaussian", "dot_product", "concatenation"}
        As for `nonlocal_mean`; the middle two with "caffe2".
    convention : {"pytorch", "caffe2"}
        The widely used port, or the authors' original.
    subsample : bool
        Halve height and width for keys and values, by their maximum.
    training : bool
        Normalise by the batch; the result is ``(y, buffers)``, the moved statistics by name.
    tolerance : float
        As for `nonlocal_mean`: share of the softmax forms' weights that may be misplaced.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    array in the shape and dtype of `x`

    Raises
    ------
    ValueError
        Weights are missing, superfluous or misshaped (all are named), or sizes do not fit.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    The cost is that of `nonlocal_mean` and ``4 n C c``. Source: [wang2018]. Status: author code.

    Examples
    --------
    >>> y = nlattn.layers.nonlocal_block(x, weights, pairwise="dot_product")
    """
    names, fit, w = _start(
        "nonlocal_block", weights, pairwise, convention, subsample, nonfinite, x=x
    )
    batch = _batch(fit, names, training)
    run = _run(fit, names, w, tolerance)
    y, found = _finish(names, w, run, batch)
    result = fit.unfold(fit["x"] + y)
    return (result, _buffers(fit, names, w, found)) if training else result


def nonlocal_block_map(
    x: Floats,
    weights: StateDict,
    *,
    pairwise: str,
    convention: Convention = "pytorch",
    subsample: bool = False,
    nonfinite: Nonfinite = "raise",
) -> AttentionMap:
    """The attention map inside `nonlocal_block`, of one image: from ``g(x)`` to its means.

    Arguments as there; `x` has no leading axes. Queries and keys lie on their grids.

    Examples
    --------
    >>> A = nlattn.layers.nonlocal_block_map(x[0], weights, pairwise="dot_product")
    """
    op = "nonlocal_block_map"
    names, fit, w = _start(op, weights, pairwise, convention, subsample, nonfinite, x=x)
    if fit.lead:
        _check.fail(op, "x", f"has leading axes {fit.lead}, expected one image ({names.grid})")
    theta, phi, _ = _embed(fit, names, w)[:3]
    return ops.nonlocal_mean_map(
        pixels(theta)[0],
        pixels(phi)[0],
        **_options(names, w),
        query_grid=theta.shape[1:-1],
        key_grid=phi.shape[1:-1],
    )


def nonlocal_block_vjp(
    x: Floats,
    weights: StateDict,
    dout: Floats,
    *,
    pairwise: str,
    convention: Convention = "pytorch",
    subsample: bool = False,
    training: bool = False,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``, `dweights` a mapping by name.

    Arguments as for `nonlocal_block`, `dout` in the shape of `x`. With ``training=True`` gradients
    go through the batch's statistics; kept statistics have none. A maximum passes its gradient to
    its first occurrence in raster order.

    Examples
    --------
    >>> options = {"pairwise": "dot_product"}
    >>> y = nlattn.layers.nonlocal_block(x, weights, **options)
    >>> dx, dweights = nlattn.layers.nonlocal_block_vjp(x, weights, np.ones_like(y), **options)
    """
    op = "nonlocal_block_vjp"
    arrays = {"x": x, "dout": dout}
    names, fit, w = _start(op, weights, pairwise, convention, subsample, nonfinite, **arrays)
    batch = _batch(fit, names, training)
    run = _run(fit, names, w)
    dmean, found = _finish_vjp(names, w, run, fit["dout"], batch)
    sets = [pixels(z) for z in (run.theta, run.phi, run.g, dmean)]
    gradients = ops.nonlocal_mean_vjp(*sets, **_options(names, w), nonfinite="propagate")
    dtheta, dphi, dg = (
        d.reshape(z.shape) for d, z in zip(gradients, (run.theta, run.phi, run.g), strict=False)
    )
    if names.concat:
        found[names.concat] = gradients[3]
    dx = fit["dout"] + _project_vjp(w, names.theta, fit["x"], dtheta, found)
    if names.pool and names.pool_first:
        dpooled = _project_vjp(w, names.phi, run.source, dphi, found)
        dpooled = dpooled + _project_vjp(w, names.g, run.source, dg, found)
        dx += max_pool_vjp(fit["x"], names.pool, dpooled)
    else:
        for pair, full, d in ((names.phi, run.all_phi, dphi), (names.g, run.all_g, dg)):
            inner = max_pool_vjp(full, names.pool, d) if names.pool else d
            dx += _project_vjp(w, pair, fit["x"], inner, found)
    return fit.unfold(dx), w.gradients(found)


_Embedded: TypeAlias = tuple[Floats, Floats, Floats, Floats, Floats, Floats]


class _Run(NamedTuple):
    """What the forward pass makes."""

    theta: Floats
    phi: Floats
    g: Floats
    all_phi: Floats
    """Before a maximum over windows, if there is one after the convolution."""
    all_g: Floats
    source: Floats
    """What keys and values are convolved from."""
    mean: Floats
    """The non-local mean (B, *grid, c)."""
    conv: Floats
    """The output convolution (B, *grid, C)."""


def _start(
    op: str,
    weights: object,
    pairwise: object,
    convention: object,
    subsample: object,
    nonfinite: Nonfinite,
    **arrays: Floats,
) -> tuple[Names, _check.Fit, Weights]:
    """Check everything."""
    given = _state.mapping(op, weights)
    if convention == "caffe2":
        given = _state.caffe2(given)
    names = _nonlocal.find(op, given, pairwise, convention, subsample)
    fit = _dual.fit(op, {name: (z, names.grid) for name, z in arrays.items()}, nonfinite=nonfinite)
    w = _weights.take(fit, given, names.shapes, counters=names.counters, nonfinite=nonfinite)
    grid = fit["x"].shape[1:-1]
    if names.pool and any(n < size for n, size in zip(grid, names.pool, strict=True)):
        text = f"has a grid of {grid}, expected at least {names.pool} with subsample=True"
        _check.fail(op, "x", text)
    return names, fit, w


def _batch(fit: _check.Fit, names: Names, training: object) -> bool:
    """Whether the batch's own statistics are used."""
    batch = _check.flag(fit.op, "training", training) and names.norm is not None
    positions = fit["x"].size // fit.dims["C"]
    if batch and positions < 2:
        text = f"has {positions} positions in all, expected at least 2 with training=True"
        _check.fail(fit.op, "x", f"{text}: a variance needs them")
    return batch


def _embed(fit: _check.Fit, names: Names, w: Weights) -> _Embedded:
    """theta, phi, g; phi and g before a maximum that follows them; what they are made from."""
    x = fit["x"]
    theta = _project(w, names.theta, x)
    if names.pool and names.pool_first:
        source = max_pool(x, names.pool)
        phi, g = _project(w, names.phi, source), _project(w, names.g, source)
        return theta, phi, g, phi, g, source
    all_phi, all_g = _project(w, names.phi, x), _project(w, names.g, x)
    phi, g = (max_pool(z, names.pool) if names.pool else z for z in (all_phi, all_g))
    return theta, phi, g, all_phi, all_g, x


def _run(fit: _check.Fit, names: Names, w: Weights, tolerance: float = 0.0) -> _Run:
    made = _embed(fit, names, w)
    theta, _, g = made[:3]
    sets = (pixels(z) for z in made[:3])
    options = _options(names, w)
    if tolerance:
        options["tolerance"] = tolerance
    mean = _operators.nonlocal_mean(*sets, **options, nonfinite="propagate")
    mean = mean.reshape(*theta.shape[:-1], g.shape[-1])
    return _Run(*made, mean, names.out.of(w, mean))


def _options(names: Names, w: Weights) -> JsonObject:
    """Of the non-local mean."""
    options: JsonObject = {"pairwise": names.pairwise}
    if names.scaled:
        options["scale"] = w.sizes["c"] ** -0.5
    if names.concat:
        options["weight"] = w[names.concat].reshape(-1)
    return options


def _statistics(names: Names, w: Weights, run: _Run, batch: bool) -> Statistics:
    assert names.norm is not None
    if batch:
        return statistics(run.conv)
    return _kept(names.norm, w)


def _kept(norm: Norm, w: Weights) -> Statistics:
    """Running statistics."""
    return Statistics(w[norm.mean].astype(np.float64), w[norm.variance].astype(np.float64))


def _finish(names: Names, w: Weights, run: _Run, batch: bool) -> tuple[Floats, Statistics | None]:
    """What is added to the input, and the statistics that normalised it."""
    if names.affine is None:
        return run.conv, None
    scale, shift = (w[name] for name in names.affine)
    if names.norm is None:
        return run.conv * scale + shift, None
    found = _statistics(names, w, run, batch)
    return normalise(run.conv, found, names.norm.eps, scale, shift), found


def _finish_vjp(
    names: Names, w: Weights, run: _Run, dy: Floats, batch: bool
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients of the non-local mean, and those of the weights behind it by name."""
    found: dict[str, Floats] = {}
    if names.affine is not None:
        scale = w[names.affine.scale]
        if names.norm is None:
            found = {names.affine.scale: total(dy * run.conv), names.affine.shift: total(dy)}
            dy = dy * scale
        else:
            s = _statistics(names, w, run, batch)
            g = normalise_vjp(run.conv, s, names.norm.eps, scale, dy)
            found = {names.affine.scale: g.scale, names.affine.shift: g.shift}
            dy = g.x
    return names.out.vjp(w, run.mean, dy, found), found


def _buffers(
    fit: _check.Fit, names: Names, w: Weights, batch: Statistics | None
) -> dict[str, Array]:
    """Running statistics after a batch, by name."""
    if names.norm is None or batch is None:
        return {}
    new = moved(_kept(names.norm, w), batch)
    buffers: dict[str, Array] = {
        name: value.astype(fit.out_dtype)
        for name, value in zip(names.norm[:2], new[:2], strict=True)
    }
    if names.norm.counter:
        buffers[names.norm.counter] = w[names.norm.counter] + 1
    return buffers


def _project(w: Weights, by: Projection | None, x: Floats) -> Floats:
    """A convolution, or the input itself where there is none."""
    return x if by is None else by.of(w, x)


def _project_vjp(
    w: Weights, by: Projection | None, x: Floats, dy: Floats, found: dict[str, Floats]
) -> Floats:
    """Gradient of the input of `_project`; those of its weights are added to `found`."""
    return dy if by is None else by.vjp(w, x, dy, found)
