"""All comparisons, one after the other, and the table of docs/performance.md.

Each runs in a process of its own with the same number of threads; there, this library and its
rival get the same arrays, must agree, and take turns. Ratios are times of nlattn over the rival's:
the median of all turns with its spread, and the fastest of each, which noise disturbs least.

    python benchmarks/run.py [NAME ...] [--quick] [--out FILE.json] [--table docs/performance.md]
    python benchmarks/run.py --from FILE.json --table docs/performance.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
PACKAGES = (
    *("nlattn", "numpy", "scipy", "numba", "torch", "faiss-cpu", "pynndescent", "scikit-image"),
    "opencv-python-headless",
)


class Row(NamedTuple):
    """One line of the table."""

    what: str
    rival: str
    ratio: float
    low: float
    high: float
    note: str = ""
    fastest: float | None = None
    """Our fastest run over the rival's."""


class Comparison(NamedTuple):
    """A script, its arguments, and what its report says."""

    script: str
    arguments: list[str]
    quick: list[str]
    """Arguments of a short run, which shows that all of it works."""
    rows: Callable[[Any], Iterator[Row]]


def spread(ratio: dict[str, float]) -> tuple[float, float, float]:
    return ratio["median"], ratio["min"], ratio["max"]


def fastest(ours: dict[str, float], rival: dict[str, float]) -> float:
    return ours["min"] / rival["min"]


def attention(report: Any) -> Iterator[Row]:
    for r in report["results"]:
        best = fastest(r["nlattn_s"], r["torch_s"])
        yield Row(f"attention, {r['case']}", "PyTorch SDPA", *spread(r["ratio"]), fastest=best)


def selected(report: Any) -> Iterator[Row]:
    for r in report["results"]:
        rival = "gather + PyTorch SDPA" if "nlattn_bytes" in r else "attention, equal work"
        best = fastest(r["nlattn_s"], r["rival_s"])
        note = ""
        if "nlattn_bytes" in r:
            held, gathered = r["nlattn_bytes"] / 1e6, r["gathered_bytes"] / 1e6
            note = f"{held:.0f} MB, {gathered:.0f} MB if all were gathered"
        yield Row(r["case"], rival, *spread(r["ratio"]), note, best)


def linear(report: Any) -> Iterator[Row]:
    memory = {row["name"]: row for row in report.get("memory", [])}
    for r in report["time"]:
        note = memory.get(r["name"])
        text = f"{note['nlattn']:.0f} and {note['torch']:.0f} MB extra" if note else ""
        what = f"{r['name']}, n={r['n']} d={r['d']}"
        best = fastest(r["seconds"]["nlattn"], r["seconds"]["torch"])
        yield Row(what, "the formula in PyTorch", *spread(r["ratio"]), text, best)


def cross_scale(report: Any) -> Iterator[Row]:
    for r in report["runs"]:
        extra = r["extra_mb"]
        text = f"{extra['nlattn']:.0f} and {extra['torch']:.0f} MB extra"
        what = f"cross-scale {r['kind']}, {report['side']}x{report['side']}"
        best = fastest(r["seconds"]["nlattn"], r["seconds"]["torch"])
        yield Row(what, "unfold and convolutions in PyTorch", *spread(r["ratio"]), text, best)


def qna(report: Any) -> Iterator[Row]:
    what = f"qna, {report['side']}x{report['side']}, window {report['window']}"
    note = ", ".join(f"{name} {mb:.0f} MB" for name, mb in report["memory_mb"].items())
    times = dict(report["seconds"])
    own = times.pop("nlattn")
    best = max(fastest(own, rival) for rival in times.values())
    yield Row(what, "the faster PyTorch form", *spread(report["ratio"]), note, best)


def leverage(report: Any) -> Iterator[Row]:
    for run in report["time"]:
        for name, ratio in run["ratios"].items():
            ours, rival = name.split(" / ")
            what = f"leverage_scores by {ours}, {run['n']}x{run['d']} {run['dtype']}"
            best = fastest(run["seconds"][ours], run["seconds"][rival])
            yield Row(what, rival, *spread(ratio), fastest=best)


def nl_means(report: Any) -> Iterator[Row]:
    rivals = [r for r in report["rows"] if not r["name"].startswith("nlattn")]
    for r in report["rows"]:
        if r["name"].startswith("nlattn"):
            scale = r["ratio"] / r["seconds"]
            best = max(x["psnr"] for x in rivals if x["level"] == r["level"])
            note = f"{r['psnr']:.2f} dB; rivals at best {best:.2f}, noisy {r['noisy']:.2f}"
            what = f"nl_means, sigma {r['level']}, {r['name'][7:]}"
            ends = [t * scale for t in r["range"]]
            yield Row(what, "best of scikit-image, OpenCV", r["ratio"], *ends, note)


def patchmatch(report: Any) -> Iterator[Row]:
    for r in report:
        ratio = [r[f"time_over_plain{end}"] for end in ("", "_min", "_max")]
        note = f"{r['tested_per_second'] / 1e6:.0f} million scores a second"
        yield Row(f"patchmatch, {r['side']}x{r['side']}", "a plain Numba loop", *ratio, note)


def search(report: Any) -> Iterator[Row]:
    for r in report["beside_ivf"]:
        what = f"argmax, {r['side']}x{r['side']}, {r['name'][7:]}"
        note = f"recall {r['recall']:.2f}"
        yield Row(what, "FAISS IVF at that recall", *spread(r["ratio"]), note)


def scram(report: Any) -> Iterator[Row]:
    for r in report["runs"]:
        ratio = 1 / r["ratio"]
        note = f"{r['ratio']:.0f} times faster; mass {r['mass']:.2f}"
        what = f"scram, {r['side']}x{r['side']}"
        yield Row(what, "dense attention, from sampled rows", ratio, ratio, ratio, note)


def heavy(report: Any) -> Iterator[Row]:
    ratio = [1 / report[f"ratio{end}"] for end in ("", "_max", "_min")]
    yield Row(f"heavy_attention, n={report['n']}", "dense blocks in NumPy", *ratio)


def start(report: Any) -> Iterator[Row]:
    for r in report["rows"]:
        ratio = [s / r["target"] for s in spread(r["seconds"])]
        note = f"{r['seconds']['median']:.2f} s"
        yield Row(f"{r['name']}, {r['kind']}", f"the target, {r['target']} s", *ratio, note)


COMPARISONS: dict[str, Comparison] = {
    "attention-1k": Comparison("attention", ["--n=1024"], ["--n=256", "--runs=2"], attention),
    "attention-8k": Comparison("attention", ["--n=8192"], ["--n=512", "--runs=2"], attention),
    "attention-32k": Comparison("attention", ["--n=32768", "--runs=3"], ["--n=600"], attention),
    "selected": Comparison(
        "selected", [], ["--n=512", "--keys=64", "--queries=64", "--runs=2"], selected
    ),
    "search": Comparison("search", [], ["--sides=64", "--repeats=1"], search),
    "scram": Comparison("scram", [], ["--sides=64", "--repeats=1"], scram),
    "leverage": Comparison("leverage", ["--what=time"], ["--what=time", "--n=4096"], leverage),
    "linear": Comparison(
        "linear", ["--what", "time", "memory"], ["--what=time", "--n=4096"], linear
    ),
    "qna": Comparison("qna", [], ["--side=32", "--runs=2", "--windows=3"], qna),
    "cross_scale": Comparison("cross_scale", [], ["--side=16", "--runs=2"], cross_scale),
    "nl_means": Comparison("nl_means", [], ["--side=64", "--levels=25", "--repeats=1"], nl_means),
    "patchmatch": Comparison("patchmatch", [], ["--repeats=1"], patchmatch),
    "heavy": Comparison("heavy", [], ["--keys=8192", "--repeats=1"], heavy),
    "start": Comparison("start", ["--cold"], ["--operators", "attention", "--repeats=1"], start),
}


def measure(name: str, quick: bool, threads: int) -> Any:
    """The report of one comparison, made by a process of its own."""
    one = COMPARISONS[name]
    command = [sys.executable, str(HERE / f"{one.script}.py"), "--json"]
    command += one.quick if quick else one.arguments
    held = {f"{x}_NUM_THREADS": str(threads) for x in ("NUMBA", "OMP", "OPENBLAS", "MKL")}
    variables = {**os.environ, **held, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=variables)
    return json.loads(done.stdout)


def environment(threads: int) -> dict[str, Any]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "threads": threads,
        "machine": f"{platform.system()} {platform.machine()}, {processor()}",
        "python": platform.python_version(),
        "versions": found,
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def rows(reports: dict[str, Any]) -> list[Row]:
    return [row for name, report in reports.items() for row in COMPARISONS[name].rows(report)]


def table(found: dict[str, Any]) -> str:
    """Markdown, from the JSON of a run."""
    where = found["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    head = f"{where['date']}, {where['machine']}, {where['threads']} threads; {versions}."
    heads = ("what", "rival", "time over rival's", "spread", "fastest", "")
    lines = [head, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in rows(found["reports"]):
        best = "" if r.fastest is None else f"{r.fastest:.2g}"
        cells = (r.what, r.rival, f"{r.ratio:.2g}", f"{r.low:.2g} to {r.high:.2g}", best, r.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def replace_table(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", choices=[[], *COMPARISONS], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything work?")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="write all reports here, as JSON")
    parser.add_argument("--from", dest="source", type=Path, help="read reports, measure nothing")
    parser.add_argument("--table", type=Path, metavar="PAGE", help="write the table into this page")
    options = parser.parse_args()
    if options.source:
        found = json.loads(options.source.read_text())
    else:
        if options.quick and options.table:
            parser.error("--quick measures nothing worth writing into --table")
        reports = {}
        for name in options.names or COMPARISONS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            reports[name] = measure(name, options.quick, options.threads)
        found = {"environment": environment(options.threads), "reports": reports}
    for row in rows(found["reports"]):
        print(
            f"{row.what:48s} {row.ratio:.2g} ({row.low:.2g} to {row.high:.2g}) of the time of "
            f"{row.rival}; {row.note}".rstrip("; ")
        )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if options.table:
        replace_table(options.table, table(found))


if __name__ == "__main__":
    main()
