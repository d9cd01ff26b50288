"""Interrupts, signals, threads and forks at bad moments: scripts that `test_moments` runs.

``python tests/runtime/moments.py interrupts 5000 --seed 3`` runs one for longer. Each ends with an
error if a result is wrong or BLAS keeps another number of threads; a hang is for the caller to end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

import nlattn
from nlattn.runtime import jit, threads


def calls() -> dict[str, Callable[[], Any]]:
    """One call of every way to share work: kernels, tasks, and whole functions that call BLAS."""
    rng = np.random.default_rng(0)
    x, many, image = (rng.normal(size=s) for s in ((300, 8), (3000, 8), (12, 14, 4)))
    field = nlattn.orthogonal_features(8, 24, 0)
    return {
        "kernel": lambda: nlattn.attention(x, x, x),
        "kernel with BLAS": lambda: nlattn.cross_scale_attention(
            image, image[::2, ::2], image, scale=2
        ),
        "tasks": lambda: nlattn.favor_attention_vjp(many, many, many, many, projection=field)[0],
        "few tasks": lambda: nlattn.favor_attention(x, x, x, projection=field, causal=True),
        "whole function": lambda: nlattn.leverage_scores(many),
        "stream": lambda: nlattn.LeverageStream(8, 0.1).update(many).result().scores,
        "layer": lambda: nlattn.layers.nonlocal_block(
            image[None], weights(), pairwise="dot_product"
        ),
    }


def weights() -> dict[str, Any]:
    """Of a non-local block of four channels."""
    rng = np.random.default_rng(1)
    shapes = {"theta": (2, 4), "phi": (2, 4), "g": (2, 4), "W": (4, 2)}
    made = {f"{name}.weight": rng.normal(size=(*s, 1, 1)) for name, s in shapes.items()}
    return made | {f"{name}.bias": rng.normal(size=s[0]) for name, s in shapes.items()}


def blas_threads() -> list[tuple[str, int]]:
    """How many threads each BLAS may use."""
    return sorted((i["filepath"], i["num_threads"]) for i in threadpool_info())


KERNELS: list[Any] = []
"""They are kept, as modules keep theirs: what frees compiled code holds a lock of LLVM's."""


def compile_one() -> None:
    """Compile a kernel, and run it."""

    def fill(task: int, out: np.ndarray) -> None:
        out[task] = task

    out = np.zeros(3)
    KERNELS.append(jit.kernel(fill))
    KERNELS[-1](3, out)
    assert out.tolist() == [0, 1, 2]


class Known:
    """Calls and what they should give."""

    def __init__(self) -> None:
        self.blas, self.calls = blas_threads(), calls()
        self.want = {name: np.array(call()) for name, call in self.calls.items()}

    def check(self, name: str) -> None:
        """Call once more, and compare all bits."""
        np.testing.assert_array_equal(self.calls[name](), self.want[name], err_msg=name)

    def finish(self) -> None:
        """All calls give what they gave; BLAS has the threads it had, once helpers have ended."""
        for name in self.calls:
            self.check(name)
        end = time.monotonic() + 5
        while blas_threads() != self.blas and time.monotonic() < end:
            time.sleep(0.01)
        assert blas_threads() == self.blas, (blas_threads(), self.blas)


def interrupts(count: int, rng: random.Random) -> None:
    """Ctrl-C at random moments of calls; the last tracebacks are kept, as an interpreter does."""
    known, took, kept, hits = Known(), {}, [], 0
    for name, call in known.calls.items():
        start = time.perf_counter()
        call()
        took[name] = time.perf_counter() - start

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    while hits < count:
        name = rng.choice(list(known.calls))
        try:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, 1.2 * rng.random() * took[name]))
            known.check(name)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt as error:
            hits += 1
            kept = [*kept[-2:], error]
    known.finish()


def bytecodes(count: int, rng: random.Random) -> None:
    """Ctrl-C before some step of the interpreter, as often as `count`, in each of the calls."""
    known, kept = Known(), []
    for name in known.calls:
        every = steps(known.calls[name])
        for step in sorted(rng.sample(range(every), min(count, every))):
            try:
                steps(known.calls[name], step)
            except KeyboardInterrupt as error:
                kept = [*kept[-2:], error]
        known.check(name)
    known.finish()


def steps(call: Callable[[], object], stop: int | None = None, file: str | None = None) -> int:
    """Steps of a call in this thread, or of a file's code in it; a Ctrl-C before step `stop`."""
    done = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal done
        if file is not None and frame.f_code.co_filename != file:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            done += 1
            if done - 1 == stop:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return done


def handlers(count: int, rng: random.Random) -> None:
    """A signal handler that calls the library, at random moments of other calls."""
    known, inside, hits = Known(), False, 0

    def call(*_: object) -> None:
        nonlocal inside, hits
        if not inside:
            inside = True
            known.check(rng.choice(list(known.calls)))
            inside, hits = False, hits + 1

    signal.signal(signal.SIGALRM, call)
    while hits < count:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-3))
        known.check(rng.choice(list(known.calls)))
    signal.setitimer(signal.ITIMER_REAL, 0)
    known.finish()


def forks(count: int, rng: random.Random) -> None:
    """Children of forks compute, while other threads of the parent compute and compile."""
    known, ended = Known(), threading.Event()

    def compute() -> None:
        while not ended.is_set():
            known.check(random.choice(list(known.calls)))

    def compile_anew() -> None:
        while not ended.is_set():
            compile_one()

    others = [threading.Thread(target=work) for work in (compute, compute, compile_anew)]
    for other in others:
        other.start()
    unfinished = threads.each(lambda number: number, 4, 10_000)
    next(unfinished)
    try:
        for number in range(count):
            time.sleep(rng.random() * 0.02)
            child = os.fork()
            if child == 0:
                _child(known, number)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == 7, f"child {number} ended with {status}"
    finally:
        ended.set()
        for other in others:
            other.join()
    known.finish()


def _child(known: Known, number: int) -> None:
    """What a child does, within a minute."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
    try:
        name = list(known.calls)[number % len(known.calls)]
        known.check(name)
        if number % 10 == 0:
            compile_one()
        assert blas_threads() == known.blas
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(7)


def generators(count: int, _: random.Random) -> None:
    """Generators of tasks that are left unfinished, closed or not."""
    known, kept = Known(), []
    for number in range(count):
        some = threads.each(lambda task: np.ones((50, 50)) @ np.ones((50, 50)) + task, 20, 10_000)
        next(some)
        if number % 2:
            some.close()
        kept = [*kept[-5:], some]
        known.check(list(known.calls)[number % len(known.calls)])
    known.finish()


SCRIPTS = {f.__name__: f for f in (interrupts, bytecodes, handlers, forks, generators)}

if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="nlattn: compiled code is not kept")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    SCRIPTS[given.script](given.count, random.Random(given.seed))
