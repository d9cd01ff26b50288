"""Learned queries in windows beside two plain PyTorch forms: ratios of alternating runs.

"unfold" gathers the window of every pixel and takes its softmax; "two convolutions" is the
published form, depthwise convolutions of ``exp(score) v`` and of ``exp(score)``. All get the same
queries, keys and values, and the same number of threads; outputs are compared first. Memory is the
peak of one call in a process of its own, beside its inputs. Windows of other sizes show how time
and memory grow.

    python benchmarks/qna.py [--side 256] [--window 7] [--runs 5] [--windows 3 7 15] [--json]
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
import torch
import torch.nn.functional as nnf

import nlattn
from nlattn.runtime import threads

HEADS, QUERIES, CHANNELS = 8, 2, 64


def arrays(side: int, window: int) -> dict[str, np.ndarray]:
    """One image of 64 channels, 8 heads, 2 queries; heads lead."""
    rng = np.random.default_rng(0)
    d = CHANNELS // HEADS
    shapes = {
        "q": (HEADS, QUERIES, d),
        "k": (HEADS, side, side, d),
        "v": (HEADS, side, side, d),
        "bias": (HEADS, QUERIES, window, window),
        "gate": (HEADS, QUERIES, window, window),
    }
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def ours(a: dict[str, np.ndarray], plain: bool = False) -> Callable[[], np.ndarray]:
    window = a["bias"].shape[-1]
    tables = {} if plain else {"bias": a["bias"], "gate": a["gate"]}
    return lambda: nlattn.qna(a["q"], a["k"], a["v"], window=window, **tables)


def images(a: dict[str, np.ndarray]) -> Any:
    """Scores (h, t, H, W), masked outside by unfolding, and values (h, d, H, W)."""
    T = {name: torch.from_numpy(x) for name, x in a.items()}
    score = torch.einsum("gtd,ghwd->gthw", T["q"], T["k"]) * T["q"].shape[-1] ** -0.5
    return T, score, T["v"].permute(0, 3, 1, 2).contiguous()


def unfold(a: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    window = a["bias"].shape[-1]
    taps, pad = window * window, window // 2

    def call() -> np.ndarray:
        with torch.no_grad():
            T, score, v = images(a)
            h, t, H, W = score.shape
            z = nnf.unfold(nnf.pad(score, (pad,) * 4, value=-torch.inf), window)
            z = z.view(h, t, taps, H * W) + T["bias"].view(h, t, taps, 1)
            p = torch.softmax(z, 2) * T["gate"].view(h, t, taps, 1)
            near = nnf.unfold(v, window, padding=pad).view(h, -1, taps, H * W)
            out = torch.einsum("gtkn,gckn->gnc", p, near)
            return out.view(h, H, W, -1).numpy()

    return call


def two_convolutions(a: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    window = a["bias"].shape[-1]

    def call() -> np.ndarray:
        with torch.no_grad():
            T, score, v = images(a)
            h, t, H, W = score.shape
            d = v.shape[1]
            powers = torch.exp(score - score.amax((2, 3), keepdim=True))
            eb = torch.exp(T["bias"] - T["bias"].amax((2, 3), keepdim=True))
            product = (powers[:, :, None] * v[:, None]).view(1, h * t * d, H, W)
            weight = (eb * T["gate"]).view(h * t, 1, window, window).repeat_interleave(d, 0)
            pad = window // 2
            num = nnf.conv2d(product, weight, padding=pad, groups=h * t * d)
            den = nnf.conv2d(
                powers.view(1, h * t, H, W),
                eb.view(h * t, 1, window, window),
                padding=pad,
                groups=h * t,
            )
            out = num.view(h, t, d, H, W) / den.view(h, t, 1, H, W)
            return out.sum(1).permute(0, 2, 3, 1).numpy()

    return call


FORMS: dict[str, Callable[[dict[str, np.ndarray]], Callable[[], np.ndarray]]] = {
    "nlattn": ours,
    "unfold": unfold,
    "two convolutions": two_convolutions,
}


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def beside(side: int, window: int, runs: int) -> dict[str, Any]:
    a = arrays(side, window)
    calls = {name: form(a) for name, form in FORMS.items()}
    outputs = {name: call() for name, call in calls.items()}
    for out in outputs.values():
        np.testing.assert_allclose(out, outputs["unfold"], rtol=0, atol=2e-4)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            times[name].append(seconds(call))
    best = [min(x, y) for x, y in zip(times["unfold"], times["two convolutions"], strict=True)]
    return {
        "side": side,
        "window": window,
        "seconds": {name: spread(t) for name, t in times.items()},
        "ratio": spread([x / y for x, y in zip(times["nlattn"], best, strict=True)]),
    }


def peak() -> int:
    """Peak resident bytes since the last `forget_peak` (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def extra_memory(name: str, side: int, window: int) -> float:
    """Megabytes that one call takes beside its inputs, result included; run alone."""
    FORMS[name](arrays(16, window))()
    a = arrays(side, window)
    call = FORMS[name](a)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    call()
    return (peak() - before) / 1e6


def memory(side: int, window: int) -> dict[str, float]:
    """Extra memory of every form, each in a new process."""
    found = {}
    for name in FORMS:
        command = [sys.executable, __file__, "--memory", name]
        command += ["--side", str(side), "--window", str(window)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = float(done.stdout)
    return found


def growth(side: int, windows: list[int], runs: int) -> dict[str, Any]:
    """Time of windows of several sizes, with bias and gate and without, and its exponent."""
    rows: list[dict[str, float]] = []
    for window in windows:
        a, row = arrays(side, window), {"window": float(window)}
        for name, plain in (("with tables", False), ("boxes", True)):
            call = ours(a, plain)
            call()
            row[name] = statistics.median(seconds(call) for _ in range(runs))
        rows.append(row)
    log = np.log([[row["window"], row["with tables"], row["boxes"]] for row in rows])
    slopes = np.polyfit(log[:, 0], log[:, 1:], 1)[0]
    return {"rows": rows, "exponents": {"with tables": slopes[0], "boxes": slopes[1]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--windows", type=int, nargs="+", default=[3, 5, 7, 11, 15, 21])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=threads.threads())
    parser.add_argument("--memory", choices=list(FORMS), help="extra MB of one form, alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads.set_threads(options.threads)
    torch.set_num_threads(options.threads)
    if options.memory:
        print(extra_memory(options.memory, options.side, options.window))
        return
    found: dict[str, Any] = beside(options.side, options.window, options.runs)
    found["memory_mb"] = memory(options.side, options.window)
    found["memory_mb_by_window"] = {
        str(w): float(
            subprocess.run(
                [sys.executable, __file__, "--memory", "nlattn", "--window", str(w)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for w in (options.windows[0], options.windows[-1])
    }
    found["growth"] = growth(options.side, options.windows, options.runs)
    if options.json:
        print(json.dumps({"threads": options.threads, **found}, indent=1))
        return
    ratio = found["ratio"]
    print(
        f"{options.side}^2, window {options.window}: {ratio['median']:.2f} "
        f"({ratio['min']:.2f} to {ratio['max']:.2f}) x the faster PyTorch form"
    )
    for name, t in found["seconds"].items():
        print(f"  {name:17} {1e3 * t['median']:6.0f} ms, {found['memory_mb'][name]:5.0f} MB")
    for row in found["growth"]["rows"]:
        both = (1e3 * row["with tables"], 1e3 * row["boxes"])
        print(f"  window {row['window']:2.0f}: {both[0]:5.0f} ms, without tables {both[1]:5.0f} ms")
    exponents = found["growth"]["exponents"]
    print(f"  grows as window^{exponents['with tables']:.2f}, ^{exponents['boxes']:.2f}")
    print(f"  MB by window: {found['memory_mb_by_window']}")


if __name__ == "__main__":
    main()
