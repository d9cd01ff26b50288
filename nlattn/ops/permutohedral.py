"""Gaussian attention on the permutohedral lattice: linear in the number of points."""

from __future__ import annotations

from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Lattice, Nonfinite, SoftmaxOrGaussian
from nlattn._types import Array, Floats, Ints, Result, Simplices
from nlattn.engines import lattice as lattices
from nlattn.engines import laws
from nlattn.engines import permutohedral as engine
from nlattn.engines.magnitude import ranged
from nlattn.maps.permutohedral import PermutohedralMap

WEIGHTS: tuple[SoftmaxOrGaussian, ...] = get_args(SoftmaxOrGaussian)
LATTICES: tuple[Lattice, ...] = get_args(Lattice)


def permutohedral_simplices(x: Floats, *, nonfinite: Nonfinite = "raise") -> Simplices:
    """The simplices in which features (..., n, d) lie, as `permutohedral_attention` finds them.

    Of coordinates that tie, as in patches without texture, the lower index ranks first. The
    simplices of another implementation can be given in place of these.

    Examples
    --------
    >>> points = q[:, :3]
    >>> s = nlattn.permutohedral_simplices(points)
    >>> given = {"q_simplices": s, "k_simplices": s}
    >>> out = nlattn.permutohedral_attention(points, points, v, **given)
    """
    fit = _check.fit("permutohedral_simplices", {"x": (x, "n d")}, nonfinite=nonfinite)
    _in_range(fit, "x")
    n, d = fit.shape("n d")
    with np.errstate(all="ignore"):
        u = lattices.embed(fit["x"].reshape(-1, d).astype(np.float64))
    u[~np.isfinite(u).all(1)] = 0
    return Simplices(*(part.reshape(*fit.lead, n, d + 1) for part in lattices.simplices(u)))


@ranged(laws.lattice)
def permutohedral_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    normalize: bool = True,
    weight: SoftmaxOrGaussian = "gaussian",
    scale: float | None = None,
    lattice: Lattice = "published",
    query_vertices: bool = True,
    q_simplices: Simplices | None = None,
    k_simplices: Simplices | None = None,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Attention with weights of about ``exp(-|q_i - k_j|^2 / 2)``, by splat, blur and slice.

    Parameters
    ----------
    q, k, v : (..., n, d), (..., m, d), (..., m, e) arrays of one dtype, float32 or float64
        Features in units of sigma, and values. Leading axes broadcast, each with a lattice.
    normalize : bool
        Divide by the filtered ones; False gives the published filter, which grows with m.
    weight : {"gaussian", "softmax"}
        "softmax" stands for ``exp(scale q.k)``: Gaussian weights of ``sqrt(scale)`` q and k, the
        keys weighted by ``exp(scale |k|^2 / 2)``.
    scale : float, optional
        Of the softmax; ``1/sqrt(d)`` if omitted.
    lattice : {"published", "complete"}
        "complete" adds all points that a blur reaches: symmetric and continuous, but for
        3^(d+1) times the points at most.
    query_vertices : bool
        Whether queries insert lattice points, through which keys may then reach other queries.
    q_simplices, k_simplices : Simplices, optional
        As `permutohedral_simplices` gives them.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.
    return_lse : bool
        Also return the log of what each row was divided by, (..., n) float64.

    Returns
    -------
    (..., n, e) array, dtype of `q`; 0 for a query that no key reaches

    Raises
    ------
    ValueError
        Shapes do not fit, a value is not finite, or a feature is too large for exact points.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``(n + m) (d + 1) (d + e) + 2 M (d + 1) e`` multiply-adds for M lattice points. Source:
    [joutard2019, adams2010]. Status: author code.

    Examples
    --------
    >>> nlattn.permutohedral_attention(q[:, :3], k[:, :3], v).shape
    (64, 8)
    """
    op, arrays = "permutohedral_attention", {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e")}
    fit = _check.fit(op, arrays, nonfinite=nonfinite)
    options = _options(fit, normalize, weight, scale, lattice, query_vertices)
    given = _given(fit, options, q_simplices, k_simplices)
    if return_lse and not options.normalize:
        text = "has no place in normalize=False, whose rows are divided by nothing"
        _check.fail(op, "return_lse=True", text)
    out, lse = engine.attend(fit, options, given)
    result = fit.unfold(out)
    return (result, fit.unfold(lse, cast=False)) if return_lse else result


def permutohedral_attention_map(
    q: Floats,
    k: Floats,
    *,
    normalize: bool = True,
    weight: SoftmaxOrGaussian = "gaussian",
    scale: float | None = None,
    lattice: Lattice = "published",
    query_vertices: bool = True,
    q_simplices: Simplices | None = None,
    k_simplices: Simplices | None = None,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    nonfinite: Nonfinite = "raise",
) -> PermutohedralMap:
    """The map of one head's `permutohedral_attention`, from values (m, e) to outputs (n, e).

    Arguments as there; `query_grid` and `key_grid` say how queries and keys lie in raster order.
    The map holds the lattice, ``O((n + m + M) d)`` numbers; `A.points` is M.

    Examples
    --------
    >>> A = nlattn.permutohedral_attention_map(q[:, :3], k[:, :3])
    """
    op = "permutohedral_attention_map"
    fit = _check.fit(op, {"q": (q, "n d"), "k": (k, "m d")}, nonfinite=nonfinite)
    _check.one_head(fit)
    options = _options(fit, normalize, weight, scale, lattice, query_vertices)
    given = _given(fit, options, q_simplices, k_simplices).slice(0)
    head = engine.Head(op, fit["q"][0], fit["k"][0], options, given)
    return PermutohedralMap.of(head, fit.dtype, query_grid, key_grid)


@ranged(laws.lattice)
def permutohedral_attention_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    dlse: Floats | None = None,
    normalize: bool = True,
    weight: SoftmaxOrGaussian = "gaussian",
    scale: float | None = None,
    lattice: Lattice = "published",
    query_vertices: bool = True,
    q_simplices: Simplices | None = None,
    k_simplices: Simplices | None = None,
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out) + sum(dlse * lse)``, the simplices held fixed.

    Arguments as for `permutohedral_attention`; where queries are the keys, add dq and dk. On a
    border of simplices it is the derivative of the chosen one. Twice the forward pass, without its
    search for neighbours.

    Examples
    --------
    >>> dq, dk, dv = nlattn.permutohedral_attention_vjp(q[:, :3], k[:, :3], v, np.ones_like(v))
    """
    op = "permutohedral_attention_vjp"
    arrays = {"q": (q, "n d"), "k": (k, "m d"), "v": (v, "m e"), "dout": (dout, "n e")}
    if dlse is not None:
        arrays["dlse"] = (dlse, "n")
    fit = _check.fit(op, arrays, nonfinite=nonfinite)
    options = _options(fit, normalize, weight, scale, lattice, query_vertices)
    if dlse is not None and not options.normalize:
        _check.fail(op, "dlse", "has no place in normalize=False, which has no lse")
    given = _given(fit, options, q_simplices, k_simplices)
    return engine.vjp(fit, options, given, dlse is not None)


@ranged(laws.along(laws.lattice))
def permutohedral_attention_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    normalize: bool = True,
    weight: SoftmaxOrGaussian = "gaussian",
    scale: float | None = None,
    lattice: Lattice = "published",
    query_vertices: bool = True,
    q_simplices: Simplices | None = None,
    k_simplices: Simplices | None = None,
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Change of `permutohedral_attention` along (dq, dk, dv), the simplices held fixed.

    Arguments as there; changes have the shapes of their arrays. With `return_lse` also that of
    ``lse``. Two filters beside that of the forward pass, on the same lattice.

    Examples
    --------
    >>> change = nlattn.permutohedral_attention_jvp(q, k, v, 1e-3 * q, 0 * k, 0 * v)
    """
    op, specs = "permutohedral_attention_jvp", {"q": "n d", "k": "m d", "v": "m e"}
    arrays = {n: (x, specs[n]) for n, x in zip(specs, (q, k, v), strict=True)}
    arrays |= {f"d{n}": (x, specs[n]) for n, x in zip(specs, (dq, dk, dv), strict=True)}
    fit = _check.fit(op, arrays, nonfinite=nonfinite)
    options = _options(fit, normalize, weight, scale, lattice, query_vertices)
    if return_lse and not options.normalize:
        text = "has no place in normalize=False, whose rows are divided by nothing"
        _check.fail(op, "return_lse=True", text)
    out, lse = engine.jvp(fit, options, _given(fit, options, q_simplices, k_simplices))
    result = fit.unfold(out)
    return (result, fit.unfold(lse, cast=False)) if return_lse else result


def _options(
    fit: _check.Fit,
    normalize: object,
    weight: object,
    scale: float | None,
    lattice: object,
    query_vertices: object,
) -> engine.PermutohedralOptions:
    op = fit.op
    normalize = _check.flag(op, "normalize", normalize)
    softmax = _check.choice(op, "weight", weight, WEIGHTS) == "softmax"
    factor = fit.dims["d"] ** -0.5
    if scale is not None:
        if not softmax:
            text = "has no place in weight='gaussian'; divide the features by sigma"
            _check.fail(op, f"scale={scale}", text)
        factor = _check.number(op, "scale", scale, positive=True)
    if softmax and not normalize:
        _check.fail(op, "normalize=False", "has no place in weight='softmax', which divides")
    for name in "qk":
        _in_range(fit, name, factor**0.5 if softmax else 1.0)
    complete = _check.choice(op, "lattice", lattice, LATTICES) == "complete"
    wanted = _check.flag(op, "query_vertices", query_vertices)
    return engine.PermutohedralOptions(normalize, str(weight), factor, complete, wanted)


def _in_range(fit: _check.Fit, name: str, root: float = 1.0) -> None:
    """Refuse features whose lattice points would not be exact integers."""
    x, most = fit[name], lattices.most(fit.dims["d"]) / root
    with np.errstate(invalid="ignore"):
        beyond = (abs(x) > most) & np.isfinite(x)
    if beyond.any():
        first = int(beyond.reshape(-1).argmax())
        where = [int(i) for i in np.unravel_index(first, fit.given(name))]
        text = f"expected at most {most:.3g} in magnitude, so that lattice points are exact"
        _check.fail(fit.op, f"{name}{where}", f"is {x.reshape(-1)[first]}, {text}; scale it down")


def _given(
    fit: _check.Fit, options: engine.PermutohedralOptions, q: object, k: object
) -> engine.GivenSimplices:
    """The caller's simplices, checked and broadcast to every slice."""
    root = options.scale**0.5 if options.weight == "softmax" else 1.0
    return engine.GivenSimplices(
        *(_checked(fit, name, x, root) for name, x in (("q", q), ("k", k)))
    )


def _checked(fit: _check.Fit, name: str, given: object, root: float) -> Simplices | None:
    if given is None:
        return None
    op, label = fit.op, f"{name}_simplices"
    if not (isinstance(given, tuple) and len(given) == 2):
        text = "expected Simplices as from permutohedral_simplices()"
        _check.fail_type(op, label, f"is a {type(given).__name__}, {text}")
    rows, d = fit.dims["n" if name == "q" else "m"], fit.dims["d"]
    parts: list[Ints] = []
    for part, x in zip(Simplices._fields, given, strict=True):
        x = _check.integers(op, f"{label}.{part}", x)
        wanted = (*fit.lead, rows, d + 1)
        try:
            whole = np.broadcast_to(x, wanted)
        except ValueError:
            text = f"has shape {x.shape}, expected one that broadcasts to {wanted}"
            _check.fail(op, f"{label}.{part}", text)
        parts.append(whole.reshape(fit.batch, rows, d + 1).astype(np.int64))
    rem0, rank = parts
    if (rem0 % (d + 1)).any() or rem0.sum(-1).any():
        text = f"holds {_first(rem0, (rem0 % (d + 1)).any(-1) | (rem0.sum(-1) != 0))}"
        _check.fail(op, f"{label}.rem0", f"{text}, expected multiples of {d + 1} that sum to 0")
    wrong = (np.sort(rank, -1) != np.arange(d + 1)).any(-1)
    if wrong.any():
        text = f"expected a permutation of 0..{d} in every row"
        _check.fail(op, f"{label}.rank", f"holds {_first(rank, wrong)}, {text}")
    index = fit.slices(name)[:, 0]
    for b in range(fit.batch):
        _enclosing(fit, name, root * fit[name][index[b]].astype(np.float64), rem0[b], rank[b])
    return Simplices(rem0, rank)


def _enclosing(fit: _check.Fit, name: str, f: Floats, rem0: Ints, rank: Ints) -> None:
    """Refuse simplices of other features; those of less precise ones pass."""
    with np.errstate(all="ignore"):
        u = lattices.embed(f)
        b = lattices.barycentric(u, Simplices(rem0, rank))
        spacing = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(fit.out_dtype.name, 2.0**-23)
        rounded = 16 * spacing * abs(u).max(1, initial=1)
        outside = b.min(1, initial=0) < -rounded
    if outside.any():
        row = int(outside.argmax())
        text = f"is not the simplex of {name}: its point has weight {b[row].min():.3g}"
        _check.fail(fit.op, f"{name}_simplices row {row}", f"{text}, expected at least 0")


def _first(x: Ints, wrong: Array) -> list[int]:
    return [int(i) for i in x.reshape(-1, x.shape[-1])[int(wrong.reshape(-1).argmax())]]
