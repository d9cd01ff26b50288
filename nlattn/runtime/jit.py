"""The one way this package compiles: decorators over ``numba.njit``.

``kernel`` marks a function of one task, whose tasks several threads share, ``function`` what
Python calls on its own thread, ``device`` a helper that only compiled code calls. These are cached
on disk, release the GIL and divide by zero as NumPy does. ``shared`` marks small helpers that
Python runs as they stand.

Loops are compiled for one thread and entered by several (`threads`), which take their tasks from
a counter: Numba's parallel loops hold, and optimise, all that they call twice.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast
from typing import overload as typed

import numba
import numpy as np
from numba.extending import intrinsic, overload, register_jitable

from nlattn._types import Ints
from nlattn.runtime import helpers, private
from nlattn.runtime.threads import serial_blas, threads

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

# Vectorising a sum needs its order freed; NaN and infinities keep their meaning.
_REASSOCIATE = {"reassoc", "contract", "nsz", "arcp"}
_INTO_ANY = {"error_model": "numpy", "no_cpython_wrapper": True}
_DISABLED = bool(numba.config.DISABLE_JIT)


def _compile(
    function: Callable[P, R],
    *,
    entry: bool,
    fast: bool = False,
    inline: bool = False,
    once: bool = False,
    keep: bool = True,
) -> Callable[P, R]:
    """Compile, with an `entry` for Python or none, which spares half of the code of a helper."""
    if _DISABLED:
        return np.errstate(all="ignore")(function) if entry else function
    options = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": _REASSOCIATE if fast else False,
        "forceinline": inline,
        "inline": "always" if once else "never",
        "no_cpython_wrapper": not entry,
        "no_cfunc_wrapper": True,
        **({"_nrt": False} if inline else {}),  # counting references to arrays would cost more yet
    }
    compiled = private.compiled(function, entry, options)
    if compiled is None:
        compiled = numba.njit(**options)(function)
    if keep:
        private.keep(compiled, function, f"fast={fast}")
    return compiled


@typed
def device(function: Callable[P, R]) -> Callable[P, R]: ...
@typed
def device(
    *, fast: bool = False, inline: bool = False, once: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def device(
    function: Any = None, *, fast: bool = False, inline: bool = False, once: bool = False
) -> Any:
    """Compile a helper called from kernels. It has no entry: Python that calls it crashes.

    ``fast=True`` frees the order of its sums; ``inline=True`` copies it into its callers, where a
    call with arrays would cost more than what it does; ``once=True`` writes it into its
    callers before they are compiled, which spares one of a single caller a round of its own.
    """
    options = {"fast": fast, "inline": inline, "once": once}
    if function is None:
        return functools.partial(device, **options)
    return _compile(function, entry=False, **options)


def function(function: Callable[P, R]) -> Callable[P, R]:
    """Compile what Python calls on its own thread, and kernels too."""
    return _compile(function, entry=True)


@typed
def kernel(
    function: Callable[Concatenate[int, P], None],
) -> Callable[Concatenate[int | range, P], None]: ...
@typed
def kernel(
    *, fast: bool = False, blas: bool = False
) -> Callable[
    [Callable[Concatenate[int, P], None]], Callable[Concatenate[int | range, P], None]
]: ...
def kernel(function: Any = None, *, fast: bool = False, blas: bool = False) -> Any:
    """Compile a function of one task: its number first, then inputs, results last.

    ``function(count, *inputs, *results)`` then does tasks ``0`` to ``count - 1``, shared among
    threads; ``function(range(a, b), ...)`` those from a below b. A task owns what it writes.
    ``blas=True`` says that it calls ``np.dot``.
    """
    if function is None:
        return functools.partial(kernel, fast=fast, blas=blas)
    compiled = _compile(_loop_over(function, fast), entry=True)

    def share(turns: Ints, first: int, last: int, *arrays: Any) -> None:
        helpers.together(functools.partial(compiled, turns, first, last, *arrays), len(turns) - 2)

    run = serial_blas(share) if blas else share

    @functools.wraps(function)
    def launch(tasks: int | range, *arrays: Any) -> None:
        first, last = (tasks.start, tasks.stop) if isinstance(tasks, range) else (0, tasks)
        alone = _DISABLED or not private.ready(compiled, arrays)
        turns = np.zeros(1 + (1 if alone else min(threads(), max(1, last - first))), np.int64)
        try:
            if not _DISABLED and helpers.hears() and _long(arrays):
                helpers.undisturbed(run, turns, first, last, *arrays)
            else:
                run(turns, first, last, *arrays)
        except BaseException:
            turns[1:] = _NO_MORE  # who is at work need not go on
            raise

    return launch


_NO_MORE = 1 << 62
_NUMBERS = 1 << 18
_PAIRS = 1 << 28
"""From how many numbers, or of these times the longest axis, a kernel may take a tenth of a second:
the main thread then waits for it, and hears Ctrl-C. Few channels of many keys are few numbers."""


def _long(arrays: tuple[Any, ...]) -> bool:
    """Whether a kernel may take long, by the arrays of its call."""
    numbers, longest = _sizes(arrays)
    return numbers > _NUMBERS or numbers * longest > _PAIRS


def _sizes(arrays: tuple[Any, ...]) -> tuple[int, int]:
    """How many numbers the arrays of a call hold, and their longest axis."""
    numbers = longest = 0
    for x in arrays:
        if type(x) is np.ndarray:
            numbers, longest = numbers + x.size, max(longest, *x.shape, 0)
        elif isinstance(x, tuple):
            inner = _sizes(x)
            numbers, longest = numbers + inner[0], max(longest, inner[1])
    return numbers, longest


def blocks(rows: int, size: int) -> int:
    """Tasks of `size` rows each, the last of fewer."""
    return -(-rows // size)


def _loop_over(function: Callable[..., None], fast: bool) -> Callable[..., None]:
    """The loop of a thread over its tasks, under the name and place of their function."""
    task = _compile(function, entry=False, fast=fast, keep=False)

    def each_task(turns: Ints, first: int, last: int, *arguments: Any) -> None:
        for number in tasks(turns, first, last):
            task(number, *arguments)

    at = function.__code__
    code = each_task.__code__.replace(
        co_name=at.co_name, co_filename=at.co_filename, co_firstlineno=at.co_firstlineno
    )
    named = FunctionType(code, each_task.__globals__, at.co_name, None, each_task.__closure__)
    named.__module__, named.__qualname__ = function.__module__, function.__qualname__
    return named


def _known(function: F, **options: Any) -> F:
    """What Numba may compile into any caller; by itself it is not kept on disk."""
    if _DISABLED:
        return function
    known: F = register_jitable(**_INTO_ANY, **options)(function)
    return known


def shared(function: F) -> F:
    """Mark a helper of a line or two, which kernels compile and Python runs as it stands."""
    return _known(function)


def by_class(helpers: dict[type, F], **options: Any) -> F:
    """Of plain functions with the same parameters, the one for the class of the first argument.

    That is a NamedTuple; compiled callers hold the one function alone.
    """

    def call(*arguments: Any) -> Any:
        return helpers[type(arguments[0])](*arguments)

    def choose(*arguments: Any) -> Any:  # pragma: no cover - the compiler runs it
        return helpers[arguments[0].instance_class]

    choose.__signature__ = inspect.signature(next(iter(helpers.values())))  # type: ignore[attr-defined]
    if not _DISABLED:
        overload(call, jit_options={**_INTO_ANY, **options})(choose)
    return cast(F, call)


def _advance(turns: Ints, place: int, count: int) -> int:
    """Add to a counter that threads share, and return what it was."""
    before = turns[place]
    turns[place] += count
    return int(before)


@intrinsic
def _compiled_advance(_, turns, place, count):  # type: ignore[no-untyped-def]  # pragma: no cover
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        counter = builder.gep(array.data, [arguments[1]])
        return builder.atomic_rmw("add", counter, arguments[2], "monotonic")

    return numba.types.int64(turns, numba.types.int64, count), emit


if not _DISABLED:
    _advance = _compiled_advance

_PORTIONS = 128
"""Into how many a thread's share is cut: for even ends, at no cost."""


@functools.partial(_known, forceinline=True, _nrt=False)
def tasks(turns: Ints, first: int, last: int) -> Iterator[int]:
    """Numbers from `first` below `last`, each for one of the threads that share `turns`.

    A thread begins with a share of its own, the same in one kernel and the next, whose data its
    cache may hold, and then helps with the others. `turns` are the number of threads that came,
    and how much of each share is taken.
    """
    shares = len(turns) - 1
    own = _advance(turns, 0, 1)
    for other in range(own, own + shares):
        share = other % shares
        begin = first + (last - first) * share // shares
        count = first + (last - first) * (share + 1) // shares - begin
        some = max(1, count // _PORTIONS)
        done = _advance(turns, 1 + share, some)
        while done < count:
            for task in range(done, min(done + some, count)):
                yield begin + task
            done = _advance(turns, 1 + share, some)


def cache_folder() -> str | None:
    """Folder that keeps compiled code, or None when nothing is kept."""
    kept = getattr(_compile(_probe, entry=False), "_cache", None)
    return getattr(kept, "cache_path", None)


def _probe() -> None:
    """Stands for any kernel when the cache's place is asked for."""
