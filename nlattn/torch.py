"""The operators for PyTorch's autograd: tensors in and out, gradients by their ``_vjp``.

``nlattn.torch.attention(q, k, v)`` is ``nlattn.attention`` of tensors on the CPU, to be
differentiated once, in reverse. All that `nlattn` exports with a ``_vjp`` is here by its name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

import nlattn

_REST = ("dlse",)  # gradients of further results, in their order


def __getattr__(name: str) -> Any:
    if name.startswith("_") or f"{name}_vjp" not in nlattn.__all__:
        raise AttributeError(f"module 'nlattn.torch' has no attribute {name!r}")
    value = globals()[name] = _differentiable(name)
    return value


def __dir__() -> list[str]:
    return sorted(name for name in nlattn.__all__ if f"{name}_vjp" in nlattn.__all__)


def _differentiable(name: str) -> Callable[..., Any]:
    """``nlattn.<name>`` as a node of PyTorch's graph."""
    forward, backward = getattr(nlattn, name), getattr(nlattn, f"{name}_vjp")
    signature, vjp = inspect.signature(forward), inspect.signature(backward).parameters
    before = list(vjp)[: list(vjp).index("dout")]

    @functools.wraps(forward)
    def call(*args: object, **options: Any) -> Any:
        try:
            bound = signature.bind(*args, **options).arguments
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        given = {key: x for key, x in bound.items() if isinstance(x, torch.Tensor)}
        # Gradients come for arrays before dout, then for those given by keyword.
        first = [key for key in before if key in given and given[key].is_floating_point()]
        wanted = [*first, *(key for key in given if key not in before and given[key].requires_grad)]
        rest = {key: x for key, x in bound.items() if key not in wanted}
        result: object = _Node.apply(
            (forward, backward, name, wanted, len(first), rest), *(given[key] for key in wanted)
        )
        return result

    call.__module__ = __name__
    return call


class _Node(torch.autograd.Function):
    """One call: its arrays are kept, and its gradients come from the function's ``_vjp``."""

    @staticmethod
    def forward(ctx: Any, plan: Any, *inputs: torch.Tensor) -> Any:
        function, _, _, names, _, rest = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        arrays = dict(zip(names, (x.detach() for x in inputs), strict=True))
        result = function(**arrays, **{key: _detached(x) for key, x in rest.items()})
        out = result[0] if isinstance(result, tuple) else result
        ctx.plan, ctx.like = plan, (out.shape, out.dtype)
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> Any:
        _, function, name, names, first, rest = ctx.plan
        taken = inspect.signature(function).parameters
        options = {key: _detached(x) for key, x in rest.items() if key in taken}
        named = ("dout", *_REST)
        shape, dtype = ctx.like
        out = torch.zeros(shape, dtype=dtype) if cotangents[0] is None else cotangents[0]
        for key, x in zip(named, (out, *cotangents[1:]), strict=False):
            if x is not None and key not in taken:
                raise TypeError(f"{name}: its second result has no gradient; detach it")
            if x is not None:
                options[key] = x.to(dtype)
        arrays = dict(zip(names, (x.detach() for x in ctx.saved_tensors), strict=True))
        gradients = function(**arrays, **options)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        if len(gradients) < len(names):
            raise TypeError(f"{name}: {names[first]} has no gradient; pass {names[first]}.detach()")
        return (None, *gradients[: len(names)])


def _detached(x: object) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) else x
