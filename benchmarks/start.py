"""How long it takes until something happens: import, and the first call of every operator.

Each figure is of new processes. "warm" finds compiled code in the cache, "cold" has an empty one.
Memory is what the process has held at most, libraries included.

    python benchmarks/start.py [--operators attention scram] [--cold] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

IMPORT = """
import sys, time
start = time.perf_counter()
import nlattn
print(time.perf_counter() - start, "numba" in sys.modules, 0)
"""
FIRST = """
import time
from nlattn.conformance.cases.calls import call
from nlattn.conformance.table import find
arguments = call(find({name!r}), dtype="float32")
start = time.perf_counter()
find({name!r}).function()(**arguments)
seconds = time.perf_counter() - start
from nlattn.cli.output import peak_memory
print(seconds, True, peak_memory() or 0)
"""
TARGETS = {"import": 0.2, "warm": 0.5, "cold": 5.0}  # seconds


def process(code: str, cache: str | None = None) -> tuple[float, bool, int]:
    """Seconds that `code` says it took, whether it loaded Numba, and its peak of bytes."""
    variables = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables
    )
    seconds, numba, peak = done.stdout.split()
    return float(seconds), numba == "True", int(peak)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(names: list[str], repeats: int, cold: bool) -> list[dict[str, Any]]:
    imports = [process(IMPORT) for _ in range(repeats)]
    assert not any(numba for _, numba, _ in imports), "importing nlattn loads Numba"
    rows = [
        {"name": "import nlattn", "kind": "import", "seconds": spread([s for s, *_ in imports])}
    ]
    for name in names:
        code = FIRST.format(name=name)
        if cold:
            with tempfile.TemporaryDirectory() as cache:
                seconds, _, peak = process(code, cache)
            rows.append({"name": name, "kind": "cold", "seconds": spread([seconds]), "peak": peak})
        process(code)  # fills the cache
        runs = [process(code) for _ in range(repeats)]
        row = {"name": name, "kind": "warm", "seconds": spread([s for s, *_ in runs])}
        rows.append({**row, "peak": max(peak for *_, peak in runs)})
    for row in rows:
        row["target"] = TARGETS[row["kind"]]
    return rows


def main() -> None:
    from nlattn.conformance.table import TABLE

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [spec.name for spec in TABLE]
    parser.add_argument("--operators", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--cold", action="store_true", help="an empty cache too: minutes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.operators, options.repeats, options.cold)
    if options.json:
        print(json.dumps({"rows": rows}, indent=1))
        return
    for row in rows:
        s = row["seconds"]
        peak = f"  {row['peak'] / 1e6:.0f} MB" if "peak" in row else ""
        print(
            f"{row['name']:24s} {row['kind']:6s} {s['median']:.2f} s "
            f"({s['min']:.2f} to {s['max']:.2f}), target {row['target']} s{peak}"
        )


if __name__ == "__main__":
    main()
