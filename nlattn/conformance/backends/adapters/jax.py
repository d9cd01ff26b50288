"""JAX: ``jax.nn.dot_product_attention``, gradients by ``jax.vjp``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nlattn._types import Array, JsonObject, Options, Result
from nlattn.conformance.backends.adapters import Band, Tensor, allowed_pairs, four_axes
from nlattn.conformance.backends.backend import call
from nlattn.conformance.table import owner


class Backend:
    """Attention in one of JAX's ways: "xla", or on a GPU "cudnn"."""

    def __init__(self, way: str = "xla"):
        import jax

        jax.config.update("jax_enable_x64", True)
        self.name = "jax" if way == "xla" else f"jax:{way}"
        self._way = way
        self._programs: dict[Any, Any] = {}

    def capabilities(self) -> Options:
        """Attention alone, compiled whole for each shape, dtype and options."""
        words: JsonObject = {
            "operators": ["attention"],
            "gradients": True,
            "compiles": True,
        }
        if self._way == "cudnn":
            sizes = {"d": {"multiple": 8, "least": 8}, "e": "d"}
            words |= {"dtypes": ["float16", "bfloat16"], "shapes": sizes}
        return words

    def run(self, op: str, arrays: dict[str, Array], options: JsonObject) -> Result:
        """Outputs, or gradients by name."""
        import jax

        given = {n: jax.numpy.asarray(np.array(x)) for n, x in arrays.items()}
        dout = given.pop("dout", None)
        key = (op, *given, repr(sorted(options.items())))
        if key not in self._programs:
            self._programs[key] = self._program(owner(op), dict(options), gradient=op != owner(op))
        program = self._programs[key]
        if dout is None:
            return np.asarray(program(given))
        moving = {n: given.pop(n) for n in ("q", "k", "v", "bias") if n in given}
        gradients = program(dout, moving, given)
        return {f"d{n}": np.asarray(g) for n, g in gradients.items()}

    def _program(self, op: str, options: dict[str, Any], *, gradient: bool) -> Tensor:
        """A function that JAX compiles once for the shapes and dtypes of its arrays."""
        import jax

        def compute(given: Mapping[str, Tensor]) -> Tensor:
            return call(self._attention, op, given, options)

        def gradients(
            dout: Tensor, moving: Mapping[str, Tensor], rest: Mapping[str, Tensor]
        ) -> Mapping[str, Tensor]:
            return jax.vjp(lambda x: compute({**x, **rest}), moving)[1](dout)[0]

        return jax.jit(gradients if gradient else compute)

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        bias: Tensor = None,
        mask: Tensor = None,
        causal: bool = False,
        causal_offset: int | str = 0,
        window: Band = None,
        gqa: bool = False,
    ) -> Tensor:
        import jax

        lead = q.shape[:-2] if gqa else np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v)))
        n, e = q.shape[-2], v.shape[-1]
        if not gqa:
            q, k, v = (jax.numpy.broadcast_to(x, lead + x.shape[-2:]) for x in (q, k, v))
        q, k, v = four_axes(q, k, v, True)
        plain = causal and not causal_offset
        sides = window if window and None not in window else None
        rest = None if sides else window
        pairs = allowed_pairs(n, k.shape[-2], causal and not plain, causal_offset, rest)
        if pairs is not None:
            mask = pairs if mask is None else mask & pairs
        heads = [
            None if x is None else x.reshape(*((1,) * (4 - x.ndim)), *x.shape) for x in (bias, mask)
        ]
        d, pad = q.shape[-1], jax.numpy.pad
        q, k, v = (
            pad(x, ((0, 0),) * 3 + ((0, max(d, e) - x.shape[-1]),)) for x in (q, k, v)
        )  # it wants values as wide as keys
        out = jax.nn.dot_product_attention(
            *(jax.numpy.swapaxes(x, 1, 2) for x in (q, k, v)),
            bias=heads[0],
            mask=heads[1],
            scale=d**-0.5 if scale is None else scale,
            is_causal=plain,
            local_window_size=tuple(sides) if sides else None,
            implementation=self._way,
        )
        return jax.numpy.swapaxes(out, 1, 2)[..., :e].reshape(*lead, n, e)
