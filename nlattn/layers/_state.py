"""State dicts as people have them: nested, of tensors, of a whole network, under other names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nlattn import _check, tensors
from nlattn._types import Array, StateDict

_BLOBS = "theta_w"  # what Caffe2's blobs of one block end in, after the block's own name


def mapping(op: str, weights: object) -> dict[str, Array]:
    """Weights by name: trees are flattened with dots, tensors read where they lie.

    A tree of Flax loses its outermost ``params``.
    """
    if not isinstance(weights, Mapping):
        kind = type(weights).__name__
        text = f"is a {kind}, expected a mapping of names to arrays"
        if kind == "generator":
            text += "; pass dict(module.named_parameters()), or module.state_dict()"
        _check.fail_type(op, "weights", text)
    tree = weights["params"] if [*weights] == ["params"] else weights
    flat = _flat(tree) if isinstance(tree, Mapping) else dict(weights)
    return {name: _array(op, name, x) for name, x in flat.items()}


def caffe2(weights: StateDict) -> dict[str, Array]:
    """Blobs of one block, ``nonlocal_conv4_1_theta_w`` and its like, under the names ``nl_*``."""
    stems = [name[: -len(_BLOBS)] for name in weights if str(name).endswith(_BLOBS)]
    if len(stems) != 1 or stems[0] == "nl_":
        return dict(weights)
    return {re.sub(f"^{re.escape(stems[0])}", "nl_", str(n)): x for n, x in weights.items()}


def advice(given: StateDict, expected: Sequence[str]) -> str:
    """What helps where names are missing: the prefix under which all of them are there."""
    missing = [name for name in expected if name not in given]
    if not missing:
        return ""
    ends = (str(n)[: -len(missing[0])] for n in given if str(n).endswith(missing[0]))
    prefixes = [
        p for p in ends if p[-1:] in (*"./_",) and all(p + name in given for name in missing)
    ]
    if prefixes:
        listed = " or ".join(map(repr, prefixes[:3])) + (", ..." if len(prefixes) > 3 else "")
        return f"they are there under {listed}; load_weights(..., prefix={prefixes[0]!r}) picks one"
    if any("running_" in name for name in missing):
        return "named_parameters() leaves buffers out, state_dict() has them"
    return ""


def channels_first(fit: _check.Fit, weights: StateDict, shapes: Mapping[str, str]) -> str:
    """What helps where the channels of x stand before its grid."""
    shape = fit.given("x") if "x" in fit else ()
    axes = len(fit.dims) if len(shape) > 2 else 0
    for name, spec in shapes.items():
        dims = spec.split()
        of = getattr(weights.get(name), "shape", ())
        if axes and "C" in dims and len(of) == len(dims):
            channels = of[dims.index("C")]
            grid = [axis for axis in fit.dims if len(axis) == 1 and axis in "LTHW"]
            first = shape[-len(grid) - 1]
            if first == channels != shape[-1]:
                text = f"x has shape {shape}, expected channels last, {channels} of them"
                return f"{text}; np.moveaxis(x, {-len(grid) - 1}, -1) turns it"
    return ""


def _flat(tree: Mapping[object, object], before: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, x in tree.items():
        whole = f"{before}{name}"
        found |= _flat(x, f"{whole}.") if isinstance(x, Mapping) else {whole: x}
    return found


def _array(op: str, name: str, x: Any) -> Array:
    if not tensors.is_tensor(x):
        return x
    plain = x.detach() if hasattr(x, "detach") else x  # a parameter requires its gradient elsewhere
    return tensors.taken(op, name, plain)[0]
