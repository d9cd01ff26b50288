"""Linear attention beside the same formulas in PyTorch: ratios of alternating runs, memory, growth.

Both get the same arrays and the same number of threads, and their outputs are compared first.
Memory is the peak of one call in a process of its own, beside its inputs and its result. Growth is
the time of causal FAVOR+ over n, and its exponent.

    python benchmarks/linear.py [--what time memory growth] [--n 262144] [--d 64] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import nlattn
from nlattn.runtime import threads

FEATURES = 128
Call = Callable[[], Any]


def arrays(n: int, d: int, count: int = 3) -> list[np.ndarray]:
    """Queries, keys, values and cotangents, float32."""
    return [np.random.default_rng(i).standard_normal((n, d), np.float32) for i in range(count)]


def ours(name: str, n: int, d: int) -> Call:
    q, k, v, dout = arrays(n, d, 4)
    projection = nlattn.orthogonal_features(d, FEATURES, seed=0).astype(np.float32)
    calls: dict[str, Call] = {
        "efficient_attention": lambda: nlattn.efficient_attention(q, k, v),
        "efficient_attention_vjp": lambda: nlattn.efficient_attention_vjp(q, k, v, dout),
        "enla": lambda: nlattn.enla(q, k, v, projection=projection),
        "enla_vjp": lambda: nlattn.enla_vjp(q, k, v, dout, projection=projection),
    }
    return calls[name]


def theirs(name: str, n: int, d: int) -> Call:
    """The formula as one would write it in PyTorch."""
    import torch
    import torch.nn.functional as nnf

    tensors = [torch.from_numpy(x) for x in arrays(n, d, 4)]
    projection = torch.from_numpy(
        nlattn.orthogonal_features(d, FEATURES, seed=0).astype(np.float32)
    )

    def efficient(q: Any, k: Any, v: Any) -> Any:
        return q.softmax(-1) @ (k.softmax(0).T @ v)

    def features(x: Any) -> Any:
        u = 6**0.5 * nnf.normalize(x, dim=-1, eps=5e-5)
        return torch.exp(u @ projection.T - (u * u).sum(-1, keepdim=True) / 2) + 1e-4

    def enla(q: Any, k: Any, v: Any) -> Any:
        phi_q, phi_k = features(q), features(k)
        return (phi_q @ (phi_k.T @ v)) / (phi_q @ phi_k.sum(0))[:, None]

    form = enla if name.startswith("enla") else efficient

    def forward() -> Any:
        with torch.no_grad():
            return form(*tensors[:3]).numpy()

    def gradients() -> Any:
        leaves = [x.clone().requires_grad_() for x in tensors[:3]]
        found = torch.autograd.grad(form(*leaves), leaves, tensors[3])
        return tuple(g.numpy() for g in found)

    return gradients if name.endswith("_vjp") else forward


NAMES = "efficient_attention", "efficient_attention_vjp", "enla", "enla_vjp"


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def measure_time(n: int, d: int, runs: int) -> list[dict[str, Any]]:
    rows = []
    for name in NAMES:
        calls = {"nlattn": ours(name, n, d), "torch": theirs(name, n, d)}
        got, want = (call() for call in calls.values())
        pairs = [(got, want)] if isinstance(got, np.ndarray) else zip(got, want, strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * np.abs(b).max())
        times: dict[str, list[float]] = {key: [] for key in calls}
        for _ in range(runs):
            for key, call in calls.items():
                times[key].append(seconds(call))
        ratio = [x / y for x, y in zip(times["nlattn"], times["torch"], strict=True)]
        row = {"name": name, "n": n, "d": d, "seconds": {k: spread(t) for k, t in times.items()}}
        rows.append({**row, "ratio": spread(ratio)})
    return rows


def extra_memory(who: str, name: str, n: int, d: int) -> float:
    """Megabytes that one call takes beside inputs and result (Linux); run alone."""
    form = ours if who == "nlattn" else theirs
    form(name, 4096, d)()
    call = form(name, n, d)
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    result = call()
    held = sum(x.nbytes for x in ([result] if isinstance(result, np.ndarray) else result))
    return (_peak() - before - held) / 1e6


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure_memory(n: int, d: int) -> list[dict[str, Any]]:
    rows = []
    for name in NAMES:
        row: dict[str, Any] = {"name": name, "n": n, "d": d}
        for who in ("nlattn", "torch"):
            command = [sys.executable, __file__, "--alone", who, name, "--n", str(n), "--d", str(d)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row[who] = float(done.stdout)
        rows.append(row)
    return rows


def measure_growth(d: int, runs: int) -> dict[str, Any]:
    projection = nlattn.orthogonal_features(d, FEATURES, seed=0).astype(np.float32)
    rows = []
    for n in (16_384, 65_536, 262_144):
        q, k, v = arrays(n, d)

        def call(q: Any = q, k: Any = k, v: Any = v) -> Any:
            return nlattn.favor_attention(q, k, v, projection=projection, causal=True)

        call()
        rows.append({"n": n, "seconds": statistics.median(seconds(call) for _ in range(runs))})
    sizes, times = np.log([[row["n"], row["seconds"]] for row in rows]).T
    return {"rows": rows, "exponent": float(np.polyfit(sizes, times, 1)[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    kinds = ("time", "memory", "growth")
    parser.add_argument("--what", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--n", type=int, default=262_144)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=threads.threads())
    parser.add_argument("--alone", nargs=2, metavar=("WHO", "NAME"), help="extra MB of one call")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads.set_threads(options.threads)
    if options.alone:
        print(extra_memory(*options.alone, options.n, options.d))
        return
    found: dict[str, Any] = {}
    if "time" in options.what:
        import torch

        torch.set_num_threads(options.threads)
        found["time"] = measure_time(options.n, options.d, options.runs)
    if "memory" in options.what:
        found["memory"] = measure_memory(options.n, options.d)
    if "growth" in options.what:
        found["growth"] = measure_growth(options.d, options.runs)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for row in found.get("time", []):
        ratio, s = row["ratio"], row["seconds"]
        times = ", ".join(f"{key} {t['median']:.3f} s" for key, t in s.items())
        print(f"{row['name']}: {times}; ratio {ratio['median']:.2f}", end=" ")
        print(f"({ratio['min']:.2f} to {ratio['max']:.2f})")
    for row in found.get("memory", []):
        print(f"{row['name']}: extra memory {row['nlattn']:.0f} MB, torch {row['torch']:.0f} MB")
    if growth := found.get("growth"):
        for row in growth["rows"]:
            print(f"causal favor_attention, n = {row['n']}: {row['seconds']:.3f} s")
        print(f"exponent {growth['exponent']:.2f}")


if __name__ == "__main__":
    main()
