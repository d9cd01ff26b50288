"""PyTorch: its scaled dot product attention, and linear attention composed of its functions.

Linear attention in 16 bits is computed in float32 and rounded once.

"torch" leaves the choice of a kernel to PyTorch, on a GPU where there is one; "torch:math",
"torch:flash", "torch:efficient" and "torch:cudnn" insist on one, and "torch:flex"
is flex_attention; "-cpu" or "-cuda" at the end says
where: "torch:flash-cpu". Gradients are autograd's.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import numpy as np

from nlattn._types import Array, Function, JsonObject, Options, Result
from nlattn.conformance.backends.adapters import (
    Band,
    Module,
    Tensor,
    allowed_pairs,
    flex,
    four_axes,
    sdpa,
)
from nlattn.conformance.backends.backend import call
from nlattn.conformance.case import Case, dtype_of


class Backend:
    """PyTorch with one way to compute attention."""

    def __init__(self, way: str = ""):
        import torch

        kernel, _, device = way.rpartition("-") if way.endswith(("cpu", "cuda")) else (way, "", "")
        if kernel and kernel not in (*sdpa.KERNELS, "flex"):
            expected = ", ".join((*sdpa.KERNELS, "flex"))
            raise ValueError(f"torch:{way}: no such kernel, expected {expected}")
        self._torch: Module = torch
        self._kernel = kernel
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.name = f"torch:{way}" if way else "torch"
        self.ran = ""
        """The kernel of the last call; chosen by PyTorch, where it is not by name."""
        self._attend: Function = flex.attention if kernel == "flex" else self._attention

    def capabilities(self) -> Options:
        """Attention; without a kernel of its choice linear attention, too."""
        operators = ["attention", *([] if self._kernel else _OPERATORS)]
        words: JsonObject = {"operators": operators, "gradients": True}
        if self._device != "cuda" or self._kernel == "math":
            return words
        sizes: JsonObject = {"d": {"multiple": 8, "least": 8}, "e": "d"}
        if self._kernel == "flex":
            sizes, words["compiles"] = flex.SIZES, True
        if self._kernel:
            words["dtypes"] = sdpa.DTYPES[self._kernel]
        if self._kernel in ("", "efficient"):
            words["products"] = "3xtf32"  # how its kernel of float32 uses the tensor cores
        words["shapes"] = {"attention": sizes}
        return words

    def run(self, op: str, arrays: dict[str, Array], options: JsonObject) -> Result:
        """Outputs, or gradients by name."""
        torch, name = self._torch, op.removesuffix("_vjp")
        tensors = {n: self._tensor(x) for n, x in arrays.items()}
        dout = tensors.pop("dout", None)
        function = _OPERATORS.get(name, self._attend)
        self.ran = self._kernel

        def compute(*args: Tensor, **rest: Tensor) -> Tensor:
            if name == "attention" or args[0].dtype.itemsize > 2:
                return function(torch, *args, **rest)
            wide = {n: self._wide(x) for n, x in rest.items()}
            return function(torch, *map(self._wide, args), **wide).to(args[0].dtype)

        compute.__signature__ = _signature(function)  # type: ignore[attr-defined]
        with self._chosen():
            if dout is None:
                found = call(compute, name, tensors, options)
                one = not isinstance(found, tuple)
                return self._array(found) if one else tuple(map(self._array, found))
            outputs = Case("", name, "vjp", "float64", arrays, options).outputs
            leaves = [tensors[n[1:]].requires_grad_() for n in outputs]
            out = call(compute, name, tensors, options)
            gradients = torch.autograd.grad(out, leaves, dout)
        return {n: self._array(g) for n, g in zip(outputs, gradients, strict=True)}

    def _attention(
        self, torch: Module, q: Tensor, k: Tensor, v: Tensor, *,
        scale: float | None = None, bias: Tensor = None, mask: Tensor = None, causal: bool = False,
        causal_offset: int | str = 0, window: Band = None, gqa: bool = False,
        return_lse: bool = False,
    ) -> Tensor:  # fmt: skip
        """Outputs, and lse from a kernel of one's choice that tells it."""
        shape = (*np.broadcast_shapes(q.shape[:-2], *([] if gqa else [k.shape[:-2]])), q.shape[-2])
        q, k, v = four_axes(q, k, v, gqa)
        n, m = q.shape[-2], k.shape[-2]
        plain = causal and not causal_offset and window is None and bias is None and mask is None
        pairs = None if plain else allowed_pairs(n, m, causal, causal_offset, window)
        extra = None
        if pairs is not None:
            extra = torch.from_numpy(pairs).to(q.device)
        if mask is not None:
            extra = mask if extra is None else mask & extra
        if bias is not None:
            extra = bias if extra is None else bias.masked_fill(~extra, -np.inf)
        if extra is not None and extra.ndim > 3:  # heads of a batch may share it
            extra = extra.expand(*shape[:-1], *extra.shape[-2:])
        if extra is not None and extra.ndim > 2:
            extra = extra.reshape(*(q.shape[:2] if extra.ndim > 3 else (1, -1)), *extra.shape[-2:])
        d, e = q.shape[-1], v.shape[-1]
        scale = d**-0.5 if scale is None else scale
        if self._kernel not in ("", "math") and d != e:  # others want one width
            q, k = (torch.nn.functional.pad(x, (0, max(e - d, 0))) for x in (q, k))
            v = torch.nn.functional.pad(v, (0, max(d - e, 0)))
        if return_lse:
            out, lse = sdpa.with_lse(torch, self._kernel, q, k, v, extra, plain, scale)
            return out[..., :e].reshape(*shape, e), lse.reshape(shape)
        words = {"attn_mask": extra, "is_causal": plain, "scale": scale, "enable_gqa": gqa}
        self.ran = self._kernel or sdpa.choice(torch, q, k, v, **words)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **words)
        return out[..., :e].reshape(*shape, e)

    def _chosen(self) -> Tensor:
        if self._kernel in ("", "flex"):
            return contextlib.nullcontext()
        return sdpa.only(self._kernel)

    def _tensor(self, x: Tensor) -> Tensor:
        x = np.array(x, order="C")
        if x.dtype.name == "bfloat16":
            bits = self._torch.from_numpy(x.view(np.int16))
            return bits.view(self._torch.bfloat16).to(self._device)
        return self._torch.from_numpy(x).to(self._device)

    def _wide(self, x: Tensor) -> Tensor:
        """A tensor of 16 bits in float32; anything else as it is."""
        half = isinstance(x, self._torch.Tensor) and x.is_floating_point() and x.dtype.itemsize < 4
        return x.float() if half else x

    def _array(self, x: Tensor) -> Tensor:
        x = x.detach().cpu().contiguous()
        if x.dtype == self._torch.bfloat16:
            return x.view(self._torch.int16).numpy().view(dtype_of("bfloat16"))
        return x.numpy()


def _signature(function: Function) -> Tensor:
    whole = inspect.signature(function)
    return whole.replace(parameters=list(whole.parameters.values())[1:])


def _nonlocal_mean(
    torch: Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pairwise: str = "",
    scale: float = 1.0,
    weight: Tensor = None,
) -> Tensor:
    m = k.shape[-2]
    if pairwise == "concatenation":
        a, b = q @ weight[: q.shape[-1]], k @ weight[q.shape[-1] :]
        return torch.relu(a[..., :, None] + b[..., None, :]) @ v / m
    if pairwise == "dot_product":
        return q @ (k.mT @ v) / m
    return torch.softmax(scale * (q @ k.mT), -1) @ v


def _efficient_attention(
    torch: Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    normalization: str = "softmax",
    mask: Tensor = None,
) -> Tensor:
    if normalization == "scaling":
        count = k.shape[-2] if mask is None else mask.sum(-1).clamp(min=1)[..., None, None]
        k = k if mask is None else k.masked_fill(~mask[..., None], 0)
        return q @ (k.mT @ v) / count
    if mask is None:
        weights = torch.softmax(k, -2)
    else:
        some = mask.any(-1)[..., None, None]  # where there is no key, softmax says NaN
        k = k.masked_fill(~mask[..., None] & some, -np.inf)
        weights = torch.softmax(k, -2) * some
    return torch.softmax(q, -1) @ (weights.mT @ v)


def _refined_self_attention(_: Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.mT @ v) / k.shape[-2]


def _features(
    torch: Module, x: Tensor, projection: Tensor, c: float, eps: float, axes: Any
) -> Tensor:
    projected = c * x @ projection.mT
    top = projected.amax(axes, keepdim=True) if axes else 0
    half = (c * x).square().sum(-1, keepdim=True) / 2
    return (torch.exp(projected - half - top) + eps) / len(projection) ** 0.5


def _favor_attention(
    torch: Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    projection: Tensor,
    kernel: str = "softmax",
    eps: float = 1e-4,
) -> Tensor:
    c = q.shape[-1] ** -0.25
    if kernel == "relu":
        f, g = (torch.relu(c * x @ projection.mT) + 1e-3 for x in (q, k))
    else:
        f = _features(torch, q, projection, c, eps, -1)
        g = _features(torch, k, projection, c, eps, (-1, -2))
    return _normalised(f, g, v)


def _enla(
    torch: Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    projection: Tensor,
    amplification: float | None = 6.0,
    eps: float = 1e-4,
) -> Tensor:
    if amplification is not None:
        q, k = (
            amplification**0.5 * torch.nn.functional.normalize(x, dim=-1, eps=5e-5) for x in (q, k)
        )
    f, g = (_features(torch, x, projection, 1.0, eps, ()) for x in (q, k))
    return _normalised(f, g, v)


def _normalised(f: Tensor, g: Tensor, v: Tensor) -> Tensor:
    return f @ (g.mT @ v) / (f @ g.sum(-2)[..., None])


_OPERATORS: dict[str, Function] = {
    "nonlocal_mean": _nonlocal_mean,
    "efficient_attention": _efficient_attention,
    "refined_self_attention": _refined_self_attention,
    "favor_attention": _favor_attention,
    "enla": _enla,
}
