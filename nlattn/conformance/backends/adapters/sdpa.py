"""PyTorch's kernels of scaled dot product attention: one of them, with lse, or its own choice."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from nlattn._types import Function
from nlattn.conformance.backends.adapters import Module, Tensor
from nlattn.conformance.backends.backend import Unsupported

KERNELS = {
    "math": "MATH",
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
}
"""What PyTorch calls them."""
_HALF = ("float16", "bfloat16")
DTYPES = {
    "flash": _HALF,
    "cudnn": _HALF,
    "efficient": ("float32", *_HALF),
    "flex": ("float32", *_HALF),
}
"""Of their kernels for a GPU."""
_NONE_LEFT = ("No available kernel", "No viable backend")


@contextlib.contextmanager
def only(kernel: str) -> Iterator[None]:
    """PyTorch's choice held to one kernel; Unsupported where that does not do a call."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = sdpa_kernel(getattr(SDPBackend, KERNELS[kernel]))
    try:
        with warnings.catch_warnings(), chosen:
            warnings.simplefilter("ignore")  # it warns of each kernel that it passes over
            yield
    except RuntimeError as error:
        if not any(text in str(error) for text in _NONE_LEFT):
            raise
        raise Unsupported("the kernel does not do this") from None


def choice(torch: Module, q: Tensor, k: Tensor, v: Tensor, **options: object) -> str:
    """Which kernel PyTorch takes for a call, where it tells."""
    from torch.nn.attention import SDPBackend

    try:
        number = torch._fused_sdp_choice(q, k, v, **options)
        found = next(x for x in SDPBackend.__members__.values() if int(x) == int(number))
    except (AttributeError, RuntimeError, StopIteration, TypeError):
        return ""
    return next((name for name, own in KERNELS.items() if own == found.name), found.name.lower())


def with_lse(
    torch: Module,
    kernel: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output and lse of a kernel that computes both; Unsupported of any other."""
    if kernel not in _WITH_LSE:
        raise Unsupported("has no lse")
    group = q.shape[1] // max(k.shape[1], 1)
    if group > 1:
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(
            ~mask, -float("inf")
        )
    out, lse = _WITH_LSE[kernel](torch.ops.aten, q, k, v, mask, causal, scale)[:2]
    return out, lse.reshape(*lse.shape[:2], -1)[..., : q.shape[-2]]  # one pads the rows, one adds


def _flash(
    aten: Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, causal: bool, scale: float
) -> Tensor:
    if not q.is_cuda:
        kernel = aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
    if mask is not None or (causal and q.shape[-2] != k.shape[-2]):
        raise Unsupported("the kernel does not do this")
    return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)


def _efficient(
    aten: Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, causal: bool, scale: float
) -> Tensor:
    kernel = aten._scaled_dot_product_efficient_attention
    return kernel(q, k, v, _expanded(mask, q, k), True, 0.0, causal, scale=scale)


def _cudnn(
    aten: Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, causal: bool, scale: float
) -> Tensor:
    kernel = aten._scaled_dot_product_cudnn_attention
    return kernel(q, k, v, _expanded(mask, q, k), True, 0.0, causal, False, scale=scale)


def _expanded(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return None if mask is None else mask.expand(*q.shape[:-1], k.shape[-2])


_WITH_LSE: dict[str, Function] = {
    "flash": _flash,
    "efficient": _efficient,
    "cudnn": _cudnn,
}
