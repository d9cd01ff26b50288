"""What shares the tasks of kernels: Python threads that enter compiled code, or numba.prange.

Each line is a fresh process: seconds of the processor for the first call with an empty cache and
with a full one, of a kernel with nothing to do, and seconds of a call. Then two Python threads and
a forked child call at once. ``python benchmarks/launcher.py``
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from nlattn.runtime import helpers, jit, private

VARIANTS = ("threads", "prange", "plain")
"""As the package is; with ``parallel=True``; helpers compiled as Numba does by itself."""
OPERATORS = ("patchmatch", "attention", "efficient_attention", "qna")


def by_prange(function: Any = None, *, fast: bool = False, blas: bool = False) -> Any:
    """Stand in for `jit.kernel`: the same task function in a parallel loop of Numba's."""
    if function is None:
        return lambda function: by_prange(function, fast=fast, blas=blas)
    task = jit._compile(function, entry=False, fast=fast, keep=False)
    names = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    own = ", ".join(names)  # no name of a kernel's own begins as those of the loop
    code = f"def f(prange_first, prange_last, {own}):\n"
    code += f" for prange_n in numba.prange(prange_first, prange_last):\n  task(prange_n, {own})\n"
    scope = {"numba": numba, "task": task}
    exec(code, scope)
    loop = scope["f"]
    loop.__code__ = loop.__code__.replace(
        co_name=function.__name__,
        co_filename=function.__code__.co_filename,
        co_firstlineno=function.__code__.co_firstlineno,
    )
    loop.__module__, loop.__qualname__ = function.__module__, function.__qualname__
    compiled: Any = numba.njit(parallel=True, nogil=True, error_model="numpy")(loop)
    compiled._cache = private.Cache(loop, "prange")

    def launch(tasks: int | range, *arrays: Any) -> None:
        some = tasks if isinstance(tasks, range) else range(tasks)
        compiled(some.start, some.stop, *arrays)

    return launch


def calls() -> dict[str, Callable[[], Any]]:
    """The operators at a size of some tens of milliseconds."""
    import nlattn

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4096, 32)).astype(np.float32)
    grid = rng.normal(size=(96, 96, 16)).astype(np.float32)
    queries = rng.normal(size=(2, 16)).astype(np.float32)
    return {
        "patchmatch": lambda: nlattn.patchmatch(grid, grid, iterations=2),
        "attention": lambda: nlattn.attention(x, x, x),
        "efficient_attention": lambda: nlattn.efficient_attention(x, x, x),
        "qna": lambda: nlattn.qna(queries, grid, grid, window=7),
    }


def measure(variant: str, operator: str) -> None:
    """Print seconds of the first call, microseconds of nothing, milliseconds of a call."""
    if variant == "prange":
        jit.kernel = by_prange
    if variant == "plain":
        private.KNOWN["compiler"] = False
    call = calls()[operator]
    jit.function(_nothing_here)(1.0)  # Numba's own first use
    start, wall = time.process_time(), time.perf_counter()
    call()
    first, wall = time.process_time() - start, time.perf_counter() - wall
    empty = jit.kernel(_nothing)
    out = np.zeros(2)
    empty(2, out)
    idle = min(_timed(lambda: [empty(2, out) for _ in range(100)]) for _ in range(20)) / 100
    times = sorted(_timed(call) for _ in range(15))
    print(f"{first:.2f} {wall:.2f} {1e6 * idle:.1f} {1e3 * times[len(times) // 2]:.2f}")


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _nothing(task: int, out: np.ndarray) -> None:
    out[task] = 0


def _nothing_here(x: float) -> float:
    return x


def together(variant: str, operator: str) -> None:
    """Two Python threads at once, fifty calls each."""
    if variant == "prange":
        jit.kernel = by_prange
    call = calls()[operator]
    call()
    others = [threading.Thread(target=lambda: [call() for _ in range(50)]) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    print("fine")


def forked(variant: str, operator: str) -> None:
    """A child of a fork, after the parent has called."""
    if variant == "prange":
        jit.kernel = by_prange
    call = calls()[operator]
    call()
    child = os.fork()
    if child == 0:
        call()
        os._exit(7)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("fine" if ended == 7 else f"ended with {ended}")


def run(part: str, variant: str, operator: str, cache: str) -> str:
    """What a fresh process says."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, part, variant, operator],
            env={**os.environ, "NUMBA_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    return done.stdout.strip() if done.returncode == 0 else f"ended with {done.returncode}"


def main() -> None:
    """Print the table."""
    print("operator, sharing: empty cache (processor, clock) s, full cache s, nothing us, call ms")
    for operator in OPERATORS:
        for variant in VARIANTS:
            with tempfile.TemporaryDirectory() as folder:
                Path(folder).chmod(0o700)
                cold = run("measure", variant, operator, folder).split()
                warm = run("measure", variant, operator, folder).split()
                ends = []
                if variant != "plain":
                    ends = [run(part, variant, operator, folder) for part in ("together", "forked")]
                print(operator, variant, cold[:2], warm[:1], warm[2:], *ends, flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        {"measure": measure, "together": together, "forked": forked}[sys.argv[1]](*sys.argv[2:])
    else:
        assert not helpers.helps()
        main()
