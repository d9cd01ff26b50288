"""The one way this package compiles: two decorators over ``numba.njit``, and who may run when.

``device`` marks a helper that kernels call; ``kernel`` marks a parallel loop that Python calls.
Both are cached on disk, release the GIL and divide by zero as NumPy does.

A kernel call takes one process-wide lock, because Numba's ``workqueue`` threads abort the process
when two Python threads enter them. A forked child of a process whose threads had started runs the
serial twin instead, because GNU OpenMP kills such a child.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import pickle
import stat
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, overload

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  loads the BLAS behind Numba's np.dot, to be limited
from numba.core.caching import FunctionCache
from numba.np.ufunc import parallel as _pool
from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

prange = numba.prange

# Vectorising a sum needs its order freed; NaN and infinities keep their meaning.
_REASSOCIATE = {"reassoc", "contract", "nsz", "arcp"}
_DISABLED = bool(numba.config.DISABLE_JIT)

_lock = threading.Lock()
_forked = False
_warned = False


def _after_fork() -> None:
    global _lock, _forked
    _lock = threading.Lock()
    _forked = _forked or _pool._is_initialized


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@functools.cache
def _sources(file: Path) -> str:
    """Digest of `file` and of all kernel files it calls: a change of a callee makes it stale."""
    folder = Path(__file__).parent / "kernels"
    found, open_ends = {Path(__file__)}, {file}
    while open_ends:
        found |= open_ends
        names = set().union(*map(_imported, open_ends))
        open_ends = {folder / f"{name}.py" for name in names} - found
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _imported(file: Path) -> set[str]:
    """Stems of the kernel files that a source file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module == "nlattn.kernels":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nlattn.kernels."):
            names.add(str(node.module).split(".")[2])
    return names


def _no_cache(reason: object) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"nlattn: compiled code is not kept on disk ({reason}); every process compiles anew. "
            "Set NUMBA_CACHE_DIR to a private writable folder.",
            RuntimeWarning,
            stacklevel=4,
        )


def _others_can_write(folder: str) -> bool:
    status = os.stat(folder)
    foreign = hasattr(os, "geteuid") and status.st_uid not in (0, os.geteuid())
    return foreign or bool(status.st_mode & stat.S_IWOTH)


@contextmanager
def alone(folder: str) -> Iterator[None]:
    """Wait for other processes that write to a folder, where the system can lock files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with Path(folder, "nlattn.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Cache(FunctionCache):
    """Numba's cache, which here never fails a computation and never trusts a shared folder."""

    def __init__(self, function: Callable[..., Any], variant: str) -> None:
        super().__init__(function)
        self._variant = variant
        self._digest = _sources(Path(function.__code__.co_filename))
        if os.name == "posix" and _others_can_write(self.cache_path):
            raise PermissionError(f"{self.cache_path} can be written by other users")

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), self._variant, self._digest)

    def _save_overload(self, sig: Any, data: Any) -> None:
        self._impl.locator.ensure_cache_path()
        with alone(self.cache_path):  # two that save at once might swap their code
            super()._save_overload(sig, data)

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, pickle.PickleError) as error:
            self.disable()
            _no_cache(error)


def _compile(
    function: Callable[P, R], *, parallel: bool, fast: bool, inline: bool = False
) -> Callable[P, R]:
    if _DISABLED:
        return function
    compiled = numba.njit(
        nogil=True,
        error_model="numpy",
        parallel=parallel,
        fastmath=_REASSOCIATE if fast else False,
        forceinline=inline,
        **({"_nrt": False} if inline else {}),  # counting references to arrays would cost more yet
    )(function)
    try:
        compiled._cache = _Cache(function, f"parallel={parallel} fast={fast}")
    except (RuntimeError, OSError) as error:
        _no_cache(error)
    return compiled  # type: ignore[no-any-return]


@overload
def device(function: Callable[P, R]) -> Callable[P, R]: ...
@overload
def device(
    *, fast: bool = False, inline: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def device(function: Any = None, *, fast: bool = False, inline: bool = False) -> Any:
    """Compile a helper called from kernels.

    ``fast=True`` frees the order of its sums; ``inline=True`` copies it into its callers, where a
    call with arrays would cost more than what it does.
    """
    if function is None:
        return functools.partial(_compile, parallel=False, fast=fast, inline=inline)
    return _compile(function, parallel=False, fast=fast, inline=inline)


@overload
def kernel(function: Callable[P, None]) -> Callable[P, None]: ...
@overload
def kernel(*, fast: bool) -> Callable[[Callable[P, None]], Callable[P, None]]: ...
def kernel(function: Any = None, *, fast: bool = False) -> Any:
    """Compile a parallel loop called from Python: inputs first, results last, returns None."""
    if function is None:
        return functools.partial(kernel, fast=fast)
    threaded = _compile(function, parallel=True, fast=fast)
    serial = functools.cache(lambda: _compile(function, parallel=False, fast=fast))

    @functools.wraps(function)
    def launch(*arrays: Any) -> None:
        with _lock, _blas().limit(limits=1), np.errstate(all="ignore"):
            (serial() if _forked else threaded)(*arrays)

    return launch


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread for NumPy's products: the same bits however many it has."""
    with _lock, _blas().limit(limits=1):
        yield


_FEW = 1024
"""Rows that are done before another thread has started."""


def each(task: Callable[[int], R], count: int, rows: int) -> Iterator[R]:
    """Results of ``task(0)`` to ``task(count - 1)``, in order, made on as many threads as kernels.

    For work whose time goes into compiled helpers, NumPy and BLAS, which let other threads run
    meanwhile. Tasks call no kernels. `rows` are those of all tasks: few are done here.
    """
    workers = min(threads(), count) if rows > _FEW else 1
    todo, results, told = deque(range(count)), dict[int, R](), 0

    def work() -> Iterator[None]:
        while todo:
            try:
                number = todo.popleft()
            except IndexError:  # another thread was faster
                return
            results[number] = _quiet(task, number)
            yield

    with _lock, _blas().limit(limits=1), ThreadPoolExecutor(max(1, workers - 1)) as pool:
        try:
            others = [pool.submit(deque, work(), 0) for _ in range(workers - 1)]
            for _ in work():  # this thread works too
                while told in results:
                    yield results.pop(told)
                    told += 1
            for other in others:
                other.result()
            while told < count:
                yield results.pop(told)
                told += 1
        finally:
            todo.clear()


def _quiet(task: Callable[[int], R], number: int) -> R:
    with np.errstate(all="ignore"):
        return task(number)


def set_threads(count: int) -> None:
    """Use `count` threads for kernels called from this Python thread."""
    numba.set_num_threads(count)


def threads() -> int:
    """Number of threads that kernels called from this Python thread use."""
    return int(numba.get_num_threads())


def max_threads() -> int:
    """Number of threads Numba started with: the most that `set_threads` accepts."""
    return int(numba.config.NUMBA_NUM_THREADS)


def cache_folder() -> str | None:
    """Folder that keeps compiled code, or None when nothing is kept."""
    cache = getattr(_compile(_probe, parallel=False, fast=False), "_cache", None)
    return getattr(cache, "cache_path", None)


def _probe() -> None:
    """Stands for any kernel when the cache's place is asked for."""
