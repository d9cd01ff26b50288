"""Maps and pictures beyond memory: ``--tile``, and ``nlattn plan``."""

from __future__ import annotations

import errno
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TypeAlias

from nlattn import _check
from nlattn.cli.denoise import asked
from nlattn.cli.output import MachineError, peak_memory, say, table, to_json
from nlattn.cli.words import span
from nlattn.files.whole import whole
from nlattn.tiled import arrays, certified, exports, overview, scram, sources
from nlattn.tiled import nl_means as means
from nlattn.tiled import plan as plans
from nlattn.tiled.executors import Dask, Processes, WorkersLostError
from nlattn.tiled.options import PictureOptions, SearchedOptions
from nlattn.tiled.run import Executor, run
from nlattn.tiled.task import Record

_MEMORY = 4e9
_DPI = 160
_ONE_A_SECOND = 1.0
_OfArrays: TypeAlias = arrays.ArraysJob | certified.CertifiedJob
_OfPicture: TypeAlias = scram.ScramJob | certified.CertifiedPictureJob | means.Denoising
_Job: TypeAlias = _OfArrays | _OfPicture


def one_map(options: Namespace) -> int:
    """Attention of a picture to itself, or of arrays, as arrays in a folder."""
    if options.q is None:
        code = _done(_map_job(options), options)
        if options.query:
            _overlay(options)
        return code
    _refuse_drawing(options)
    if options.picture or options.query:
        raise ValueError("--picture and --query go with an IMAGE: arrays are none")
    given = options.q, options.k, options.v
    if options.method == "certified":
        told = certified.job(
            *given, tile=options.tile, tolerance=options.tolerance, scale=options.scale
        )
        return _done(told, options)
    return _done(arrays.job(*given, scale=options.scale, **_searching(options)), options)


def denoise(options: Namespace) -> int:
    """A picture without its noise, as an array in a folder."""
    if options.page is not None:
        raise ValueError("--page does not go with --tile")
    return _done(means.job(options.image, **asked(options), tile=options.tile), options)


def plan(options: Namespace) -> int:
    """Memory, disk, scores and seconds of each stage."""
    options.tile = options.tile or 1024
    job = _map_job(options)
    wanted, seconds = plans.plan(job), plans.seconds(job)
    one = {name: times[1] for name, times in seconds.items()}
    height, width, _ = job.source.shape
    report = {
        "image": str(options.image),
        "size": [height, width],
        "tile": options.tile,
        "memory": wanted.memory,
        "disk": wanted.disk,
        "mapped": wanted.mapped,
        "scores": wanted.scores,
        "seconds_here": sum(times[0] for times in seconds.values()),
        "workers": options.workers,
        "seconds_on_workers": plans.on_workers(wanted.stages, one, options.workers),
        "stages": {
            name: {**cost._asdict(), "seconds_here": seconds[name][0], "seconds_one": one[name]}
            for name, cost in wanted.stages.items()
        },
    }
    if options.json:
        print(to_json(report))
        return 0
    rows = [("stage", "tasks", "memory of one", "disk", "scores", "seconds here", "on one thread")]
    for name, cost in wanted.stages.items():
        size = _check.size(cost.nbytes), _check.size(cost.disk)
        times = f"{seconds[name][0]:.1f}", f"{seconds[name][1]:.1f}"
        rows.append((name, str(cost.tasks), *size, f"{cost.scores:.3g}", *times))
    print(table(rows))
    print(
        f"{height} x {width}: a worker takes {_check.size(wanted.memory)}, the folder "
        f"{_check.size(wanted.disk)}, with {_check.size(wanted.mapped)} of it read all over\n"
        f"{span(report['seconds_here'])} here, {span(report['seconds_on_workers'])} on "
        f"{options.workers} workers of one thread, if memory keeps up"
    )
    return 0


def _overlay(options: Namespace) -> None:
    """Where some pixels look, on the picture made small: ``overlay.png`` of the folder."""
    from nlattn import plots

    source = sources.source(options.image)
    found = overview.overview(source, options.out, options.query)
    name = f"Where pixels look: {options.image}"
    title = name if found.step == 1 else f"{name}, 1 : {found.step}"
    axes = plots.overlay(found.image, found.weights, found.points, title=title)
    with whole(options.out / "overlay.png") as draft:
        axes.figure.savefig(draft, dpi=_DPI)


def _refuse_drawing(options: Namespace) -> None:
    if options.method not in ("scram", "certified"):
        raise ValueError("--tile needs --method scram or certified")
    if options.page is not None:
        raise ValueError("--page does not go with --tile")
    if options.query and options.method != "scram":
        raise ValueError("--query goes with --method scram: certified attention keeps no map")


def _searching(options: Namespace) -> SearchedOptions:
    """Options of the search, of the support, and of tiles."""
    return {
        "tile": options.tile,
        "candidates": options.candidates,
        "iterations": options.iterations,
        "topk": options.topk,
        "kind": options.support,
        "window": options.window or (1 if options.support == "neighbours" else 3),
        "seed": options.seed,
    }


def _map_job(options: Namespace) -> scram.ScramJob | certified.CertifiedPictureJob:
    _refuse_drawing(options)
    told: PictureOptions = {
        "tile": options.tile,
        "patch": options.patch,
        "channels": options.channels,
        "gain": options.gain,
        "scale": options.scale,
        "keys": options.keys,
        "seed": options.seed,
    }
    if options.method == "certified":
        return certified.picture_job(options.image, tolerance=options.tolerance, **told)
    whole: PictureOptions = {**told, **_searching(options)}
    return scram.job(options.image, **whole)


def _done(job: _Job, options: Namespace) -> int:
    """Run a job under a line of progress."""
    if options.force:
        raise ValueError("--force does not go with --tile: remove the folder, or say --resume")
    if options.picture:
        exports.check(options.picture, there=options.resume)
        parent = Path(os.path.abspath(options.picture)).parent
        if not parent.is_dir() and parent != Path(os.path.abspath(options.out)):
            text = f"--picture {options.picture} cannot be written"
            raise ValueError(f"{text}: there is no folder {parent}")
    executor: Executor | None = None
    if options.processes:
        executor = Processes(options.processes)
    memory = options.memory or _MEMORY
    plans.check(job, options.processes or 1, memory)
    if options.dask:
        executor = _cluster(options.dask)
        plans.check(job, executor.workers, max(memory, executor.workers * memory))
    begun, bar = time.perf_counter(), _Progress(job, quiet=options.quiet)
    note = None if isinstance(job, means.Denoising) else job.note
    try:
        records = run(options.out, job.stages(), job.header(), executor, options.resume, bar, note)
    except WorkersLostError as error:
        raise MachineError(str(error)) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        more = "--resume goes on where it stopped, once there is room"
        raise MachineError(f"{error.filename}: {error.strerror}; {more}") from None
    finally:
        bar.clear()
    if options.picture and not options.picture.exists():
        bits = getattr(options, "bits", None) or sources.source(options.image).bits
        exports.picture(options.out, options.picture, bits=bits)
    return _report(records, time.perf_counter() - begun, job, options)


def _cluster(address: str) -> Executor:
    try:
        return Dask(address)
    except OSError as error:
        raise MachineError(f"--dask {address} does not answer: {error}") from None


def _report(records: list[Record], seconds: float, job: _Job, options: Namespace) -> int:
    height, width = _size(job)
    report = {
        "image": str(options.image or options.q),
        "size": [height, width],
        "tile": options.tile,
        "tasks": len(records),
        "scores": sum(record.scores for record in records),
        "seconds": seconds,
        "peak_memory": peak_memory(),
        "out": str(options.out),
        "picture": str(options.picture) if options.picture else None,
    }
    if options.json:
        print(to_json(report))
    elif not options.quiet:
        print(
            f"{height} x {width}: {report['tasks']} tasks, {report['scores']:.3g} scores, "
            f"{span(seconds)}; arrays are in {options.out}"
        )
    return 0


def _size(job: _Job) -> tuple[int, int]:
    """Rows and columns of the queries."""
    return job.points.query_grid if isinstance(job, _OfArrays) else job.source.shape[:2]


class _Progress:
    """A line on a terminal: the stage, its tasks, and how long the whole will take yet."""

    def __init__(self, job: _Job, *, quiet: bool):
        self._shown = not quiet and sys.stderr.isatty()
        self._weights = {stage.name: _weight(job, stage.name) for stage in job.stages()}
        self._share = dict.fromkeys(self._weights, 0.0)
        self._begun, self._before, self._last = time.perf_counter(), 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        first = not any(self._share.values())
        for name in self._weights:
            if name == stage:
                break
            self._share[name] = 1.0
        self._share[stage] = done / total
        finished = sum(self._weights[name] * share for name, share in self._share.items())
        if first:
            self._before = finished
        now = time.perf_counter()
        if not self._shown or (now - self._last < _ONE_A_SECOND and 0 < done < total):
            return
        self._last = now
        made = finished - self._before
        rest = sum(self._weights.values()) - finished
        text = f"{stage}: {done} of {total} tasks"
        if made > 0:
            text += f", {span((now - self._begun) * rest / made)} left"
        say(text)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            say("")


def _weight(job: _Job, name: str) -> float:
    """Seconds of a stage, in units that do not matter: from its scores and bytes."""
    cost = next(stage.cost for stage in job.stages() if stage.name == name)
    once = {"moments": 60.0, "lengths": 15.0, "keys": 20.0}.get(name, 0.0)
    if once and isinstance(job, _OfPicture):
        height, width, colours = job.source.shape
        once *= height * width * colours
    return cost.scores + cost.disk / 10 + once + 1
