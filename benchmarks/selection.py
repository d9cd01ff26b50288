"""How much attention a few keys of a photograph hold, by how they are chosen; and where they lie.

Mass is the mean over sampled queries of the exact attention that the chosen keys receive, for the
softmax (a heuristic) and for squared dot products (where leverage bounds every entry).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import nlattn
from nlattn import images

SELECT = ("leverage", "norm", "random", "oracle")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def measure(side: int, rows: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    photograph = images.photograph()
    step = photograph.shape[0] // side
    image = photograph.reshape(side, step, side, step, 3).mean((1, 3))
    features = images.patch_features(image, patch=7, channels=32)
    q, k = images.queries_and_keys(features)
    scale = images.softmax_scale(q, k, seed=seed)
    q, k = (x.reshape(side * side, -1).astype(np.float64) for x in (q, k))
    tau, rank = nlattn.leverage_scores(k, return_rank=True)
    some = np.random.default_rng(seed).choice(len(q), min(rows, len(q)), replace=False)
    weights = {"softmax": nlattn.attention_map(q, k, scale=scale).rows(some)}
    squares = (q[some] @ k.T) ** 2
    weights["square"] = squares / squares.sum(1, keepdims=True)
    one = np.ones(len(q))
    mass_of = {
        "leverage": tau,
        "norm": (k**2).sum(1),
        "random": np.random.default_rng(seed).random(len(k)),
        "oracle": nlattn.attention_map(q, k, scale=scale).T @ one,
    }
    order = {name: np.argsort(-x, kind="stable") for name, x in mass_of.items()}
    mass = {
        kernel: {
            name: [float(P[:, order[name][:size]].sum(1).mean()) for size in SIZES]
            for name in SELECT
        }
        for kernel, P in weights.items()
    }
    report: dict[str, Any] = {
        "side": side,
        "keys": len(k),
        "rank": int(rank),
        "queries": len(some),
        "scale": float(scale),
        "sizes": list(SIZES),
        "mass": mass,
        "universal": [],
    }
    for eps in (0.1, 0.01, 0.001):
        heavy = np.flatnonzero(tau >= eps)
        recall = {}
        for kernel, P in weights.items():
            entries = eps <= P
            found = entries[:, heavy].sum()
            recall[kernel] = float(found / entries.sum()) if entries.any() else None
        report["universal"].append(
            {"eps": eps, "size": len(heavy), "bound": int(rank / eps), "recall": recall}
        )
    return report, {"image": image, "order": order, "tau": tau.reshape(side, side)}


def draw(report: dict[str, Any], shown: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    side = report["side"]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    where, scores, curves = figure.subplots(1, 3, width_ratios=[1, 1, 1.3])
    where.imshow(shown["image"].mean(-1), cmap="gray", vmin=-0.4, vmax=1.2)
    styles = {"leverage": ("#d55e00", "o"), "norm": ("#0072b2", "s"), "oracle": ("#009e73", "^")}
    for name, (colour, marker) in styles.items():
        row, column = np.divmod(shown["order"][name][:32], side)
        where.scatter(column, row, s=22, c=colour, marker=marker, lw=0.4, ec="w", label=name)
    where.legend(fontsize=7, loc="upper right")
    where.set_title("32 keys, chosen three ways", fontsize=9)
    scores.imshow(np.log10(np.maximum(shown["tau"], 1e-7)), cmap="magma")
    scores.set_title("leverage of every key (log)", fontsize=9)
    for axes in (where, scores):
        axes.set_axis_off()
    for name, (colour, _) in {**styles, "random": ("#777777", "x")}.items():
        for kernel, line in (("softmax", "-"), ("square", ":")):
            curves.plot(
                report["sizes"],
                report["mass"][kernel][name],
                line,
                c=colour,
                label=name if kernel == "softmax" else None,
            )
    curves.set(xscale="log", yscale="log", ylim=(1e-5, 1), xlabel="keys kept")
    curves.set_title("mean mass they hold: softmax -, square :", fontsize=9)
    curves.legend(fontsize=7)
    figure.savefig(path, dpi=68)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, choices=(64, 128, 256, 512), default=128)
    parser.add_argument("--rows", type=int, default=512, help="queries whose mass is measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="where to draw it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report, shown = measure(options.side, options.rows, options.seed)
    if options.picture:
        draw(report, shown, options.picture)
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print(f"{report['keys']} keys of rank {report['rank']}, {report['queries']} queries")
    for kernel, masses in report["mass"].items():
        for name, mass in masses.items():
            print(f"{kernel:8} {name:9}", *(f"{x:.4f}" for x in mass))
    for u in report["universal"]:
        print(f"eps {u['eps']}: {u['size']} keys (bound {u['bound']}), recall {u['recall']}")


if __name__ == "__main__":
    main()
