"""Forward mode of every layer: its parts' changes, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nlattn import _check
from nlattn._types import Floats, StateDict
from nlattn.layers import _state
from nlattn.layers._dual import Dual

_FIXED = ("running_mean", "running_var", "num_batches_tracked", "nl_bn_rm", "nl_bn_riv",
    "escape_NaN", "projection_matrix")  # fmt: skip
"""Ends of names of weights that have no gradient."""


def block_jvp(
    block: Callable[..., Any],
    x: Floats,
    weights: StateDict,
    dx: Floats | None,
    dweights: StateDict | None = None,
    **options: Any,
) -> Any:
    """Change of what a layer gives, along `dx` and `dweights`, to first order.

    Parameters
    ----------
    block : function
        A layer of `nlattn.layers`, such as `qna_block`.
    x, weights, options
        As for the layer.
    dx : array in the shape of `x`, or None
        How the input moves; None for not at all.
    dweights : mapping of str to array, optional
        How some of the weights move, in their names and shapes.

    Returns
    -------
    What the layer returns, of changes

    Raises
    ------
    ValueError
        A change has another shape than its array, or is of a weight that has no gradient; or as
        the layer does.
    TypeError
        The dtypes differ, or `block` is no layer.

    Notes
    -----
    The layer's own code on pairs of arrays and changes, with the forward modes of its operators:
    about three times its cost. What its gradient holds fixed is held fixed: kept statistics, random
    features, the floor of cross-scale attention, simplices.

    Examples
    --------
    >>> change = nlattn.layers.block_jvp(nlattn.layers.sagan_block, x, weights, 1e-3 * x)
    """
    op = "block_jvp"
    if not callable(block) or getattr(block, "__module__", "").rpartition(".")[0] != __package__:
        _check.fail_type(
            op, "block", f"is {_check.quoted(block)}, expected a layer of nlattn.layers"
        )
    given = _state.mapping(op, weights)
    changes = {} if dweights is None else _state.mapping(op, dweights)
    for name, change in changes.items():
        if name not in given:
            _check.fail(op, f"dweights[{name!r}]", "is of no weight, expected one of their names")
        if name.endswith(_FIXED):
            _check.fail(op, f"dweights[{name!r}]", "has no place: that weight is held fixed")
        _alike(op, f"dweights[{name!r}]", change, given[name])
    moving = {n: _moving(w, changes.get(n)) if n in changes else w for n, w in given.items()}
    if dx is not None:
        _alike(op, "dx", dx, x)
    return _changes(block(_moving(x, dx), moving, **options))


def _moving(x: Any, change: Any) -> Dual:
    value = np.asarray(x)
    return Dual(value, np.zeros_like(value) if change is None else np.asarray(change))


def _alike(op: str, name: str, change: Any, array: Any) -> None:
    new, old = np.asarray(change), np.asarray(array)
    if new.shape != old.shape:
        _check.fail(op, name, f"has shape {new.shape}, expected {old.shape}")
    _check.one_dtype(op, {name.removeprefix("d"): old.dtype, name: new.dtype})


def _changes(result: Any) -> Any:
    """Changes of results; what is counted has none."""
    if isinstance(result, tuple):
        return tuple(map(_changes, result))
    if isinstance(result, Mapping):
        return {name: x.change for name, x in result.items() if isinstance(x, Dual)}
    return result.change if isinstance(result, Dual) else np.zeros_like(result)
