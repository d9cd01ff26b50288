"""The plain transcription: the oracle on a case's own arrays, in the dtype that they have."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from nlattn.conformance.case import RETURNED, native
from nlattn.conformance.table import find, owner
from nlattn.conformance.truth.analysis import Analysis
from nlattn.conformance.truth.rounding import Operand, stored


def transcription(op: str, arrays: Mapping[str, Operand], options: Mapping[str, Operand]) -> Any:
    """What the oracle of `op`, such as ``attention_vjp``, gives: an array or a tuple."""
    spec = find(owner(op))
    oracle = getattr(importlib.import_module(f"nlattn.oracle.{spec.stem}"), op)
    dims = len(next(iter(spec.arrays.values())).split())
    lead = arrays[next(iter(spec.arrays))].shape[:-dims]
    moving = (*spec.arrays, *spec.cases.differentiable, *spec.cases.differentiable_if)
    gradient = op == f"{spec.name}_vjp"
    more = gradient or any(options.get(name) for name in RETURNED)
    alone = len(spec.cases.outputs) == 1 and not more
    if op == spec.name:
        theirs = {*spec.cases.of_gradients, *spec.cases.differentiable_if.values()}
        options = {name: x for name, x in options.items() if name not in theirs}
    options = {name: x for name, x in options.items() if name not in spec.cases.ways}
    arrays = {name: x for name, x in arrays.items() if name.split(".")[0] not in spec.cases.ways}

    def call(given: Mapping[str, Operand]) -> Any:
        result = _call(oracle, native(given) | dict(options))
        if gradient:
            return _summed(result, [given[n] for n in moving if n in given])
        return result[0] if alone and isinstance(result, tuple) else result

    if not spec.cases.one_head or not lead:
        return call(arrays)
    heads = [call({name: x[b] for name, x in arrays.items()}) for b in np.ndindex(lead)]
    if not isinstance(heads[0], tuple):
        return _together(heads, lead)
    return tuple(_together(part, lead) for part in zip(*heads, strict=True))


def _summed(gradients: Any, inputs: list[Any]) -> Any:
    """Gradients of arrays that several heads share: sums over those heads.

    A framework may round the gradient of each head before it adds them.
    """
    several = isinstance(gradients, tuple)
    found = []
    for g, x in zip(gradients if several else [gradients], inputs, strict=False):
        shape = np.shape(x)
        more = len(g.shape) - len(shape) if shape else 0
        g = stored(g).sum(tuple(range(more))) if more > 0 else g
        once = tuple(a for a, n in enumerate(shape[:-1]) if n == 1 != g.shape[a]) if shape else ()
        found.append(stored(g).sum(once, keepdims=True) if once else g)
    return tuple(found) if several else found[0]


def _together(heads: Any, lead: tuple[int, ...]) -> Any:
    joined = Analysis().stack([np.asarray(x) if np.isscalar(x) else x for x in heads])
    return joined.reshape((*lead, *joined.shape[1:]))


@lru_cache(maxsize=256)
def _parameters(oracle: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(oracle).parameters


def _call(oracle: Any, arguments: dict[str, Operand]) -> Any:
    """Call an oracle, which names its keys K where it takes a matrix, and a support a tuple."""
    parameters = _parameters(oracle)
    if "field" in arguments and "field" not in parameters:
        arguments["index"] = arguments.pop("field").index
    positional = []
    for name, parameter in parameters.items():
        own = name.lower() if name == "K" else name
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and own in arguments:
            positional.append(arguments.pop(own))
    result = oracle(*positional, **arguments)
    return tuple(x for x in result if x is not None) if isinstance(result, tuple) else result
