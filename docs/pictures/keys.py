"""Draw the pictures of the pages on what keys can receive: lewis, universal, heavy.

python docs/pictures/keys.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import nlattn

PICTURES = Path(__file__).parent


def lewis() -> None:
    """Convergence at p = 4, and all bounds of every key's sensitivity."""
    K = np.random.default_rng(0).standard_normal((60, 4)) * [4, 2, 1, 1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for eta, name in ((1.0, "1 (undamped)"), (1 / 2, "2/p"), (2 / 3, "4/(p+2)")):
        steps = range(26)
        residuals = [nlattn.lewis_weights(K, 4, eta=eta, steps=n).residual for n in steps]
        left.semilogy(steps, residuals, label=f"eta = {name}")
    left.set(xlabel="steps", ylabel="residual", title="Lewis weights, p = 4")
    left.legend(fontsize=8)
    exact = np.array([nlattn.lp_sensitivity(K, i, 3).lower for i in range(len(K))])
    order = np.argsort(exact)
    certified = nlattn.sensitivity_bounds(K, 3)
    loose = nlattn.sensitivity_bounds(K, 3, weights=np.ones(len(K)))
    right.semilogy(loose.upper[order], ":", label="upper, weights of 1")
    right.semilogy(certified.upper[order], label="upper, Lewis weights")
    right.semilogy(exact[order], "k", label="lp_sensitivity")
    right.semilogy(certified.lower[order], label="lower")
    right.set(xlabel="keys, sorted", title="bounds of the sensitivity, p = 3", ylim=(1e-4, 2))
    right.legend(fontsize=8)
    figure.savefig(PICTURES / "lewis.png", dpi=110)


def universal() -> None:
    """A planted model: leverage of all keys; and how many keys matter to each prefix."""
    made = nlattn.testing.planted_keys(2000, 8, 6, eps=0.2, seed=0)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    chosen = nlattn.universal_set(made.keys, 0.1)
    left.semilogy(chosen.upper, ".", markersize=2, label="2000 keys")
    left.semilogy(made.relevant, chosen.upper[made.relevant], "o", mfc="none", label="planted")
    left.axhline(0.1, color="k", linewidth=0.8, label="eps")
    left.set(xlabel="key", title="most that any query can give, p = 2", ylim=(1e-5, 1))
    left.legend(fontsize=8, loc="lower right")
    causal = nlattn.universal_set(made.keys[:400], 0.1, causal=True)
    right.plot(np.diff(causal.support.indptr), label="needed by row i")
    right.axhline(causal.bound, color="k", linewidth=0.8, label="bound, d / eps")
    last = len(nlattn.universal_set(made.keys[:400], 0.1).keys)
    right.axhline(last, color="C1", linewidth=0.8, label="set of all 400 keys")
    right.set(xlabel="row i", title="causal: keys in the set of each row", ylim=(0, 90))
    right.legend(fontsize=8)
    figure.savefig(PICTURES / "universal.png", dpi=110)


def heavy() -> None:
    """Dense weights beside the entries of at least eps."""
    rng = np.random.default_rng(1)
    made = nlattn.testing.planted_keys(120, 6, 5, eps=0.4, seed=3)
    q = rng.standard_normal((40, 6)) + rng.standard_normal((40, 5)) ** 3 @ made.keys[made.relevant]
    every = nlattn.heavy_attention(q, made.keys, 1e-12).to_dense()
    A = nlattn.heavy_attention(q, made.keys, 0.1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained", sharey=True)
    for axes, matrix, title in (
        (left, every, "all 4800 weights, p = 2"),
        (right, A.to_dense(), f"the {len(A.weights)} of at least 0.1"),
    ):
        axes.imshow(np.sqrt(matrix), aspect="auto", cmap="magma", vmin=0, vmax=1)
        axes.set(title=title, xlabel="key")
    for j in nlattn.universal_set(made.keys, 0.1).keys:
        right.plot(j, -1.5, "v", color="C2", markersize=4, clip_on=False)
    left.set(ylabel="query")
    figure.savefig(PICTURES / "heavy.png", dpi=110)


if __name__ == "__main__":
    lewis()
    universal()
    heavy()
