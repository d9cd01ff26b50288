"""The plain transcription: the oracle on a case's own arrays, in the dtype that they have."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from nlattn.conformance.case import native
from nlattn.conformance.table import find
from nlattn.conformance.truth.analysis import Analysis

_ONE_HEAD = ("lewis_weights", "sensitivity_bounds", "lp_sensitivity", "universal_set", "psal")


def transcription(op: str, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """What the oracle of `op`, such as ``attention_vjp``, gives: an array or a tuple."""
    spec = find(op.removesuffix("_vjp"))
    oracle = getattr(importlib.import_module(f"nlattn.oracle.{spec.stem}"), op)
    dims = len(next(iter(spec.arrays.values())).split())
    lead = arrays[next(iter(spec.arrays))].shape[:-dims]
    if spec.name not in _ONE_HEAD or not lead:
        return _call(oracle, native(arrays) | dict(options))
    heads = [
        _call(oracle, native({name: x[b] for name, x in arrays.items()}) | dict(options))
        for b in np.ndindex(lead)
    ]
    if not isinstance(heads[0], tuple):
        return _together(heads, lead)
    return tuple(_together(part, lead) for part in zip(*heads, strict=True))


def _together(heads: Any, lead: tuple[int, ...]) -> Any:
    joined = Analysis().stack([np.asarray(x) if np.isscalar(x) else x for x in heads])
    return joined.reshape((*lead, *joined.shape[1:]))


def _call(oracle: Any, arguments: dict[str, Any]) -> Any:
    """Call an oracle, which names its keys K where it takes a matrix, and a support a tuple."""
    if "field" in arguments:
        arguments["index"] = arguments.pop("field").index
    positional = []
    for name, parameter in inspect.signature(oracle).parameters.items():
        own = name.lower() if name == "K" else name
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and own in arguments:
            positional.append(arguments.pop(own))
    result = oracle(*positional, **arguments)
    if oracle.__name__ == "lewis_weights":
        return result[0]
    if oracle.__name__ == "patchmatch":
        return result.index
    return tuple(x for x in result if x is not None) if isinstance(result, tuple) else result
