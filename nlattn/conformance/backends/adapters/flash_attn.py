"""``flash_attn_func`` of the package flash-attn, on a GPU; gradients are autograd's.

Its causality and its windows are aligned with the last key, ours with the first: a side of a window
that would be negative there is one that it does not have.
"""

from __future__ import annotations

import numpy as np

from nlattn._types import Options
from nlattn.conformance.backends.adapters import Band, Module, Tensor, four_axes, placed, torch
from nlattn.conformance.backends.backend import Unsupported


class Backend(torch.Backend):
    """Attention, with everything that the package offers."""

    def __init__(self, device: str = "cuda"):
        import flash_attn

        super().__init__(device)
        self._flash: Module = flash_attn
        self._attend = self._asked
        self.name = "flash_attn"

    def capabilities(self) -> Options:
        """Head dimensions that are multiples of 8; sums of gradients come in any order."""
        return {
            "operators": ["attention"],
            "dtypes": ["float16", "bfloat16"],
            "deterministic": False,
            "shapes": {"attention": {"d": {"multiple": 8, "least": 8, "most": 256}, "e": "d"}},
        }

    def _asked(
        self, _: Module, q: Tensor, k: Tensor, v: Tensor, *,
        scale: float | None = None, softcap: float | None = None, causal: bool = False,
        causal_offset: int | str = 0, window: Band = None, gqa: bool = False,
        return_lse: bool = False,
    ) -> Tensor:  # fmt: skip
        """Outputs, and lse if it is asked for."""
        lead = tuple(q.shape[:-2])
        if not gqa:
            lead = np.broadcast_shapes(lead, tuple(k.shape[:-2]), tuple(v.shape[:-2]))
        q, k, v = four_axes(q, k, v, gqa)
        n, m = q.shape[-2], k.shape[-2]
        left, right = window or (None, None)
        if causal:
            ahead = placed(causal_offset, n, m)
            right = ahead if right is None else min(right, ahead)
        sides = _side(left, m - n), _side(right, n - m)
        found = self._flash.flash_attn_func(
            *(x.transpose(1, 2) for x in (q, k, v)),
            softmax_scale=scale,
            causal=sides[1] == 0,
            window_size=sides,
            softcap=softcap or 0.0,
            return_attn_probs=return_lse,
        )
        out = found[0] if return_lse else found
        out = out.transpose(1, 2).reshape(*lead, n, v.shape[-1])
        return (out, found[1].reshape(*lead, n)) if return_lse else out


def _side(keys: int | None, shift: int) -> int:
    """How many keys a window has on one side, counted from the last keys; -1 for all."""
    if keys is None:
        return -1
    if keys + shift < 0:
        raise Unsupported("its windows hold the key of the query's own place, from the end")
    return int(keys + shift)
