"""Selected, packed and paged keys: ratios of alternating runs, and memory.

Selected keys beside a gather and `scaled_dot_product_attention` in PyTorch, both over the same
table of keys, forward and gradient. PyTorch holds the gathered keys and values of `--step` queries
at a time, as all of them need ``2 n t d`` numbers. Packed sequences and keys in pages are held
against dense attention of the same work.

    python benchmarks/selected.py [--n 8192] [--keys 2048] [--queries 1024] [--runs 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import nlattn
from nlattn.runtime import threads


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """By the clock, and of the processor: on a busy machine the latter says more."""
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def spread(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def beside(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], runs: int) -> Any:
    """Time both in turn, after a run of each that must agree."""
    for a, b in zip(ours(), theirs(), strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=0, atol=2e-5 * max(1, abs(a).max()))
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    return {
        "case": name,
        "ratio": spread([a[0] / b[0] for a, b in pairs]),
        "processor_ratio": spread([a[1] / b[1] for a, b in pairs]),
        "nlattn_s": spread([a[0] for a, _ in pairs]),
        "rival_s": spread([b[0] for _, b in pairs]),
    }


def allocated(call: Callable[[], Any]) -> int:
    """Most bytes that NumPy held beside the inputs during a call."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def selected(n: int, t: int, d: int, rows: int, step: int, runs: int) -> list[Any]:
    """`rows` of the n queries, since both take a time for each."""
    rng = np.random.default_rng(0)
    q, dout = (rng.standard_normal((rows, d)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((n, d)).astype(np.float32) for _ in range(2))
    table = np.stack([rng.permutation(n)[:t] for _ in range(rows)]).astype(np.int32)
    support = nlattn.support_from_index(table, n)
    index = torch.from_numpy(table).long()
    Q, K, V, G = (torch.from_numpy(x) for x in (q, k, v, dout))
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def part(Q: Any, K: Any, V: Any, i: int) -> Any:
        some = index[i : i + step]
        return sdpa(Q[i : i + step, None], K[some], V[some])[:, 0]

    def forward() -> Any:
        with torch.no_grad():
            return (torch.cat([part(Q, K, V, i) for i in range(0, rows, step)]),)

    def backward() -> Any:
        leaves = [x.clone().requires_grad_() for x in (Q, K, V)]
        for i in range(0, rows, step):
            part(*leaves, i).backward(G[i : i + step])
        return [x.grad for x in leaves]

    cases = {
        "forward": (lambda: (nlattn.sparse_attention(q, k, v, support),), forward),
        "vjp": (lambda: nlattn.sparse_attention_vjp(q, k, v, support, dout), backward),
    }
    found = []
    for name, (ours, theirs) in cases.items():
        result = beside(f"selected n={n} t={t} d={d} {name}, {rows} queries", ours, theirs, runs)
        result["nlattn_bytes"] = allocated(ours)
        result["gathered_bytes"] = 2 * rows * t * d * 4
        result["gathered_bytes_at_a_time"] = 2 * min(step, rows) * t * d * 4
        found.append(result)
    return found


def equal_work(n: int, d: int, runs: int) -> list[Any]:
    """Packed sequences beside the same in a batch, keys in pages beside keys in one piece."""
    rng = np.random.default_rng(0)
    length, count = n // 8, 8
    q, k, v, dout = (rng.standard_normal((n, d)).astype(np.float32) for _ in range(4))
    starts = np.arange(0, n + 1, length)
    each = [x.reshape(count, length, d) for x in (q, k, v, dout)]
    pages, table = k.reshape(-1, 64, d), rng.permutation(n // 64)
    values = v.reshape(-1, 64, d)
    whole, whole_values = (nlattn.gather_pages(x, table) for x in (pages, values))
    return [
        beside(
            f"packed n={n} d={d} forward",
            lambda: (nlattn.attention(q, k, v, cu_seqlens_q=starts),),
            lambda: (nlattn.attention(*each[:3]).reshape(n, d),),
            runs,
        ),
        beside(
            f"packed n={n} d={d} vjp",
            lambda: nlattn.attention_vjp(q, k, v, dout, cu_seqlens_q=starts),
            lambda: [x.reshape(n, d) for x in nlattn.attention_vjp(*each)],
            runs,
        ),
        beside(
            f"paged n={n} d={d} forward",
            lambda: (nlattn.attention(q, nlattn.gather_pages(pages, table), v),),
            lambda: (nlattn.attention(q, whole, v),),
            runs,
        ),
        beside(
            f"pages by blocks n={n} d={d} forward",
            lambda: (nlattn.paged_attention(q, pages, values, table),),
            lambda: (nlattn.attention(q, whole, whole_values),),
            runs,
        ),
    ]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--keys", type=int, default=2048)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--step", type=int, default=256, help="queries that PyTorch gathers for")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("selected", "equal"), help="one part of it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(threads.threads())
    found = []
    if options.only != "selected":
        found += equal_work(options.n, options.channels, max(5, options.runs))
    sizes = options.n, options.keys, options.channels, options.queries, options.step
    if options.only != "equal":
        found += selected(*sizes, options.runs)
    if options.json:
        print(json.dumps({"results": found}))
        return
    for r in found:
        clock, processor = r["ratio"]["median"], r["processor_ratio"]["median"]
        print(f"{r['case']:52s} {clock:.3g} of the rival's time, {processor:.3g}", end="")
        print(" of its processor time", end="")
        if "nlattn_bytes" in r:
            held, gathered = r["nlattn_bytes"] / 1e6, r["gathered_bytes_at_a_time"] / 1e6
            print(f"; {held:.0f} MB, gathered {gathered:.0f} MB at a time", end="")
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
