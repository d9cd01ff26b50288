"""``torch:flex``: flex_attention, with every option as a modification of scores.

Where there is a GPU it is compiled, with sizes that may vary; elsewhere PyTorch computes it step by
step.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from nlattn.conformance.backends.adapters import allowed_pairs, four_axes

SIZES = {"d": (16, 32, 64, 128, 256), "e": (16, 32, 64, 128, 256)}
"""Head dimensions that its compiled kernels take."""
_compiled: list[Any] = []


def attention(
    torch: Any,
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Any = None,
    mask: Any = None,
    causal: bool = False,
    causal_offset: int = 0,
    window: Any = None,
    gqa: bool = False,
    return_lse: bool = False,
) -> Any:
    """Outputs, and lse if it is asked for."""
    lead = tuple(q.shape[:-2])
    if not gqa:
        lead = np.broadcast_shapes(*(tuple(x.shape[:-2]) for x in (q, k, v)))
    q, k, v = four_axes(q, k, v, gqa)
    n, m = q.shape[-2], k.shape[-2]
    pairs = allowed_pairs(n, m, causal, causal_offset, window)
    yes = None if pairs is None else torch.from_numpy(pairs).to(q.device)
    if mask is not None:
        yes = mask if yes is None else yes & mask
    bias, yes = (x if x is None else x.expand(*lead, n, m).reshape(*q.shape[:2], n, m)
                 for x in (bias, yes))  # fmt: skip

    def modified(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        if softcap is not None:
            s = softcap * torch.tanh(s / softcap)
        if bias is not None:
            s = s + bias[b, h, i, j]
        return s if yes is None else torch.where(yes[b, h, i, j], s, -float("inf"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is not compiled
        found = _function(torch, q)(
            q, k, v, score_mod=modified, scale=scale, enable_gqa=gqa, return_lse=return_lse
        )
    if not return_lse:
        return found.reshape(*lead, n, v.shape[-1])
    return found[0].reshape(*lead, n, v.shape[-1]), found[1].reshape(*lead, n)


def _function(torch: Any, q: Any) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if not q.is_cuda:
        return flex_attention
    if not _compiled:
        _compiled.append(torch.compile(flex_attention, dynamic=True))
    return _compiled[0]
