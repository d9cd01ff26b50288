"""Whether results are as those of less precision: errors like roundings, of another unit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from nlattn._types import Array
from nlattn.conformance.case import Case, dtype_of
from nlattn.conformance.truth.arithmetic import precision
from nlattn.conformance.truth.bounds import transcribed, wide
from nlattn.conformance.truth.transcription import transcription

_MANY, _LEAN = 32, 6.0
"""Errors that are enough to see a common sign, and the standard errors that this must pass."""
PRECISION = "your output is as far from ours as one"
_ENOUGH = 16
"""Elements without which errors tell nothing of how they were made."""
_TOGETHER = 1.6
"""The square of a sum of errors over the sum of their squares, in the mean; roundings have 1."""


def coarse(case: Case, want: Mapping[str, Array], got: Mapping[str, Array]) -> str:
    """Whether errors have the size of those of the oracle in less precision, nearly everywhere."""
    ours = _error(want, got)
    if not 0 < ours < 0.1 or not _spread(want, got) or _leans(want, got) or _smooth(want, got):
        return ""
    now = precision(dtype_of(case.dtype)).unit
    if case.dtype == "float16":
        worse = _error(want, computed(case, want, np.float16))
        sums = worse / 4 <= ours <= 4 * worse and ours > 2 * _error(want, transcribed(case))
        return f"{PRECISION} of sums in float16" if sums else ""
    for name, dtype in (("float32", np.float32), ("float16 or TF32", np.float16)):
        if precision(np.dtype(dtype)).unit <= now:
            continue
        error = _error(want, computed(case, want, dtype))
        if error / 8 <= ours <= min(4 * error, 8 * precision(np.dtype(dtype)).unit):
            return f"{PRECISION} computed in {name}"
    return ""


def computed(case: Case, want: Mapping[str, Array], dtype: DTypeLike) -> dict[str, Array]:
    """What the oracle gives in a dtype."""
    arrays = {
        n: x.astype(dtype) if x.dtype.kind == "f" else x for n, x in wide(case.arrays).items()
    }
    result: object = transcription(case.function, arrays, case.options)
    results = result if isinstance(result, tuple) else (result,)
    return dict(zip(want, results, strict=False))


def _spread(want: Mapping[str, Array], got: Mapping[str, Array]) -> bool:
    """Whether most elements are off, as roundings make them, and none far more than others."""
    parts = [np.ravel(np.asarray(got[n], float) - x) for n, x in want.items() if n in got]
    apart = abs(np.concatenate(parts))
    apart = apart[np.isfinite(apart)]
    size = float(np.sqrt((apart**2).mean())) if apart.size else 0.0
    return bool(np.mean(apart > size / 50) > 0.5)


def _leans(want: Mapping[str, Array], got: Mapping[str, Array]) -> bool:
    """Whether errors are of one sign more than roundings are: they grow or shrink numbers."""
    for name, x in want.items():
        error, sign = (np.asarray(got[name], float) - x).ravel(), np.sign(x).ravel()
        error = np.where(np.isfinite(error), error, 0)
        size = float(np.sqrt((error**2).sum()))
        if error.size >= _MANY and abs(float((error * sign).sum())) > _LEAN * size:
            return True
    return False


def _smooth(want: Mapping[str, Array], got: Mapping[str, Array]) -> bool:
    """Whether errors hold together along rows or columns, or are too few to tell.

    Roundings have signs of their own: a sum of n is as large as the root of n, on the whole.
    """
    told = False
    for name, x in want.items():
        error = np.asarray(got[name], float) - x
        error = np.where(np.isfinite(error), error, 0)
        if not error.any():
            continue
        if error.size < _ENOUGH:
            return True
        for signs in (1.0, np.sign(np.where(np.isfinite(x), x, 0))):
            for axis in range(error.ndim):
                own = (error**2).sum(axis)
                together = (error * signs).sum(axis)[own > 0] ** 2 / own[own > 0]
                some = error.shape[axis] >= 4 and together.size >= 8
                if some and together.mean() > _TOGETHER * (1 + 3 * (2 / together.size) ** 0.5):
                    return True
        told = True
    return not told


def _error(want: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    """Largest relative error in the mean square of a result."""
    with np.errstate(all="ignore"):
        errors = [
            np.sqrt(np.mean((np.asarray(got[n], float) - x) ** 2) / max(np.mean(x**2), 1e-300))
            for n, x in want.items()
            if n in got and x.size
        ]
    return float(max(errors, default=0.0))
