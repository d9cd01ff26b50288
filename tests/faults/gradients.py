"""Gradients: of plain operators by complex steps; of the others our own, handed on wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn.conformance.case import Case
from nlattn.conformance.table import find
from nlattn.conformance.truth.transcription import transcription
from tests.faults import grids, keys, lattice, linear

_STEP = 1e-30
_MOST = 2000
"""Elements that are stepped along: beyond it takes too long."""
_PARTS = ("field.index", "support.indptr", "support.indices", "support.shape")
_PARTS += tuple(f"{name}_simplices.{part}" for name in "qk" for part in ("rem0", "rank"))
_HANDED_ON = {
    "ones": "for a cotangent of ones",
    "sign": "with the sign turned",
    "values alone": "with weights held constant: dv alone",
}


def by_steps(op: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    """``gradients(bad, *arrays, dout, **rest)`` of a plain operator, wrong where it is wrong."""

    def gradients(bad: str, *given: Any, **rest: Any) -> Any:
        def run(inputs: dict[str, Any]) -> Any:
            first = [inputs[name] for name in _names(op)]
            return forward(bad, *first, **{**rest, **{n: inputs[n] for n in inputs if n in rest}})

        def slope(inputs: dict[str, Any], dout: Any, name: str) -> Any:
            """In all heads at once, since none looks at another."""
            x, found = inputs[name], []
            lead = x.shape[: x.ndim - len(find(op).arrays.get(name, "c").split())]
            core = x.shape[len(lead) :]
            for step in _STEP * np.eye(math.prod(core)):
                out = run({**inputs, name: x + 1j * step.reshape(core)})
                found.append((dout * out.imag).reshape(*lead, -1).sum(-1) / _STEP)
            return np.moveaxis(np.array(found), 0, -1).reshape(x.shape)

        def slopes(inputs: dict[str, Any], dout: Any, outputs: tuple[str, ...]) -> Any:
            if sum(x.size for x in inputs.values()) > _MOST:
                raise NotImplementedError
            return [slope(inputs, dout, name[1:]) for name in outputs]

        return _handed_on(op, bad, given, rest, slopes)

    return gradients


def by_oracle(op: str) -> Callable[..., Any]:
    """The same interface, of the oracle's gradients."""

    def gradients(bad: str, *given: Any, **rest: Any) -> Any:
        def ours(inputs: dict[str, Any], dout: Any, _: tuple[str, ...]) -> Any:
            options = {n: x for n, x in rest.items() if n not in inputs}
            for part in _PARTS:
                if part.replace(".", "_") in options:
                    inputs[part] = options.pop(part.replace(".", "_"))
            found = transcription(f"{op}_vjp", {**inputs, "dout": dout}, options)
            return [x for x in found if x is not None] if isinstance(found, tuple) else [found]

        return _handed_on(op, bad, given, rest, ours)

    return gradients


def _names(op: str) -> list[str]:
    spec = find(op)
    return [name for name in spec.arrays if name not in spec.optional]


def _handed_on(
    op: str, bad: str, given: tuple[Any, ...], rest: dict[str, Any], slopes: Callable[..., Any]
) -> Any:
    *first, dout = given
    inputs = dict(zip(_names(op), first, strict=True))
    outputs = Case("", op, "vjp", "float64", {**inputs, **rest}).outputs
    inputs |= {n[1:]: rest[n[1:]] for n in outputs if n[1:] not in inputs}
    inputs = {n: np.asarray(x, float) for n, x in inputs.items()}
    found = slopes(inputs, np.ones_like(dout) if bad == "ones" else dout, outputs)
    if bad == "sign":
        return tuple(-x for x in found)
    if bad == "values alone":
        return tuple(x * (n == "dv") for n, x in zip(outputs, found, strict=True))
    return tuple(found)


_STEPPED = {
    op: (module, module.FAULTS[op])
    for module, ops in (
        (linear, [op for op in linear.FAULTS if op != "enlca_loss"]),  # which has ties
        (keys, ["scram", "lev_attention"]),
    )
    for op in ops
}
_OWN = ("enlca_loss", "sparse_attention", *grids.FAULTS, *lattice.FAULTS)

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{op: by_steps(op, getattr(module, op)) for op, (module, _) in _STEPPED.items()},
    **{op: by_oracle(op) for op in _OWN},
}
FAULTS: dict[str, dict[str, str]] = {
    f"{op}_vjp": {**(_STEPPED[op][1] if op in _STEPPED else {}), **_HANDED_ON} for op in FUNCTIONS
} | {
    "nl_means_vjp": {name: _HANDED_ON[name] for name in ("ones", "sign")},  # it has no values
    "enlca_loss_vjp": {"ones": _HANDED_ON["ones"]},  # nor this; its sign is "exchanged"
}
