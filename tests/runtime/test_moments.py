"""Interrupts, signals, threads and forks at bad moments, each in a process that may not hang.

``NLATTN_MOMENTS=50`` runs fifty times as many; `moments.py` can be run by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jit
TIMES = int(os.environ.get("NLATTN_MOMENTS", "1"))
SECONDS = 300 + 60 * TIMES
"""When a process counts as hanging: far above the ten seconds it takes, compiling apart."""


def run(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no signals and forks here")
@pytest.mark.parametrize(
    ("script", "count"),
    [("interrupts", 150), ("bytecodes", 20), ("handlers", 40), ("forks", 20), ("generators", 10)],
)
def test_bad_moments(script: str, count: int) -> None:
    run(Path(__file__).with_name("moments.py"), script, TIMES * count)


FIRST_USE = """
import random, threading
import numpy as np
import nlattn
x = np.ones((9, 4))
g = x.reshape(3, 3, 4)
uses = [lambda name=name: getattr(nlattn, name) for name in nlattn.__all__] + [
    lambda: nlattn.heavy_attention(x, x, 0.1),
    lambda: nlattn.scram(g, g, g),
    lambda: nlattn.attention(x, x, x),
    lambda: nlattn.qna(x[:2], g, g, window=3),
]
random.Random({seed}).shuffle(uses)
errors, start = [], threading.Barrier(8)

def use(part):
    start.wait()
    try:
        for one in part:
            one()
    except BaseException as error:
        errors.append(repr(error))

threads = [threading.Thread(target=use, args=(uses[i::8],)) for i in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not errors, errors
"""


@pytest.mark.parametrize("seed", range(2 * TIMES))
def test_eight_threads_may_use_the_package_first(seed: int) -> None:
    run("-c", FIRST_USE.format(seed=seed))


INTERRUPTED = """
import random, signal
import numpy as np
import nlattn

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
rng, x, kept = random.Random({seed}), np.ones((9, 4)), []
for _ in range(20):
    try:
        signal.setitimer(signal.ITIMER_REAL, 10 ** rng.uniform(-5, 0))
        nlattn.attention(x, x, x), nlattn.leverage_scores(x), nlattn.efficient_attention(x, x, x)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt as error:
        kept.append(error)
assert (nlattn.attention(x, x, x) == 1).all()
assert np.allclose(nlattn.leverage_scores(x), 1 / 9)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
@pytest.mark.parametrize("seed", range(TIMES))
def test_the_first_use_may_be_interrupted(seed: int) -> None:
    run("-c", INTERRUPTED.format(seed=seed))


LOGS = """
import os, threading, time
from nlattn.runtime import helpers
import logging

def compiling():
    begun.set()
    while not helpers._forking:
        time.sleep(0.001)
    time.sleep(0.05)
    logging.getLogger("first used here")

begun = threading.Event()
other = threading.Thread(target=helpers.undisturbed, args=[helpers.whole(compiling)])
other.start()
begun.wait()
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
other.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_fork_waits_for_what_logs() -> None:
    """Compiling asks loggers, whose lock a fork holds; it must not take that before it waits."""
    run("-c", LOGS)
