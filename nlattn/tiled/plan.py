"""What a run will take, worked out before it begins: memory, disk, scores, and measured seconds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from nlattn import _check
from nlattn._types import JsonObject
from nlattn.files.whole import scratch
from nlattn.runtime.threads import max_threads, set_threads, threads
from nlattn.tiled import sources
from nlattn.tiled.run import Executor, Told, run
from nlattn.tiled.task import Cost, Record, Stage

BASE = 350_000_000
"""Bytes of a process that has imported and compiled everything, before it has data."""
_PILOT = 256  # side of the part of a picture that is timed
OP = "tiled"


class Job(Protocol):
    """What a run is told."""

    @property
    def tile(self) -> int:
        """Side of a tile."""
        ...

    def stages(self) -> list[Stage]:
        """What is done, in order."""
        ...

    def header(self) -> JsonObject:
        """What a folder must agree on to be continued."""
        ...

    def tiled(self, tile: int) -> Job:
        """The same with other tiles."""
        ...


class PictureJob(Job, Protocol):
    """What a run on a picture is told."""

    @property
    def source(self) -> sources.Source:
        """Its picture."""
        ...

    def of(self, source: sources.Source, tile: int) -> PictureJob:
        """The same of another picture."""
        ...


class RunPlan(NamedTuple):
    """What a run will take."""

    stages: dict[str, Cost]
    memory: int
    """Bytes of each worker at most, with what any process takes."""
    disk: int
    """Most bytes that the folder holds at once."""
    mapped: int
    """Bytes of the keys, which are read all over: best where so much memory is free."""
    scores: int


def plan(job: Job) -> RunPlan:
    """Memory, disk and scores of a run."""
    if not callable(getattr(job, "stages", None)) or isinstance(job, type):
        _check.fail_type(OP, "job", f"is a {type(job).__name__}, expected what a job() returns")
    stages = job.stages()
    held: dict[tuple[str, ...], int] = {}
    most = 0
    for stage in stages:
        held[stage.makes] = stage.cost.disk
        most = max(most, sum(held.values()))
        for makes in held:
            held[makes] *= not {*makes} <= {*stage.drops}
    costs = {stage.name: stage.cost for stage in stages}
    memory = BASE + max(cost.nbytes for cost in costs.values())
    mapped = costs["keys"].disk if "keys" in costs else 0
    return RunPlan(costs, memory, most, mapped, sum(cost.scores for cost in costs.values()))


def check(job: Job, workers: int, max_bytes: float) -> RunPlan:
    """The plan of a run; MemoryError if its workers would hold more than `max_bytes` together."""
    wanted = plan(job)
    needed = workers * wanted.memory
    if needed > _check.as_float(OP, "max_bytes", max_bytes):
        fits = _fitting(job, workers, max_bytes)
        remedy = f"tile={fits} fits" if fits else "no tile is small enough"
        who = f"{workers} workers" if workers > 1 else "one process"
        what = f"{who} with tiles of {job.tile}"
        _check.memory(OP, needed, max_bytes, what, remedy)
    return wanted


def carry_out(
    job: Job,
    out: str | os.PathLike[str],
    executor: Executor | None,
    resume: bool,
    progress: Told,
    max_bytes: float,
) -> list[Record]:
    """Do all of a job that is not done, where its workers have room; records of all tasks."""
    _check_arguments(out, executor, resume, progress)
    check(job, 1 if executor is None else executor.workers, max_bytes)
    how = executor, resume, progress, getattr(job, "note", None)  # some jobs have a note
    return run(out, job.stages(), job.header(), *how)


def _check_arguments(out: object, executor: object, resume: object, progress: object) -> None:
    _check.file_name(OP, "out", out)
    _check.flag(OP, "resume", resume)
    if executor is not None:
        kind = f"a {type(executor).__name__}"
        if isinstance(executor, type):
            kind = f"the class {executor.__name__}"
        if isinstance(executor, type) or not all(
            hasattr(executor, x) for x in ("workers", "perform", "close")
        ):
            _check.fail_type(OP, "executor", f"is {kind}, expected one such as Processes(2)")
    if progress is not None and not callable(progress):
        text = "a function of a stage, its tasks done, and all of them"
        _check.fail_type(OP, "progress", f"is a {type(progress).__name__}, expected {text}")


def _fitting(job: Job, workers: int, max_bytes: float) -> int:
    """The largest tile, in steps of an eighth, that fits; 0 if none does."""
    tile = job.tile
    while tile > 1:
        tile = tile * 7 // 8
        if workers * plan(job.tiled(tile)).memory <= max_bytes:
            return tile
    return 0


def seconds(job: PictureJob, executor: Executor | None = None) -> dict[str, tuple[float, float]]:
    """Seconds that each stage will take on all threads here, and on one.

    A part of the picture is computed and its time scaled: caches serve a part better, so a picture
    whose keys do not fit them takes longer.
    """
    height, width, _ = job.source.shape
    high, wide = min(height, _PILOT), min(width, _PILOT)
    top, left = (height - high) // 2, (width - wide) // 2
    growth = height * width / (high * wide)
    before = threads()
    with scratch() as folder:
        part = sources.rows(job.source, top, top + high)[:, left : left + wide]
        np.save(folder / "part.npy", part)
        small = job.of(sources.source(folder / "part.npy"), max(high, wide))
        taken: list[Mapping[str, float]] = []
        for name, count in (("compile", 1), ("all", max_threads()), ("one", 1)):
            try:
                set_threads(count)
                path = folder / name
                records = run(path, small.stages(), small.header(), executor=executor)
            finally:
                set_threads(before)
            spent: dict[str, float] = {}
            for record in records:
                stage = record.task.partition("/")[0]
                spent[stage] = spent.get(stage, 0.0) + record.seconds
            taken.append(spent)
    fixed = {
        stage.name for stage in job.stages() if stage.cost.tasks == 1 and not stage.cost.scores
    }
    found = {}
    for name in (stage.name for stage in job.stages()):
        factor = 1.0 if name in fixed else growth
        found[name] = taken[1].get(name, 0.0) * factor, taken[2].get(name, 0.0) * factor
    return found


def on_workers(costs: Mapping[str, Cost], one: Mapping[str, float], workers: int) -> float:
    """Seconds of all stages on so many workers of one thread each: the last ones wait."""
    total = 0.0
    for name, cost in costs.items():
        turns = -(-cost.tasks // workers)
        total += one.get(name, 0.0) * turns / cost.tasks
    return total
