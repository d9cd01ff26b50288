"""``nlattn list``, ``doctor`` and ``warmup``: what there is, where it runs, and getting ready."""

from __future__ import annotations

import os
import platform
import time
import warnings
from argparse import Namespace
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import nlattn
from nlattn import __version__, _check
from nlattn.cli import report
from nlattn.cli.output import table, to_json
from nlattn.conformance.cases.calls import call
from nlattn.conformance.table import TABLE
from nlattn.maps.base import AttentionMap
from nlattn.runtime import jit, threads


def list_(options: Namespace) -> int:
    """Print the table of operators."""
    rows = [
        {
            "name": spec.name,
            "summary": spec.summary,
            "exact": spec.exact,
            "cost": spec.cost,
            "memory": spec.memory,
            "map": spec.has_map,
            "gradient": spec.has_vjp,
            "status": spec.status,
            "source": spec.source,
        }
        for spec in TABLE
    ]
    if options.json:
        print(to_json(rows))
    elif not options.quiet:
        heads = ("name", "summary", "cost", "memory", "map", "gradient", "status")
        cells = [[_cell(row[head]) for head in heads] for row in rows]
        print(table([heads, *cells]))
    return 0


def _cell(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def warmup_(options: Namespace) -> int:
    """Compile every operator for one dtype, or for both."""
    start = time.perf_counter()
    for dtype in (options.dtype,) if options.dtype else ("float32", "float64"):
        _compile_all(dtype)
    seconds = time.perf_counter() - start
    folder = jit.cache_folder()
    if options.json:
        print(to_json({"seconds": seconds, "operators": len(TABLE), "cache": folder}))
    elif not options.quiet:
        kept = f"kept in {folder}" if folder else "kept nowhere: every process compiles anew"
        print(f"{len(TABLE)} operators ready after {seconds:.1f} s, {kept}")
    return 0


def _compile_all(dtype: str) -> None:
    for spec in TABLE:
        spec.function()(**call(spec, "", dtype=dtype))
        if spec.has_map:
            _use(spec.function("map")(**call(spec, "map", dtype=dtype)))
        if spec.has_vjp:
            spec.function("vjp")(**call(spec, "vjp", dtype=dtype))


def _use(A: AttentionMap) -> None:
    A @ np.zeros((A.shape[1], 1), A.dtype)
    A.T @ np.zeros((A.shape[0], 1), A.dtype)
    A.rows([0])
    A.topk(1)
    with suppress(ValueError):  # the sum of several queries' maps has no scores
        A.scores([0])


def doctor_(options: Namespace) -> int:
    """Print what computes here and what each thing means; 1 if attention comes out wrong."""
    wrong = _self_check()
    facts = [
        ("nlattn", __version__, f"in {Path(nlattn.__file__).parent}"),
        ("python", platform.python_version(), "3.10 or later is needed"),
        *((name, number, _USES[name]) for name, number in report.versions().items()),
        *(
            (name, "missing", "python -m pip install 'nlattn[cli]' brings it")
            for name, module in (("matplotlib", "matplotlib"), ("pillow", "PIL"), ("tqdm", "tqdm"))
            if find_spec(module) is None
        ),
        (
            "processor",
            _processor(),
            f"{os.cpu_count()} logical cores, {_usable()} for this process",
        ),
        ("memory", *_memory()),
        ("threads", str(threads.threads()), "kernels use these; --threads or NUMBA_NUM_THREADS"),
        *_blas(),
        ("cache", *_cache()),
        ("check", "failed" if wrong else "passed", wrong or "attention equals its definition"),
    ]
    if options.json:
        print(to_json({name: {"value": value, "means": means} for name, value, means in facts}))
    elif not options.quiet:
        print(table(facts))
    return 1 if wrong else 0


_USES = {
    "numpy": "arrays",
    "numba": "compiles the loops",
    "llvmlite": "the compiler behind numba",
    "scipy": "linear operators, sparse arrays, and the BLAS inside kernels",
    "threadpoolctl": "holds BLAS to one thread while kernels run",
    "matplotlib": "pictures",
    "pillow": "reads and writes images",
    "tqdm": "progress bars",
}


def _self_check() -> str:
    """What is wrong with attention on this machine; empty if nothing."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((n, 5)) for n in (70, 90, 90))
    weights = np.exp(q @ k.T / np.sqrt(5))
    expected = weights @ v / weights.sum(1, keepdims=True)
    error = float(np.abs(nlattn.attention(q, k, v) - expected).max())
    return "" if error < 1e-12 else f"attention is off by {error:.2g}: results cannot be trusted"


def _processor() -> str:
    from llvmlite.binding import get_host_cpu_name

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({get_host_cpu_name()})"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()} ({get_host_cpu_name()})"


def _usable() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> tuple[str, str]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown", "the system does not say"
    side = int((total / 4) ** 0.5)
    return _check.size(total), f"a float32 n x n matrix would fit up to n = {side:,}"


def _blas() -> list[tuple[str, str, str]]:
    from threadpoolctl import threadpool_info

    return [
        (
            "BLAS",
            f"{pool['internal_api']} {pool.get('version') or ''}".strip(),
            f"matrix products; {pool['num_threads']} threads outside kernels; "
            f"{Path(pool['filepath']).name}",
        )
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]


def _cache() -> tuple[str, str]:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        folder = jit.cache_folder()
    if folder is None:
        return "none", "every process compiles anew; set NUMBA_CACHE_DIR to a private folder"
    root = Path(folder).parent  # of one folder per folder of sources
    files = [p for p in root.rglob("*.nb?") if p.is_file()]
    held = f"{len(files)} files, {_check.size(sum(p.stat().st_size for p in files))}"
    return str(root), f"{held} of compiled code in it and below; may be deleted at any time"
