"""Softmax attention in Triton, forward and backward, for nlattn validate on a machine with a GPU.

    nlattn validate docs/examples/triton_attention.py
    nlattn validate docs/examples/triton_attention.py:Unscaled

One program for a block of queries, which loops over blocks of keys; in the backward pass another
for a block of keys. Each of `FLAWS` makes it wrong, in a way that real kernels were wrong in. They
are numbers that a kernel is given, so that it is compiled once for each dtype and head dimension.
Without a GPU, TRITON_INTERPRET=1 runs it slowly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

FLAWS = {"tail": 1, "rescale": 2, "diagonal": 4, "sentinel": 8, "both": 12, "delta": 16}
"""The last block's tail counts; the accumulator is not rescaled when the maximum rises; causality
leaves the diagonal out; -1e30 stands for -inf; these two; rows of gradients keep their mean."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_PLAIN = ["n", "m", "last", "flaw"]


@triton.jit
def scores(q, k, rows, columns, scale, m, last, flaw, IEEE: tl.constexpr):
    """Of a block of queries and a block of keys; query i sees keys up to ``i + last``."""
    never = tl.where((flaw & 8) != 0, -1.0e30, float("-inf"))
    s = tl.dot(q, tl.trans(k), input_precision=IEEE) * scale
    s = tl.where((columns[None, :] < m) | ((flaw & 1) != 0), s, never)
    last -= (flaw & 4) // 4
    return tl.where(columns[None, :] > rows[:, None] + last, never, s)


@triton.jit
def rows_of(X, head, at, n, D: tl.constexpr):
    """Some rows of an array (heads, n, D), zeros beyond its end."""
    place = (head * n + at[:, None]) * D + tl.arange(0, D)[None, :]
    return tl.load(X + place, mask=at[:, None] < n, other=0.0)


@triton.jit
def put_rows(X, x, head, at, n, D: tl.constexpr):
    """Write some rows of an array (heads, n, D)."""
    place = (head * n + at[:, None]) * D + tl.arange(0, D)[None, :]
    tl.store(X + place, x.to(X.dtype.element_ty), mask=at[:, None] < n)


@triton.jit(do_not_specialize=_PLAIN)
def attend(
    Q, K, V, Out, Lse, scale, n, m, last, flaw,
    D: tl.constexpr, IEEE: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Outputs and lse of one block of queries of one head."""
    head, rows = tl.program_id(1), tl.program_id(0) * B + tl.arange(0, B)
    q = rows_of(Q, head, rows, n, D)
    top = tl.full((B,), float("-inf"), tl.float32)
    total = tl.zeros((B,), tl.float32)
    acc = tl.zeros((B, D), tl.float32)
    for start in range(0, m, B):
        columns = start + tl.arange(0, B)
        k, v = rows_of(K, head, columns, m, D), rows_of(V, head, columns, m, D)
        s = scores(q, k, rows, columns, scale, m, last, flaw, IEEE)
        new = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp(s - shift[:, None])
        keep = tl.exp(top - shift)
        total = total * keep + tl.sum(p, 1)
        keep = tl.where((flaw & 2) != 0, 1.0, keep)
        acc = acc * keep[:, None] + tl.dot(p.to(v.dtype), v, input_precision=IEEE)
        top = new
    some = total != 0
    acc = acc / tl.where(some, total, 1.0)[:, None]
    put_rows(Out, tl.where(some[:, None], acc, 0.0), head, rows, n, D)
    lse = tl.where(some, top + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    tl.store(Lse + head * n + rows, lse, mask=rows < n)


@triton.jit
def weights(q, k, lse, rows, columns, scale, m, last, flaw, IEEE: tl.constexpr):
    """Softmax weights of a block from its rows' lse; 0 for queries that attend to nothing."""
    s = scores(q, k, rows, columns, scale, m, last, flaw, IEEE)
    return tl.where(lse[:, None] == float("-inf"), 0.0, tl.exp(s - lse[:, None]))


@triton.jit(do_not_specialize=_PLAIN)
def grad_queries(
    Q, K, V, Dout, Delta, Lse, Dq, scale, n, m, last, flaw,
    D: tl.constexpr, IEEE: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """``dq = scale dS k`` with ``dS = P (dP - delta)`` and ``dP = dout v.T``."""
    head, rows = tl.program_id(1), tl.program_id(0) * B + tl.arange(0, B)
    q, dout = rows_of(Q, head, rows, n, D), rows_of(Dout, head, rows, n, D)
    lse = tl.load(Lse + head * n + rows, mask=rows < n, other=float("-inf"))
    delta = tl.load(Delta + head * n + rows, mask=rows < n, other=0.0)
    dq = tl.zeros((B, D), tl.float32)
    for start in range(0, m, B):
        columns = start + tl.arange(0, B)
        k, v = rows_of(K, head, columns, m, D), rows_of(V, head, columns, m, D)
        p = weights(q, k, lse, rows, columns, scale, m, last, flaw, IEEE)
        ds = p * (tl.dot(dout, tl.trans(v), input_precision=IEEE) - delta[:, None])
        dq += tl.dot(ds.to(k.dtype), k, input_precision=IEEE)
    put_rows(Dq, dq * scale, head, rows, n, D)


@triton.jit(do_not_specialize=_PLAIN)
def grad_keys(
    Q, K, V, Dout, Delta, Lse, Dk, Dv, scale, n, m, last, flaw,
    D: tl.constexpr, IEEE: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """``dk = scale dS.T q`` and ``dv = P.T dout``."""
    head, columns = tl.program_id(1), tl.program_id(0) * B + tl.arange(0, B)
    k, v = rows_of(K, head, columns, m, D), rows_of(V, head, columns, m, D)
    dk, dv = tl.zeros((B, D), tl.float32), tl.zeros((B, D), tl.float32)
    for start in range(0, n, B):
        rows = start + tl.arange(0, B)
        q, dout = rows_of(Q, head, rows, n, D), rows_of(Dout, head, rows, n, D)
        lse = tl.load(Lse + head * n + rows, mask=rows < n, other=float("-inf"))
        delta = tl.load(Delta + head * n + rows, mask=rows < n, other=0.0)
        p = weights(q, k, lse, rows, columns, scale, m, last, flaw, IEEE)
        ds = p * (tl.dot(dout, tl.trans(v), input_precision=IEEE) - delta[:, None])
        dv += tl.dot(tl.trans(p).to(dout.dtype), dout, input_precision=IEEE)
        dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision=IEEE)
    put_rows(Dk, dk * scale, head, columns, m, D)
    put_rows(Dv, dv, head, columns, m, D)


class Backend:
    """What nlattn validate is told, and the launches."""

    name = "triton"
    flaw = ""
    precision = "ieee"
    capabilities = {  # noqa: RUF012
        "operators": ["attention"],
        "dtypes": ["float32", "float16", "bfloat16"],
        "options": {
            "attention": ["causal", "causal_offset", "scale", "return_lse"],
            "attention_vjp": ["causal", "causal_offset", "scale", "dlse"],
        },
        "shapes": {"attention": {"d": (16, 64, 128), "e": "d"}},
        "compiles": True,
    }

    def run(self, op: str, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
        """Heads side by side, then a program for each block of each head."""
        leads = [x.shape[:-2] for name, x in arrays.items() if name in "qkv"]
        lead = np.broadcast_shapes(*leads)
        if op == "attention_vjp" and len({*leads}) > 1:
            raise ValueError("gradients of shared heads are not supported")
        if "causal_offset" in arrays:
            raise ValueError("heads of different causality are not supported")
        if arrays["k"].shape[-2:] != arrays["v"].shape[-2:]:
            raise ValueError("keys and values have different shapes")
        if arrays["q"].shape[-1] != arrays["k"].shape[-1]:
            raise ValueError("queries and keys have different channels")
        t = {name: _tensor(x, lead, 1 if name == "dlse" else 2) for name, x in arrays.items()}
        q, k, v = t["q"], t["k"], t["v"]
        (heads, n, d), m = q.shape, k.shape[1]
        last = options.get("causal_offset", 0) if options.get("causal") else m
        last = m - n if last == "bottom-right" else last
        scale = float(options.get("scale", d**-0.5))
        rest = (scale, n, m, last, FLAWS.get(self.flaw, 0))
        fixed = {"D": d, "IEEE": self.precision, "B": 64 if d < 128 or q.itemsize < 4 else 32}
        out, lse = torch.empty_like(q), torch.empty(heads, n, device=DEVICE)

        def launch(kernel: Any, length: int, *given: Any) -> None:
            if heads * length:
                kernel[(triton.cdiv(length, fixed["B"]), heads)](
                    *given, *rest, **fixed, num_stages=1
                )

        launch(attend, n, q, k, v, out, lse)
        if op == "attention":
            found = _array(out).reshape(*lead, n, d), lse.cpu().numpy().reshape(*lead, n)
            return found if options.get("return_lse") else found[0]
        delta = (out.float() * t["dout"].float()).sum(-1)
        if self.flaw == "delta":
            delta = torch.zeros_like(delta)
        if "dlse" in t:
            delta = delta - t["dlse"].float().reshape(heads, n)
        given = (q, k, v, t["dout"], delta, lse)
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        launch(grad_queries, n, *given, dq)
        launch(grad_keys, m, *given, dk, dv)
        return tuple(_array(x).reshape(*lead, *x.shape[1:]) for x in (dq, dk, dv))


def _tensor(x: Any, lead: tuple[int, ...], own: int) -> Any:
    """(heads, ...) on the device; the last `own` axes are those of one head."""
    x = np.array(np.broadcast_to(x, (*lead, *x.shape[-own:])), order="C")
    x = x.reshape(-1, *x.shape[len(lead) :])
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).to(DEVICE)
    return torch.from_numpy(x).to(DEVICE)


def _array(x: Any) -> Any:
    x = x.cpu()
    if x.dtype != torch.bfloat16:
        return x.numpy()
    import ml_dtypes

    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


class Tail(Backend):  # noqa: D101
    flaw = "tail"


class Unscaled(Backend):  # noqa: D101
    flaw = "rescale"


class Diagonal(Backend):  # noqa: D101
    flaw = "diagonal"


class Sentinel(Backend):  # noqa: D101
    flaw = "sentinel"


class DiagonalSentinel(Backend):  # noqa: D101
    flaw = "both"


class NoDelta(Backend):  # noqa: D101
    flaw = "delta"


class TF32(Backend):  # noqa: D101
    precision = "tf32"


class ThreeTF32(Backend):  # noqa: D101
    precision = "tf32x3"
