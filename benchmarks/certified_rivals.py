"""Proved nearest keys and kernel sums of a photograph beside what else can be installed.

    python benchmarks/certified_rivals.py [--side 256] [--keys 16]

pykdtree and mlpack FastMKS search all best keys; mlpack KDE and scikit-learn sum the normalisers of
a Gaussian kernel to a relative tolerance; pykeops sums all pairs. What is proportional to queries
is asked for some of them. Processor seconds, what is not installed is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from certified_growth import averaged, flat, seconds

import nlattn
from nlattn import images

ROWS = 1024
Calls = dict[str, tuple[Callable[[], Any], float]]


def searches(q: Any, k: Any, share: float) -> Calls:
    """Best keys by product; by distance of what the pair disguises, for pykdtree."""
    some, calls = q[:: max(1, len(q) // ROWS)], dict[str, Any]()
    calls["nearest_keys"] = lambda: nlattn.nearest_keys(q, k), 1.0
    try:
        from pykdtree.kdtree import KDTree

        x, y = 1.5 * q[:, :-1], np.ascontiguousarray(k[:, :-1])
        tree = KDTree(y)
        part = np.ascontiguousarray(x[:: max(1, len(q) // ROWS)])
        calls["pykdtree"] = lambda: tree.query(part, k=1), share
    except ImportError:
        pass
    try:
        import mlpack

        k64, q64 = (np.asarray(a, float) for a in (k, some))
        calls["mlpack fastmks"] = (
            lambda: mlpack.fastmks(reference=k64, query=q64, k=1, kernel="linear"),
            share,
        )
    except ImportError:
        pass
    return calls


def sums(x: Any, v: Any, h: float, share: float) -> Calls:
    """Means of values, or normalisers alone, under ``exp(-|x - y|^2 / (2 h^2))``."""
    calls: Calls = {}
    how: dict[str, Any] = {"weight": "gaussian", "bandwidth": h * 2**0.5}
    some = np.ascontiguousarray(x[:: max(1, len(x) // ROWS)])
    some64, x64 = some.astype(float), x.astype(float)
    calls["attention (dense)"] = lambda: nlattn.attention(some, x, v), share
    for t in (1e-3, 1e-6):
        calls[f"certified_attention {t:g}"] = (
            lambda t=t: nlattn.certified_attention(x, x, v, tolerance=t, **how),
            1.0,
        )
    try:
        from sklearn.neighbors import KDTree

        tree = KDTree(x64, leaf_size=16)
        for t in (1e-3, 1e-6):
            given = {"kernel": "gaussian", "atol": 0, "rtol": t}
            calls[f"sklearn kernel_density {t:g}, normalisers"] = (
                lambda given=given: tree.kernel_density(some64, h, **given),
                share,
            )
    except ImportError:
        pass
    try:
        import mlpack

        calls["mlpack kde 1e-3, normalisers"] = (
            lambda: mlpack.kde(
                reference=x64, query=some64, bandwidth=h, rel_error=1e-3, kernel="gaussian"
            ),
            share,
        )
    except ImportError:
        pass
    try:
        from pykeops.numpy import LazyTensor

        def dense() -> Any:
            a, b, c = LazyTensor(some[:, None]), LazyTensor(x[None]), LazyTensor(v[None])
            weights = (-((a - b) ** 2).sum(-1) / (2 * h * h)).exp()
            return (weights * c).sum(1) / weights.sum(1)

        dense()
        calls["pykeops, all pairs"] = dense, share
    except Exception as error:  # it compiles at first use, with what it finds
        print(f"pykeops: {type(error).__name__}: {error}")
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--keys", type=float, default=16)
    options = parser.parse_args()
    q, k, v, scale = flat(averaged(images.photograph(), options.side), 32, options.keys)
    share = len(q) / len(q[:: max(1, len(q) // ROWS)])
    # the pair q = (f, 1), k = (f, -|f|^2 / 3) weighs distances of 1.5 f and f by scale / 3
    x, h = np.ascontiguousarray(k[:, :-1]), float((1.5 / scale) ** 0.5)
    for name, (call, times) in {**searches(q, k, share), **sums(x, v, h, share)}.items():
        print(f"{name:44} {seconds(call) * times:9.2f} s", flush=True)


if __name__ == "__main__":
    main()
