"""Cross-scale attention beside the same composed in PyTorch: ratios of alternating runs, memory.

The rival is what one would write: unfold the keys' patches, conv2d for scores, softmax,
conv_transpose2d to paste, divided by the number of patches over a cell; autograd for its gradient.
Both get the same arrays and as many threads, and their results are compared first. Memory is the
peak of one call in a process of its own, beside its inputs and its result.

    python benchmarks/cross_scale.py [--side 96] [--channels 64] [--scale 2] [--runs 5] [--json]
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

PATCH, TEMPERATURE = 3, 10.0
Call = Callable[[], Any]


def arrays(side: int, channels: int, scale: int) -> list[np.ndarray]:
    """Queries, keys on the coarser grid, values and cotangents, float32."""
    rng = np.random.default_rng(0)
    small = -(-side // scale)
    shapes = [(side, side), (small, small), (scale * small,) * 2, (scale * side,) * 2]
    return [rng.standard_normal((*s, channels), np.float32) for s in shapes]


def ours(kind: str, given: list[np.ndarray], scale: int) -> Call:
    q, k, v, dout = given
    options = {"scale": scale, "patch": PATCH, "temperature": TEMPERATURE}
    if kind == "gradient":
        return lambda: nlattn.cross_scale_attention_vjp(q, k, v, dout, **options)
    return lambda: (nlattn.cross_scale_attention(q, k, v, **options),)


def theirs(kind: str, given: list[np.ndarray], scale: int) -> Call:
    import torch
    import torch.nn.functional as nnf

    q, k, v, dout = (torch.from_numpy(x).permute(2, 0, 1)[None].contiguous() for x in given)
    C, r, wide = q.shape[1], PATCH // 2, PATCH * scale
    side = q.shape[2]

    def forward(q: Any, k: Any, v: Any) -> Any:
        m = k.shape[2] * k.shape[3]
        patches = nnf.unfold(k, PATCH, padding=r)[0].T
        patches = patches / patches.norm(dim=1, keepdim=True).clamp_min(1e-4)
        score = nnf.conv2d(q, patches.view(m, C, PATCH, PATCH), padding=r)
        weights = torch.softmax(TEMPERATURE * score, 1)
        pasted = nnf.unfold(v, wide, padding=r * scale, stride=scale)[0].T.view(m, C, wide, wide)
        total = nnf.conv_transpose2d(weights, pasted, stride=scale, padding=r * scale)
        ones = torch.ones(1, 1, wide, wide)
        one = torch.ones(1, 1, side, side)
        return total / nnf.conv_transpose2d(one, ones, stride=scale, padding=r * scale)

    def last(x: Any) -> np.ndarray:
        return x[0].permute(1, 2, 0).contiguous().numpy()

    def plain() -> Any:
        with torch.no_grad():
            return (last(forward(q, k, v)),)

    def gradients() -> Any:
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        return tuple(map(last, torch.autograd.grad(forward(*leaves), leaves, dout)))

    return gradients if kind == "gradient" else plain


KINDS = "forward", "gradient"


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def measure(given: list[np.ndarray], scale: int, runs: int) -> list[dict[str, Any]]:
    rows = []
    for kind in KINDS:
        calls = {"nlattn": ours(kind, given, scale), "torch": theirs(kind, given, scale)}
        for a, b in zip(*(call() for call in calls.values()), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * np.abs(b).max())
        times: dict[str, list[float]] = {key: [] for key in calls}
        for _ in range(runs):
            for key, call in calls.items():
                times[key].append(seconds(call))
        ratio = [x / y for x, y in zip(times["nlattn"], times["torch"], strict=True)]
        found = {key: spread(t) for key, t in times.items()}
        rows.append({"kind": kind, "seconds": found, "ratio": spread(ratio)})
    return rows


def extra_memory(who: str, kind: str, options: argparse.Namespace) -> float:
    """Megabytes that one call takes beside inputs and result (Linux); run alone."""
    form = ours if who == "nlattn" else theirs
    form(kind, arrays(16, options.channels, options.scale), options.scale)()
    call = form(kind, arrays(options.side, options.channels, options.scale), options.scale)
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    held = sum(x.nbytes for x in call())
    return (_peak() - before - held) / 1e6


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def memory(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Extra memory of both, each in a new process."""
    sizes = (options.side, options.channels, options.scale)
    flags = [
        f"--{name}={size}" for name, size in zip(("side", "channels", "scale"), sizes, strict=True)
    ]
    found = {}
    for who in ("nlattn", "torch"):
        command = [sys.executable, __file__, "--alone", who, kind, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[who] = float(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=threads.threads())
    parser.add_argument("--alone", nargs=2, metavar=("WHO", "KIND"), help="extra MB of one call")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads.set_threads(options.threads)
    if options.alone:
        print(extra_memory(*options.alone, options))
        return
    import torch

    torch.set_num_threads(options.threads)
    given = arrays(options.side, options.channels, options.scale)
    rows = measure(given, options.scale, options.runs)
    for row in rows:
        row["extra_mb"] = memory(row["kind"], options)
    if options.json:
        print(json.dumps({"side": options.side, "scale": options.scale, "runs": rows}, indent=1))
        return
    for row in rows:
        ratio = row["ratio"]
        times = ", ".join(f"{key} {t['median']:.3f} s" for key, t in row["seconds"].items())
        extra = ", ".join(f"{key} {mb:.0f} MB" for key, mb in row["extra_mb"].items())
        print(f"{row['kind']}: {times}; ratio {ratio['median']:.2f}", end=" ")
        print(f"({ratio['min']:.2f} to {ratio['max']:.2f}); extra memory {extra}")


if __name__ == "__main__":
    main()
