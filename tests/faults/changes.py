"""Forward mode of attention, as one writes it."""

from __future__ import annotations

from typing import Any

import numpy as np


def attention_jvp(
    bad: str, q: Any, k: Any, v: Any, dq: Any, dk: Any, dv: Any, *, scale: Any = None,
    softcap: Any = None, causal: bool = False, mask: Any = None, bias: Any = None,
    dbias: Any = None, return_lse: bool = False, lse_base: str = "e",
) -> Any:  # fmt: skip
    """The product rule, line by line."""
    factor = q.dtype.type(q.shape[-1] ** -0.5 if scale is None else scale)
    kt, dkt = (np.swapaxes(x, -1, -2) for x in (k, dk))
    s, ds = factor * (q @ kt), factor * (dq @ kt + q @ dkt)
    if bad == "no dk":
        ds = factor * (dq @ kt)
    if bad == "unscaled":
        ds = dq @ kt + q @ dkt
    if softcap is not None:
        s = softcap * np.tanh(s / softcap)
        ds = ds if bad == "no slope" else ds * (1 - (s / softcap) ** 2)
    if bias is not None:
        s, ds = s + bias, ds if bad == "no dbias" else ds + dbias
    seen = np.ones(s.shape, bool)
    if causal:
        seen &= np.tri(*s.shape[-2:], dtype=bool)
    if mask is not None:
        seen &= mask
    s, ds = np.where(seen, s, -np.inf), np.where(seen, ds, 0)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(top), 0, top)
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True)
    P = e / np.where(total == 0, 1, total)
    mean = (P * ds).sum(-1, keepdims=True)
    dP = P * (ds if bad == "no mean" else ds - mean)
    if bad == "no weights":
        dP = np.where(seen, ds - mean, 0)
    out = dP @ v + (0 if bad == "no dv" else P @ dv)
    if bad == "values moved twice":
        out = dP @ (v + dv) + P @ dv
    lse = mean[..., 0] / (np.log(2) if lse_base == "2" and bad != "natural" else 1)
    return (out, lse) if return_lse else out


FAULTS: dict[str, dict[str, str]] = {
    "attention_jvp": {
        "no dk": "without the part of dk",
        "no dv": "without the part of dv",
        "no dbias": "without the part of dbias",
        "no slope": "without the slope of the softcap",
        "no mean": "without the mean in the softmax's change",
        "natural": "with the change of lse in the other base",
        "no weights": "",
        "unscaled": "with the change of scores not scaled",
        "values moved twice": "with the change of weights times values that have moved",
    },
}
