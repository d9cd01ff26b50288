"""The truth of attention at real sizes, at a sample of its rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints, Support
from nlattn.engines import sampled as engine
from nlattn.engines.support import checked_support
from nlattn.ops._band import band


class SampledTruth(NamedTuple):
    """Exact parts of one head's attention, float64.

    Examples
    --------
    >>> nlattn.sampled_truth(q, k, v, queries=[5]).out.shape
    (1, 8)
    """

    out: Floats
    """(queries, e)."""
    lse: Floats
    """(queries,); -inf for a query without keys."""
    dq: Floats | None
    """(queries, d); None without a cotangent."""
    dk: Floats | None
    """(keys, d), summed over all n queries; None without a cotangent."""
    dv: Floats | None
    """(keys, e)."""


def sampled_truth(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    queries: Ints | Sequence[int],
    keys: Ints | Sequence[int] = (),
    dout: Floats | None = None,
    dlse: Floats | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    causal: bool = False,
    causal_offset: int = 0,
    window: tuple[int | None, int | None] | None = None,
    support: Support | None = None,
    max_work: float = 1e13,
) -> SampledTruth:
    """Rows of `attention` at some queries and gradients at some keys, at any n and m.

    Parameters
    ----------
    q, k, v, dout : (n, d), (m, d), (m, e), (n, e) arrays, or what gives rows ``x[a:b]``
        One head. Anything with a ``shape`` that is sliced by rows: files, arrays made by block.
    queries, keys : sequence of int
        Where `out`, `lse`, `dq` are wanted, and where `dk`, `dv`.
    dlse : (n,) array-like, optional
        Cotangent of ``lse``.
    scale, softcap, causal, causal_offset, window
        As for `attention`.
    support : Support, optional
        Of shape (n, m): as for `sparse_attention`.
    max_work : float
        Multiply-adds that the gradients of keys may take.

    Returns
    -------
    SampledTruth

    Raises
    ------
    ValueError
        Shapes or numbers do not fit, or the gradients need more than `max_work`.
    TypeError
        Numbers of queries or keys are no integers.

    Notes
    -----
    ``queries m (d + e)`` multiply-adds. A gradient of a key needs the normaliser of each query that
    has a cotangent and may attend to it: all m keys of it. Memory is some tens of megabytes.
    Status: ours.

    Examples
    --------
    >>> truth = nlattn.sampled_truth(q, k, v, queries=[0, 63], causal=True)
    >>> np.allclose(truth.out, nlattn.attention(q, k, v, causal=True)[[0, 63]])
    True
    """
    op = "sampled_truth"
    arrays = {"q": q, "k": k, "v": v, "dout": dout, "dlse": dlse}
    shapes = {"q": "n d", "k": "m d", "v": "m e", "dout": "n e", "dlse": "n"}
    given = {
        name: _rows(op, name, x, shapes[name])
        for name, x in arrays.items()
        if x is not None or name in "qkv"
    }
    _fit(op, given, shapes)
    n, m = given["q"].shape[0], given["k"].shape[0]
    rows, columns = _numbers(op, "queries", queries, n), _numbers(op, "keys", keys, m)
    low, high = band(op, causal, causal_offset, window)
    if support is not None:
        support = checked_support(op, support)
        if support.shape != (n, m):
            _check.fail(op, "support", f"has shape {support.shape}, expected ({n}, {m})")
    factor = given["q"].shape[1] ** -0.5 if scale is None else _check.number(op, "scale", scale)
    cap = None if softcap is None else _check.number(op, "softcap", softcap, positive=True)
    head = engine.OneHead(given["q"], given["k"], given["v"], factor, cap, low, high, support)
    if dout is None and (len(columns) or dlse is not None):
        _check.fail(op, "dout", "is None, expected an (n, e) cotangent, which gradients are of")
    return _sample(op, head, rows, columns, given.get("dout"), given.get("dlse"), max_work)


def _sample(
    op: str,
    head: engine.OneHead,
    rows: Ints,
    columns: Ints,
    dout: engine.Rows | None,
    dlse: engine.Rows | None,
    max_work: float,
) -> SampledTruth:
    e, d = head.v.shape[1], head.q.shape[1]
    out, lse, dq = np.empty((len(rows), e)), np.empty(len(rows)), np.empty((len(rows), d))
    order = np.argsort(rows, kind="stable")
    done = 0
    for i in head.near(rows[order]):
        at = order[done : done + len(i)]
        done += len(i)
        out[at], lse[at] = engine.rows(head, i)
        if dout is not None:
            g = dout[i]
            delta = (g * out[at]).sum(1) - (0 if dlse is None else dlse[i])
            dq[at] = engine.queries_vjp(head, i, lse[at], g, delta)
    if dout is None:
        return SampledTruth(out, lse, None, None, None)
    dk: Floats = np.zeros((0, d))
    dv: Floats = np.zeros((0, e))
    if len(columns):
        work = engine.work(head, columns, dout, dlse)
        if work > max_work:
            text = f"need {work:.2g} multiply-adds, above max_work={max_work:g}"
            remedy = "let dout be 0 at most queries, or allow more"
            _check.fail(op, "keys", f"{text}; {remedy}")
        dk, dv = engine.keys_vjp(head, columns, dout, dlse)
    return SampledTruth(out, lse, dq, dk, dv)


def _rows(op: str, name: str, x: object, dims: str) -> engine.Rows:
    """What gives rows of floating numbers."""
    if not hasattr(x, "shape") or not hasattr(x, "__getitem__"):
        x = _check.array(op, name, x)
    if isinstance(x, np.ndarray):
        _check.array(op, name, x)
    if len(x.shape) != len(dims.split()):
        wanted = ", ".join(dims.split())
        _check.fail(op, name, f"has shape {tuple(x.shape)}, expected ({wanted}), one head")
    return engine.Rows(x)


def _fit(op: str, given: dict[str, engine.Rows], shapes: dict[str, str]) -> None:
    """Refuse sizes that contradict each other."""
    sizes: dict[str, tuple[int, str]] = {}
    for name, x in given.items():
        for dim, size in zip(shapes[name].split(), x.shape, strict=True):
            known, source = sizes.setdefault(dim, (size, name))
            if known != size:
                text = f"expected ({', '.join(shapes[name].split())}) with {dim}={known}"
                _check.fail(op, name, f"has shape {x.shape}, {text} from {source}")
            if dim in "de" and not size:
                _check.fail(op, name, "has 0 channels, expected at least 1")


def _numbers(op: str, name: str, value: object, size: int) -> Ints:
    """Numbers of rows, int64."""
    index = _check.integers(op, name, value)
    if index.ndim != 1:
        _check.fail(op, name, f"has shape {index.shape}, expected a sequence of numbers")
    outside = (index < 0) | (index >= size)
    if outside.any():
        where = int(outside.argmax())
        _check.fail(op, f"{name}[{where}]", f"is {index[where]}, expected 0 to {size - 1}")
    return index.astype(np.int64)
