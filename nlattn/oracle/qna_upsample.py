"""Learned queries towards a finer grid: `qna` once for each of its phases.

Paper: Arar, Shamir, Bermano, "Learned Queries for Efficient Local Attention" (QnA), 2022, which
offers the form but does not print it. Status: reconstruction. Phase ``f = a scale + b`` makes the
pixels ``(scale I + a, scale J + b)``; keys and values are those of the coarse grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn.oracle.layout import any_layout
from nlattn.oracle.qna import Array, Pair, qna, qna_jvp, qna_vjp


@any_layout
def qna_upsample(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: int,
    window: int | tuple[int, int],
    bias: Array | None = None,
    gate: Array | None = None,
) -> Array:
    """One set of queries for each phase ``f = a scale + b``: ``out[scale I + a, scale J + b]``."""
    phases: list[Any] = []
    for f in range(scale * scale):
        given: Any = {name: x[..., f, :, :, :] for name, x in _given(bias, gate)}
        phases.append(qna(q[..., f, :, :], k, v, window=window, **given))
    return _interleaved(phases, scale)


def _interleaved(phases: list[Array], scale: int) -> Array:
    """The image whose pixels ``(s I + a, s J + b)`` are those of phase ``a s + b``."""
    out = np.stack(phases, -4)
    H, W, e = out.shape[-3:]
    out = out.reshape(*out.shape[:-4], scale, scale, H, W, e)
    out = np.moveaxis(out, (-5, -4), (-4, -2))  # (..., H, a, W, b, e)
    return out.reshape(*out.shape[:-5], scale * H, scale * W, e)


@any_layout
def qna_upsample_vjp(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    *,
    scale: int,
    window: int | tuple[int, int],
    bias: Array | None = None,
    gate: Array | None = None,
) -> tuple[Array | None, ...]:
    """Gradients (dq, dk, dv, dbias, dgate): those of every phase, keys and values summed."""
    each = []
    for f in range(scale * scale):
        given: Any = {name: x[..., f, :, :, :] for name, x in _given(bias, gate)}
        phase = dout[..., f // scale :: scale, f % scale :: scale, :]
        each.append(qna_vjp(q[..., f, :, :], k, v, phase, window=window, **given))
    dq, dk, dv, dbias, dgate = zip(*each, strict=True)
    return (
        np.stack(dq, -3),
        np.asarray(sum(dk)),
        np.asarray(sum(dv)),
        None if bias is None else np.stack(dbias, -4),
        None if gate is None else np.stack(dgate, -4),
    )


@any_layout
def qna_upsample_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    *,
    scale: int,
    window: Pair,
    dbias: Array | None = None,
    dgate: Array | None = None,
    bias: Array | None = None,
    gate: Array | None = None,
) -> Array:
    """Change of `out` along dq, dk, dv, dbias and dgate: that of every phase."""
    phases = []
    for f in range(scale * scale):
        terms = {"bias": bias, "gate": gate, "dbias": dbias, "dgate": dgate}
        given: Any = {n: x[..., f, :, :, :] for n, x in terms.items() if x is not None}
        of_q = q[..., f, :, :], k, v, dq[..., f, :, :], dk, dv
        phases.append(qna_jvp(*of_q, window=window, **given))
    return _interleaved(phases, scale)


def _given(bias: Array | None, gate: Array | None) -> list[tuple[str, Array]]:
    return [(name, x) for name, x in (("bias", bias), ("gate", gate)) if x is not None]
