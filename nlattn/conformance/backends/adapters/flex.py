"""``torch:flex``: flex_attention, with every option as a modification of scores.

Where there is a GPU it is compiled, with lengths that may vary: one modification serves all masks
and biases, and batches are heads, so that it is compiled for each dtype and head dimension, for
one head and for several, and not for each case. Elsewhere PyTorch computes it step by step.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from nlattn.conformance.backends.adapters import Band, Module, Tensor, allowed_pairs, four_axes

SIZES = {"d": (64, 128), "e": "d"}
"""Head dimensions that it is compiled for."""
LIMITS = ("recompile_limit", "accumulated_recompile_limit", "cache_size_limit")
"""Of the versions that TorchDynamo keeps; beyond them it would compute step by step, silently."""
_compiled: list[Any] = []


def attention(
    torch: Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor = None,
    mask: Tensor = None,
    causal: bool = False,
    causal_offset: int | str = 0,
    window: Band = None,
    gqa: bool = False,
    return_lse: bool = False,
) -> Tensor:
    """Outputs, and lse if it is asked for."""
    lead = tuple(q.shape[:-2])
    if not gqa:
        lead = np.broadcast_shapes(*(tuple(x.shape[:-2]) for x in (q, k, v)))
    q, k, v = (x.reshape(1, -1, *x.shape[2:]) for x in four_axes(q, k, v, gqa))
    n, m = q.shape[-2], k.shape[-2]
    pairs = allowed_pairs(n, m, causal, causal_offset, window)
    yes = torch.ones(n, m, dtype=torch.bool) if pairs is None else torch.from_numpy(pairs)
    yes = yes.to(q.device) if mask is None else yes.to(q.device) & mask
    added = q.new_zeros(n, m) if bias is None else bias
    yes, added = (x.expand(*lead, n, m).reshape(q.shape[1], n, m) for x in (yes, added))

    def modified(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        del b
        if softcap is not None:
            s = softcap * torch.tanh(s / softcap)
        return torch.where(yes[h, i, j], s + added[h, i, j], -float("inf"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is not compiled
        found = _function(torch, q)(
            q, k, v, score_mod=modified, scale=scale, enable_gqa=gqa, return_lse=return_lse
        )
    if not return_lse:
        return found.reshape(*lead, n, v.shape[-1])
    return found[0].reshape(*lead, n, v.shape[-1]), found[1].reshape(*lead, n)


def _function(torch: Module, q: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    if not q.is_cuda:
        return flex_attention
    if not _compiled:
        for name in LIMITS:
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, 1024)
        _compiled.append(torch.compile(flex_attention, dynamic=True))
    return _compiled[0]
