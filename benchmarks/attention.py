"""Dense attention beside PyTorch's `scaled_dot_product_attention`: ratios of alternating runs.

Both use the same arrays and number of threads; outputs and gradients are compared first. The
gradient of PyTorch is its backward pass alone, ours is `attention_vjp`, forward pass included.

    python benchmarks/attention.py [--n 8192] [--channels 64 128] [--runs 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nlattn
from nlattn.runtime import threads


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def beside(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], runs: int) -> Any:
    """Time both in turn; the ratio of each pair of runs, and its spread."""
    for a, b in zip(ours(), theirs(), strict=True):
        eps = np.finfo(a.dtype).eps
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=200 * eps)
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    return {
        "case": name,
        "ratio": spread([a / b for a, b in pairs]),
        "nlattn_s": spread([a for a, _ in pairs]),
        "torch_s": spread([b for _, b in pairs]),
    }


def case(n: int, d: int, dtype: str, runs: int) -> list[Any]:
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((n, d)).astype(dtype) for _ in range(4))
    Q, K, V = (torch.from_numpy(x)[None, None].requires_grad_() for x in (q, k, v))
    G = torch.from_numpy(dout)[None, None]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    kept = sdpa(Q, K, V)

    def forward() -> Any:
        with torch.no_grad():
            return (sdpa(Q, K, V)[0, 0],)

    def backward() -> Any:
        return [g[0, 0] for g in torch.autograd.grad(kept, (Q, K, V), G, retain_graph=True)]

    name = f"{dtype} n={n} d={d}"
    return [
        beside(f"{name} forward", lambda: (nlattn.attention(q, k, v),), forward, runs),
        beside(f"{name} vjp", lambda: nlattn.attention_vjp(q, k, v, dout), backward, runs),
    ]


def peak() -> int:
    """Peak resident bytes since the last `forget_peak` (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def extra_memory(n: int, d: int) -> dict[str, float]:
    """Megabytes that one call needs beside inputs and results, compiled code loaded before."""
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((n, d)).astype(np.float32) for _ in range(4))
    found = {}
    for name, call in (
        ("forward", lambda a: (nlattn.attention(*a[:3]),)),
        ("vjp", lambda a: nlattn.attention_vjp(*a)),
    ):
        call([x[:300] for x in (q, k, v, dout)])
        forget_peak()
        before = peak()
        results = call([q, k, v, dout])
        found[name] = (peak() - before - sum(x.nbytes for x in results)) / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=threads.threads())
    parser.add_argument("--memory", type=int, metavar="N", help="extra memory at n=N, alone")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.memory:
        print(
            f"extra MB at n={arguments.memory}, d=64, float32:", extra_memory(arguments.memory, 64)
        )
        return
    threads.set_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    results = []
    for dtype in arguments.dtypes:
        for d in arguments.channels:
            for result in case(arguments.n, d, dtype, arguments.runs):
                results.append(result)
                ratio, ours, theirs = (result[x] for x in ("ratio", "nlattn_s", "torch_s"))
                print(
                    f"{result['case']:32} {ratio['median']:.2f} x torch "
                    f"({ratio['min']:.2f} to {ratio['max']:.2f}); "
                    f"{1e3 * ours['median']:.0f} and {1e3 * theirs['median']:.0f} ms",
                    file=sys.stderr if arguments.json else sys.stdout,
                )
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "results": results}, indent=2))


if __name__ == "__main__":
    main()
