"""One call of a backend, watched: what it gave, and what it did to memory that is not its own."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nlattn._types import Array
from nlattn.conformance.backends.adapters import Tensor
from nlattn.conformance.backends.backend import Unsupported, run
from nlattn.conformance.case import Case, named
from nlattn.conformance.cases.arrays import lay, layout_of
from nlattn.conformance.large_call import made, reduced
from nlattn.conformance.truth.bounds import floating

WRONG = "WrongResult"
"""The name of what went wrong where a call ended, with results that are none."""
GUARD = 64
"""Elements before and after an input that nobody may touch."""
_given: deque[Array] = deque(maxlen=8)
"""The last results as they were given: they are held, so that no call may have their memory."""


class Reply(NamedTuple):
    """What came of a call."""

    outputs: dict[str, Array]
    unsupported: str = ""
    """The backend's reason not to compute this."""
    raised: str = ""
    """The exception that ended the call."""
    flaws: tuple[str, ...] = ()
    """Such as "inputs: writes to q"; the word before the colon is the behaviour."""
    ran: str = ""
    """What computed it, where a backend chooses and says so by its attribute of that name."""


def perform(backend: object, case: Case, layouts: Mapping[str, str] | None = None) -> Reply:
    """Ask a backend for a case; arrays lie in memory as in the case, or as `layouts` says."""
    if case.whole:
        return _perform_whole(backend, case)
    layouts = layouts or {name: layout_of(x) for name, x in case.arrays.items()}
    buffers = {name: guarded(x, layouts[name]) for name, x in case.arrays.items()}
    arrays = {name: x for name, (_, x) in buffers.items()}
    before = {name: whole.tobytes() for name, (whole, _) in buffers.items()}
    poison(case)
    reply = _asked(backend, case, arrays)
    if reply.unsupported or reply.raised:
        return reply
    outputs, flaws = reply.outputs, []
    for name, (whole, x) in buffers.items():
        if whole.tobytes() != before[name]:
            flaws.append(f"inputs: writes to {name} or beside it")
        for out, y in outputs.items():
            if y.size and x.size and np.shares_memory(y, whole):
                flaws.append(f"aliasing: {out} shares memory with {name}")
    for out, y in outputs.items():
        if y.size and any(np.shares_memory(y, x) for x in _given):
            flaws.append(f"aliasing: {out} is written over a result of an earlier call")
    _given.extend(outputs.values())
    copies = {name: np.array(x) for name, x in outputs.items()}
    return reply._replace(outputs=copies, flaws=tuple(flaws))


def _asked(backend: object, case: Case, arrays: Mapping[str, Array]) -> Reply:
    """What a backend answers, by name."""
    try:
        with np.errstate(all="ignore"):  # flags are no result: BLAS sets some for unused lanes
            result = run(backend, case.function, arrays, case.options)
    except (Unsupported, NotImplementedError) as reason:
        return Reply({}, unsupported=words(reason) or "not implemented")
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
        return Reply({}, raised=f"{type(error).__name__}: {words(error)} ({place})")
    try:
        ran = str(getattr(backend, "ran", ""))[:80]
        return Reply({n: numbers(n, x) for n, x in named(case, result).items()}, ran=ran)
    except Exception as error:  # arrays of others may do anything
        return Reply({}, raised=f"{WRONG}: {words(error)}")


def _perform_whole(backend: object, case: Case) -> Reply:
    """Ask for a large call, whose arrays are made here, and answer with the case's part of it."""
    reply = _asked(backend, case, made(case))
    outputs, flaws = reduced(case, reply.outputs)
    return reply._replace(outputs=outputs, flaws=tuple(flaws))


def words(error: BaseException) -> str:
    """The text of an exception, in characters that any file can hold, and not too many."""
    try:
        text = str(error)
    except Exception:
        text = "an error without words"
    return text.encode("utf-8", "backslashreplace").decode()[:2000]


def numbers(name: str, x: Tensor) -> Array:
    """A result as an array; ValueError unless it is one of numbers."""
    y = np.asarray(x)
    if y.dtype.kind not in "biuf" and y.dtype.name != "bfloat16":
        raise ValueError(f"{name} has dtype {y.dtype}")
    return y


def guarded(x: Array, layout: str) -> tuple[Array, Array]:
    """A buffer, and the array in it, NaN or the largest number on both sides."""
    if layout not in ("C", "read-only"):
        laid = lay(x, layout)
        return laid, laid
    fill: Any = (
        np.nan if floating(x) else np.array(-1).astype(x.dtype) if x.dtype.kind in "iu" else True
    )
    whole = np.full(x.size + 2 * GUARD, fill, x.dtype)
    whole[GUARD : GUARD + x.size] = x.ravel()
    inner = whole[GUARD : GUARD + x.size].reshape(x.shape)
    inner.flags.writeable = layout == "C"
    return whole, inner


def poison(case: Case) -> None:
    """Leave NaN in freed memory of the sizes that results have: what is not written shows."""
    sizes = {x.size for x in case.arrays.values() if floating(x)}
    for dtype in (np.float64, np.float32):
        kept = [np.full(size, np.nan, dtype) for size in sizes for _ in range(2)]
        del kept
