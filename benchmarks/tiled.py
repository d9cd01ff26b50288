"""Runs by tiles: the same bytes for tiles and workers, peak memory, scaling, kills.

``python benchmarks/tiled.py bits|memory SIDE|cgroup SIDE MB|scaling SIDE|counted SIDE|kills N|
thousand SIDE MANIFEST``; figures as Markdown.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nlattn import images
from nlattn.tiled import scram, sources

OPTIONS = ["--candidates", "random", "--iterations", "2"]


def picture(path: Path, height: int, width: int) -> Path:
    """The photograph again and again, mirrored, with a little noise, written row by row."""
    x = images.photograph()
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (height, width, 3))
    rng = np.random.default_rng(0)
    columns = np.pad(np.arange(512), (0, max(0, width - 512)), mode="symmetric")[:width]
    rows = np.pad(np.arange(512), (0, max(0, height - 512)), mode="symmetric")[:height]
    for row in range(height):
        line = x[rows[row]][columns] + rng.normal(0, 0.02, (width, 3))
        file[row] = np.rint(np.clip(line, 0, 1) * 255)
    return path


def digests(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.file_digest(p.open("rb"), "sha256").hexdigest()
        for p in sorted(folder.glob("*.npy"))
    }


def command(image: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "nlattn", "map", str(image), "--out", str(out),
            "--quiet", *OPTIONS, *more]  # fmt: skip


def bits(folder: Path) -> None:
    image = picture(folder / "image.npy", 700, 900)
    first: dict[str, str] = {}
    print("| tile | workers | SHA-256 of all files |\n|---|---|---|")
    for tile, workers in [(64, 1), (100, 1), (512, 1), (4096, 1), (100, 2), (100, 4)]:
        out = folder / f"{tile}-{workers}"
        more = ["--processes", str(workers), "--memory", "20GB"] if workers > 1 else []
        subprocess.run(command(image, out, "--tile", str(tile), *more), check=True)
        found = digests(out)
        first = first or found
        assert found == first, (tile, workers)
        whole = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
        print(f"| {tile} | {workers} | {whole} |", flush=True)


def memory(folder: Path, side: int) -> None:
    """One map, its anonymous memory limited to 2 GB."""
    image = picture(folder / "image.npy", side, side)
    limit = 2_000_000_000
    begun = time.perf_counter()
    process = subprocess.Popen(
        command(image, folder / "out", "--tile", "1024", "--memory", "2GB"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    peaks = {"RssAnon": 0, "RssFile": 0}
    while process.poll() is None:
        try:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                name = line.split(":")[0]
                if name in peaks:
                    peaks[name] = max(peaks[name], int(line.split()[1]) * 1024)
        except OSError:
            pass
        time.sleep(0.05)
    seconds = time.perf_counter() - begun
    assert process.returncode == 0
    held = sum(p.stat().st_size for p in (folder / "out").iterdir())
    print(f"| {side} x {side} | {seconds:.0f} s | {peaks['RssAnon'] / 1e9:.2f} GB | "
          f"{peaks['RssFile'] / 1e9:.2f} GB | {held / 1e9:.2f} GB |")  # fmt: skip
    stages: dict[str, float] = {}
    for line in (folder / "out" / "manifest.jsonl").read_text().splitlines()[1:]:
        record = json.loads(line)
        if "task" in record:
            name = record["task"].split("/")[0].split(" ")[0]
            stages[name] = stages.get(name, 0) + record["seconds"]
    print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items()))


def cgroup(folder: Path, side: int, megabytes: int) -> None:
    """One map in a control group of so much memory, mapped files among it (version 1, as root)."""
    image = picture(folder / "image.npy", side, side)
    group = Path("/sys/fs/cgroup/memory") / folder.name
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(megabytes * 10**6))
        begun = time.perf_counter()
        process = subprocess.Popen(
            command(image, folder / "out", "--tile", "256", "--memory", f"{megabytes}MB"),
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
        )
        assert process.wait() == 0
        seconds = time.perf_counter() - begun
        peak = int((group / "memory.max_usage_in_bytes").read_text())
        held = sum(p.stat().st_size for p in (folder / "out").iterdir())
        print(f"| {side} x {side} | {megabytes} MB | {seconds:.0f} s | peak {peak / 1e6:.0f} MB | "
              f"files {held / 1e9:.2f} GB |")  # fmt: skip
    finally:
        group.rmdir()


def scaling(folder: Path, side: int) -> None:
    """Seconds on one and two worker processes of one thread, and of two runs side by side, in turn.

    Two runs that share nothing say what the machine's memory lets two workers gain.
    """
    image = picture(folder / "image.npy", side, side)
    env = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    times: dict[str, list[float]] = {"1 worker": [], "2 workers": [], "2 runs of 1 worker": []}
    crews = (1,), (2,), (1, 1)
    for turn in range(3):
        for (name, taken), workers in zip(times.items(), crews, strict=True):
            outs = [folder / f"out{i}" for i in range(len(workers))]
            for out in outs:
                shutil.rmtree(out, ignore_errors=True)
            begun = time.perf_counter()
            runs = [
                subprocess.Popen(
                    command(image, out, "--tile", "256", "--processes", str(w), "--memory", "20GB"),
                    env=env,
                )
                for out, w in zip(outs, workers, strict=True)
            ]
            assert not any(run.wait() for run in runs)
            taken.append(time.perf_counter() - begun)
            print(turn, name, f"{taken[-1]:.1f} s", flush=True)
    one, two, both = (statistics.median(taken) for taken in times.values())
    print(
        f"{side} x {side}: {one:.1f} s on 1 worker, {two:.1f} s on 2: {one / two:.2f} times; "
        f"two runs side by side {both:.1f} s: {2 * one / both:.2f} times the work"
    )


def counted(folder: Path, side: int) -> None:
    """Bytes that the busiest of some workers reads for scores and writes, without a clock."""
    np.save(folder / "small.npy", np.zeros((8, 8, 3), np.uint8))
    job = scram.job(folder / "small.npy", candidates="random", iterations=2).of(
        sources.Source("npy", "", (side, side, 3)), 256
    )
    print("| workers | bytes of the busiest | share of all |\n|---|---|---|")
    total = 0.0
    for workers in (1, 2, 4, 16):
        most = 0.0
        for stage in job.stages():
            cost = stage.cost
            moved = cost.disk + cost.scores * 8 * (job.features.channels + 1)
            most += moved * -(-cost.tasks // workers) / cost.tasks
        total = total or most
        print(f"| {workers} | {most / 1e9:.1f} GB | 1 / {total / most:.2f} |")


def kills(folder: Path, count: int) -> None:
    """Runs killed at random moments, and resumed: the bytes and the files of one that was not."""
    image = picture(folder / "image.npy", 300, 400)
    subprocess.run(command(image, folder / "whole", "--tile", "128"), check=True)
    expected, names = digests(folder / "whole"), sorted(os.listdir(folder / "whole"))
    total, rng = _lines(folder / "whole"), random.Random(0)
    for number in range(count):
        out, target = folder / f"out{number}", rng.randrange(total)
        process = subprocess.Popen(command(image, out, "--tile", "128"))
        while process.poll() is None and _lines(out) < target:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        ended, done = process.wait(), _lines(out)
        subprocess.run(command(image, out, "--tile", "128", "--resume"), check=True)
        assert digests(out) == expected, number
        assert sorted(os.listdir(out)) == names, number
        text = f"ended {ended} at {done} of {total} lines; same bytes, same files"
        print(f"{number}: {text}", flush=True)
        shutil.rmtree(out)


def _lines(out: Path) -> int:
    try:
        return (out / "manifest.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def thousand(folder: Path, side: int, manifest: Path) -> None:
    """Foretold seconds of a larger picture on many workers, from the task times of a run.

    Assumed: a stage takes as much for each pixel as it took, in as many tasks as a plan with tiles
    of 512 has, which differ among themselves as the measured ones do; storage keeps up; a task
    costs the scheduler a millisecond, one at a time; stages wait for their last task.
    """
    measured: dict[str, list[float]] = {}
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    height, width = (lines[0]["features"][name] for name in ("height", "width"))
    for line in lines[1:]:
        if "task" in line:
            measured.setdefault(line["task"].partition("/")[0], []).append(line["seconds"])
    np.save(folder / "small.npy", np.zeros((8, 8, 3), np.uint8))
    large = scram.job(folder / "small.npy", candidates="random").of(
        sources.Source("npy", "", (side, side, 3)), 512
    )
    tasks = {stage.name: stage.cost.tasks for stage in large.stages()}
    growth, rng = side * side / (height * width), random.Random(0)
    works = {n: sum(s) * (1 if n == "axes" else growth) for n, s in measured.items()}
    print(f"| workers | {side} x {side} | efficiency |\n|---|---|---|")
    for workers in (1, 2, 16, 100, 1000):
        total = 0.0
        for name, seconds in measured.items():
            free, mean = [0.0] * workers, statistics.mean(seconds) or 1.0
            for number in range(tasks[name]):
                begun = max(heapq.heappop(free), number * 1e-3)
                taken = works[name] / tasks[name] * rng.choice(seconds) / mean
                heapq.heappush(free, begun + taken)
            total += max(free)
        share = sum(works.values()) / total / workers
        print(f"| {workers} | {total / 3600:.2f} h | {share:.0%} |", flush=True)


def main() -> None:
    what, *given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        globals()[what](Path(folder), *(int(x) if x.isdigit() else Path(x) for x in given))


if __name__ == "__main__":
    main()
