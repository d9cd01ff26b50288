"""The self-attention block of SAGAN: the PyTorch port, and the original TensorFlow form."""

from __future__ import annotations

from typing import NamedTuple, get_args

from nlattn import _check
from nlattn._modes import Form, Nonfinite
from nlattn._types import Floats, StateDict
from nlattn.layers import _state, _weights
from nlattn.layers._conv import conv, conv_vjp, pixels
from nlattn.layers._operators import nonlocal_mean
from nlattn.layers._pool import max_pool, max_pool_vjp
from nlattn.layers._sagan_port import Port, inner, one_image, start
from nlattn.layers._weights import Weights
from nlattn.maps.base import AttentionMap
from nlattn.ops.nonlocal_mean import nonlocal_mean_map, nonlocal_mean_vjp

FORMS: tuple[Form, ...] = get_args(Form)
_POOL = (2, 2)


def sagan_block(
    x: Floats, weights: StateDict, *, form: Form = "port", nonfinite: Nonfinite = "raise"
) -> Floats:
    """Self-attention of SAGAN: ``y = gamma * attention(q, k, v) + x``.

    Parameters
    ----------
    x : (..., H, W, C) array, float32 or float64
        At least 8 channels; height and width even in the original form.
    weights : mapping of str to array
        Under the published names, of the dtype of `x`; docs/layers.md lists them. Spectral
        normalisation is the caller's.
    form : {"port", "original"}
        The port has biases and C channels of values. The original has neither, but keys and values
        pooled 2 x 2 by their maximum, and an output convolution.
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
    Scores are not scaled. Softmax over n keys, or n / 4 of the original. Source: [zhang2019].
    Status: author code (original), community port.

    Examples
    --------
    >>> y = nlattn.layers.sagan_block(x, weights)
    """
    op = "sagan_block"
    if _check.choice(op, "form", form, FORMS) == "port":
        return Port.of(op, weights, nonfinite, x=x).forward(nonlocal_mean)
    fit, w = _start(op, weights, nonfinite, x=x)
    run = _run(fit, w)
    return fit.unfold(fit["x"] + w["sigma_ratio"] * run.out)


def sagan_block_map(
    x: Floats, weights: StateDict, *, form: Form = "port", nonfinite: Nonfinite = "raise"
) -> AttentionMap:
    """The attention map inside `sagan_block`, of one image (H, W, C).

    Examples
    --------
    >>> A = nlattn.layers.sagan_block_map(x[0], weights)
    """
    op = "sagan_block_map"
    if _check.choice(op, "form", form, FORMS) == "port":
        port = Port.of(op, weights, nonfinite, x=x)
        one_image(port.fit)
        q, k, _ = port.embed()
        queries = keys = port.fit["x"].shape[1:3]
    else:
        fit, w = _start(op, weights, nonfinite, x=x)
        one_image(fit)
        q, k, _ = (pixels(z) for z in _embed(fit, w)[:3])
        queries = fit["x"].shape[1:3]
        keys = (queries[0] // 2, queries[1] // 2)
    return nonlocal_mean_map(q[0], k[0], query_grid=queries, key_grid=keys)


def sagan_block_vjp(
    x: Floats,
    weights: StateDict,
    dout: Floats,
    *,
    form: Form = "port",
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, dict[str, Floats]]:
    """Gradients (dx, dweights) of ``sum(dout * y)``; arguments as for `sagan_block`.

    Examples
    --------
    >>> y = nlattn.layers.sagan_block(x, weights)
    >>> dx, dweights = nlattn.layers.sagan_block_vjp(x, weights, np.ones_like(y))
    """
    op = "sagan_block_vjp"
    if _check.choice(op, "form", form, FORMS) == "port":
        port = Port.of(op, weights, nonfinite, x=x, dout=dout)
        return port.backward(nonlocal_mean, nonlocal_mean_vjp)
    fit, w = _start(op, weights, nonfinite, x=x, dout=dout)
    run, image, dy = _run(fit, w), fit["x"], fit["dout"]
    found = {"sigma_ratio": inner(dy, run.out)}
    g = conv_vjp(run.mean, _matrix(w, "attn"), w["sigma_ratio"] * dy)
    found["sn_conv_attn.w"] = g.weight.T
    sets = [pixels(z) for z in (run.theta, run.phi, run.g, g.x)]
    dtheta, dphi, dg = nonlocal_mean_vjp(*sets, nonfinite="propagate")
    dphi = max_pool_vjp(run.all_phi, _POOL, dphi.reshape(run.phi.shape))
    dg = max_pool_vjp(run.all_g, _POOL, dg.reshape(run.g.shape))
    dx = dy.copy()
    for name, dz in (("theta", dtheta.reshape(run.theta.shape)), ("phi", dphi), ("g", dg)):
        g = conv_vjp(image, _matrix(w, name), dz)
        found[f"sn_conv_{name}.w"] = g.weight.T
        dx += g.x
    return fit.unfold(dx), w.gradients(found)


class _Run(NamedTuple):
    """What the original's forward pass makes."""

    theta: Floats
    phi: Floats
    g: Floats
    all_phi: Floats
    """Before the maximum."""
    all_g: Floats
    mean: Floats
    """What attention gives."""
    out: Floats
    """The same, convolved."""


def _start(
    op: str, weights: object, nonfinite: Nonfinite, **arrays: Floats
) -> tuple[_check.Fit, Weights]:
    """Check everything about the original form."""
    given = _state.mapping(op, weights)
    fit = start(op, nonfinite, given, **arrays)
    height, width, channels = fit.shape("H W C")
    if height % 2 or width % 2:
        text = f"is {height} x {width}, expected even sizes, since form='original' pools 2 x 2"
        _check.fail(op, "x", text)
    shapes = {f"sn_conv_{name}.w": f"1 1 C {channels // 8}" for name in ("theta", "phi")}
    shapes |= {"sn_conv_g.w": f"1 1 C {channels // 2}", "sn_conv_attn.w": f"1 1 {channels // 2} C"}
    return fit, _weights.take(fit, given, {**shapes, "sigma_ratio": ""}, nonfinite=nonfinite)


def _embed(fit: _check.Fit, w: Weights) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """theta, phi, g, and the last two before their maximum."""
    theta, phi, g = (conv(fit["x"], _matrix(w, name)) for name in ("theta", "phi", "g"))
    return theta, max_pool(phi, _POOL), max_pool(g, _POOL), phi, g


def _run(fit: _check.Fit, w: Weights) -> _Run:
    made = _embed(fit, w)
    theta, g = made[0], made[2]
    mean = nonlocal_mean(*(pixels(z) for z in made[:3]), nonfinite="propagate")
    mean = mean.reshape(*theta.shape[:-1], g.shape[-1])
    return _Run(*made, mean, conv(mean, _matrix(w, "attn")))


def _matrix(w: Weights, name: str) -> Floats:
    """A TensorFlow kernel (1, 1, in, out) as a matrix (out, in)."""
    matrix: Floats = w[f"sn_conv_{name}.w"][0, 0].T
    return matrix
