"""Memory of a leverage stream over its length: the most bytes allocated at a time, and the rate.

Keys are drawn block by block, their lengths from a law without a mean, so that some are heavy at
any length. Bytes are those that Python and NumPy allocate while the stream takes a block in
(tracemalloc), the block itself not counted.

    python benchmarks/stream.py [--sizes 10000 ... 10000000] [--d 16] [--eps 0.05] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from typing import Any

import numpy as np

from nlattn import LeverageStream

BLOCK = 10_000


def take_in(n: int, d: int, eps: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    stream, block = LeverageStream(d, eps), np.empty((BLOCK, d))
    seconds, most, held = 0.0, 0, 0
    for _ in range(0, n, BLOCK):
        rng.standard_normal(out=block)
        block *= rng.pareto(1.0, (BLOCK, 1))
        tracemalloc.start()
        start = time.perf_counter()
        stream.update(block)
        seconds += time.perf_counter() - start
        most = max(most, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        held = max(held, stream.held)
    state = stream.nbytes
    return {"n": n, "peak": most, "state": state, "held": held, "keys_per_second": n / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    sizes = [10**4, 10**5, 10**6, 10**7]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="multiples of 10,000")
    parser.add_argument("--d", type=int, default=16)
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    LeverageStream(options.d, options.eps).update(np.ones((BLOCK, options.d)))  # compile
    rows = [take_in(n, options.d, options.eps) for n in options.sizes]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print("keys, most bytes at a time, bytes of the state, most keys held, keys a second")
    for row in rows:
        print(f"{row['n']:,}  {row['peak']:,}  {row['state']:,}  {row['held']}", end="  ")
        print(f"{row['keys_per_second']:.2g}")


if __name__ == "__main__":
    main()
