"""Lewis weights of keys beyond memory: Gram matrices of fixed blocks, summed in order.

Keys are whitened to a file once; then each step passes over it three times. Steps after the fixed
point is reached pass the weights on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, JsonObject
from nlattn.engines import whitened
from nlattn.engines.sensitivity import default_eta, exponent
from nlattn.kernels import whiten as kernels
from nlattn.runtime import threads
from nlattn.tiled import leverage, sources
from nlattn.tiled.executors import identity
from nlattn.tiled.folder import ArraySpec, Folder
from nlattn.tiled.plan import carry_out
from nlattn.tiled.run import Executor, Told
from nlattn.tiled.task import Cost, Done, Record, Stage, TileTask

OP = "tiled"
_ALL = _check.frozen(np.empty(0))
_FAR = 900  # exponents from which channels have lost digits


class LewisJob(NamedTuple):
    """All that a run is told."""

    path: str
    n: int
    d: int
    tile: int
    p: float
    eta: float
    tol: float
    steps: int

    @property
    def bands(self) -> list[tuple[int, int]]:
        """First and last keys of tasks: whole blocks."""
        step = kernels.ROWS * -(-self.tile * self.tile // kernels.ROWS)
        return [(first, min(first + step, self.n)) for first in range(0, self.n, step)]

    def stages(self) -> list[Stage]:
        """Whitening, the steps, and the weights."""
        n, d, bands = self.n, self.d, len(self.bands)
        blocks, keys = -(-n // kernels.ROWS), self.bands[0][1]
        partial = ArraySpec("", (blocks, d, d), "float64")
        cost = Cost(bands, 16 * keys * d + 4 * partial.nbytes, partial.nbytes, n * d)
        column, few = (n,), (bands,)

        def stage(
            name: str,
            function: Callable[..., Done],
            makes: list[ArraySpec],
            reads: tuple[str, ...],
            drops: tuple[str, ...] = (),
            step: int = 0,
        ) -> Stage:
            own = tuple(array.name for array in makes)

            def begin(folder: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
                if step and function is not _step and _rests(folder, self, step):
                    return [], []
                tasks = []
                for i, ends in enumerate(self.bands):
                    place = {n: ends[0], blocks: ends[0] // kernels.ROWS, bands: i}
                    starts = {a.name: place[a.shape[0]] for a in makes}
                    tasks.append(TileTask(f"{name}/{i}", function, (self, step, *ends), starts))
                return makes, tasks

            disk = sum(array.nbytes for array in makes)
            return Stage(name, reads, own, begin, cost._replace(disk=disk), drops)

        def named(name: str) -> ArraySpec:
            return partial._replace(name=name)

        made = [
            stage("peaks", _measure, [ArraySpec("peaks", (bands, d), "float64")], ()),
            stage("gram a", _square, [named("a0")], ("peaks",)),
            stage("gram b", _square_again, [named("b0")], ("peaks", "a0")),
            stage("whiten", _whiten,
                  [ArraySpec("white", (n, d), "float64"), ArraySpec("tops", (bands, d), "float64"),
                   *(ArraySpec(name, column, "float64") for name in _names(0)[:2]),
                   *(ArraySpec(name, few, "float64") for name in _names(0)[2:])],
                  ("peaks", "a0", "b0"), ("peaks", "a0", "b0")),
        ]  # fmt: skip
        for s in range(1, self.steps + 2):
            a, b, before, after = f"a{s}", f"b{s}", _names(s - 1), _names(s)
            reads = ("white", "tops", *before)
            arrays = [ArraySpec(name, column, "float64") for name in after[:2]]
            arrays += [ArraySpec(name, few, "float64") for name in after[2:]]
            made += [
                stage(f"step {s:03d} a", _square, [named(a)], reads, (), s),
                stage(f"step {s:03d} b", _square_again, [named(b)], (*reads, a), (), s),
                stage(f"step {s:03d}", _step, arrays, (*reads, a, b), (a, b, *before), s),
            ]
        return [*made, self._last()]

    def _last(self) -> Stage:
        held = _names(self.steps + 1)

        def begin(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
            return [
                ArraySpec("weights", (self.n,), "float64"),
                ArraySpec("residual", (len(self.bands),), "float64"),
            ], [
                TileTask(
                    f"weights/{i}", _finish, (self, *ends), {"weights": ends[0], "residual": i}
                )
                for i, ends in enumerate(self.bands)
            ]

        cost = Cost(len(self.bands), 24 * self.bands[0][1], 8 * self.n)
        drops = ("white", "tops", *held)
        return Stage("weights", held, ("weights", "residual"), begin, cost, drops)

    def header(self) -> JsonObject:
        """What a folder must agree on to be continued."""
        image = sources.digest_of(self.path)
        told = self._asdict()
        del told["path"]
        return {"version": identity(), "job": "lewis weights", "k": image, **told}

    def tiled(self, tile: int) -> LewisJob:
        """The same with other tiles."""
        return self._replace(tile=tile)


def _names(step: int) -> tuple[str, str, str, str]:
    """After a step: logarithms of weights, those before it, the most of a band's, how far it moved.

    Whether those before were the fixed point is known when all bands are done.
    """
    return f"logs{step}", f"before{step}", f"most{step}", f"left{step}"


def _rests(folder: Folder, job: LewisJob, step: int) -> bool:
    """Whether an earlier step has found the fixed point."""
    return bool(folder.read(_names(step - 1)[3]).max() <= job.tol)


def _rows(folder: Folder, job: LewisJob, step: int, first: int, last: int) -> tuple[Floats, Floats]:
    """Some rows of keys or of whitened keys, and their factors."""
    if not step:
        return _check.frozen(leverage.keys_of(job.path)[first:last]), _ALL
    logs, _, most, _ = (folder.read(name) for name in _names(step - 1))
    shifted = exponent(job.p) * logs[first:last]
    row = np.exp(shifted - most.max(initial=-math.inf))
    return _check.frozen(folder.read("white")[first:last]), _check.frozen(row)


def _scales(folder: Folder, step: int) -> Floats:
    return whitened.magnitude_scales(folder.read("tops" if step else "peaks").max(0))


def _first(folder: Folder, step: int) -> whitened.FirstRoot:
    found = whitened.first_root(folder.read(f"a{step}").sum(0), _scales(folder, step))
    if found is None:
        text = "are too near dependence for two passes over them; nlattn.lewis_weights takes them"
        _check.fail(OP, "keys", text)
    return found


@threads.serial_blas
def _products(rows: tuple[Floats, Floats], T: Floats) -> Floats:
    """Gram matrices of the blocks of some rows, (blocks, d, d)."""
    blocks = -(-len(rows[0]) // kernels.ROWS)
    partial: Floats = np.empty((blocks, T.shape[1], T.shape[1]))
    kernels.gram(blocks, *rows, _check.frozen(T), partial)
    return partial


def _measure(_: Folder, job: LewisJob, __: int, first: int, last: int) -> Done:
    keys = leverage.keys_of(job.path)[first:last]
    bad = ~np.isfinite(keys).all(1) | ~keys.any(1)
    if bad.any():
        text = "is 0 or not finite; leave keys of zeros out: their weight is 0"
        _check.fail(OP, f"k[{first + int(bad.argmax())}]", text)
    return {"peaks": np.abs(keys).max(0)[None]}, 0


def _square(folder: Folder, job: LewisJob, step: int, first: int, last: int) -> Done:
    scales = _scales(folder, step)
    if not step and (abs(np.frexp(1 / scales)[1]) > _FAR).any():
        _check.fail(OP, "keys", "are near the edges of float64; multiply their channels")
    made = _products(_rows(folder, job, step, first, last), np.diag(scales))
    return {f"a{step}": made}, last - first


def _square_again(folder: Folder, job: LewisJob, step: int, first: int, last: int) -> Done:
    whiten = _first(folder, step).whiten
    made = _products(_rows(folder, job, step, first, last), whiten)
    return {f"b{step}": made}, last - first


def _whitening(folder: Folder, step: int) -> Floats:
    first = _first(folder, step)
    return whitened.second_root(folder.read(f"b{step}").sum(0), first)[0]


def _whiten(folder: Folder, job: LewisJob, _: int, first: int, last: int) -> Done:
    T, (keys, row) = _whitening(folder, 0), _rows(folder, job, 0, first, last)
    white: Floats = np.empty((last - first, job.d))
    blocks = -(-(last - first) // kernels.ROWS)
    threads.serial_blas(kernels.project)(blocks, keys, row, _check.frozen(T), white)
    logs = np.full(last - first, math.log(job.d / job.n))
    state = _state(job, logs, logs, np.inf)
    return {
        "white": white,
        "tops": np.abs(white).max(0)[None],
        **dict(zip(_names(0), state, strict=True)),
    }, 0


def _state(job: LewisJob, logs: Floats, before: Floats, left: float) -> tuple[Floats, ...]:
    return logs, before, np.array([(exponent(job.p) * logs).max()]), np.array([left])


def _step(folder: Folder, job: LewisJob, step: int, first: int, last: int) -> Done:
    logs, before, _, left = (folder.read(name) for name in _names(step - 1))
    logs = np.array(logs[first:last])
    if _rests(folder, job, step):
        i = job.bands.index((first, last))
        state = _state(job, logs, before[first:last], float(left[i]))
        return dict(zip(_names(step), state, strict=True)), 0
    X, row = _rows(folder, job, step, first, last)
    tau: Floats = np.empty(last - first)
    blocks, T = -(-(last - first) // kernels.ROWS), _check.frozen(_whitening(folder, step))
    threads.serial_blas(kernels.lengths)(blocks, X, row, T, tau)
    log = np.log(np.maximum(tau, np.finfo(np.float64).tiny)) - 2 * exponent(job.p) * logs
    far = float(abs(log - 2 / job.p * logs).max())
    new = (1 - job.eta) * logs + job.eta * job.p / 2 * log
    return dict(zip(_names(step), _state(job, new, logs, far), strict=True)), last - first


def _finish(folder: Folder, job: LewisJob, first: int, last: int) -> Done:
    _, before, _, left = (folder.read(name) for name in _names(job.steps + 1))
    i = job.bands.index((first, last))
    return {"weights": np.exp(before[first:last]), "residual": left[i : i + 1]}, 0


def job(
    k: str | os.PathLike[str],
    p: float,
    *,
    tile: int = 1024,
    eta: float | None = None,
    tol: float = 1e-12,
    steps: int = 100,
) -> LewisJob:
    """A checked job."""
    held = leverage.job(k, tile=tile)
    power = _check.number(OP, "p", p, positive=True, low=1e-6)
    if held.n <= max(kernels.ROWS, held.d):
        text = f"has {held.n} keys, expected more than {max(kernels.ROWS, held.d)}"
        _check.fail(OP, "k", f"{text}; nlattn.lewis_weights takes few")
    damping = default_eta(power) if eta is None else _check.number(OP, "eta", eta, positive=True)
    limit, count = _check.number(OP, "tol", tol), _check.integer(OP, "steps", steps, low=0)
    return LewisJob(held.path, held.n, held.d, held.tile, power, damping, limit, count)


def lewis_weights(
    k: str | os.PathLike[str],
    p: float,
    out: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    resume: bool = False,
    progress: Told = None,
    max_bytes: float = 4e9,
    tile: int = 1024,
    eta: float | None = None,
    tol: float = 1e-12,
    steps: int = 100,
) -> list[Record]:
    """`lewis_weights` of keys on disk: ``weights.npy`` (n,), ``residual.npy`` by tasks, of `out`.

    Parameters
    ----------
    k : path of ``.npy``, (n, d), float32 or float64, n above 1024
        Keys, read where they lie, none of them 0; not too near dependence (condition below 1e6).
    p : float
        Exponent of the attention weights, positive.
    out : path
        Folder of the results; their bits are those of the operator, for any tile and executor.
    executor, resume, progress, max_bytes
        As for `nlattn.tiled.scram.scram`.
    tile : int
        Tasks have ``tile * tile`` keys, in whole blocks of 1024.
    eta, tol, steps
        As for `nlattn.lewis_weights`.
    """
    told = job(k, p, tile=tile, eta=eta, tol=tol, steps=steps)
    return carry_out(told, out, executor, resume, progress, max_bytes)
