"""The compile policy: threads, forks, and a cache that never fails a computation."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn.runtime import cache, helpers, jit, private, threads
from tests.conftest import NO_JIT

COUNT = """
import numpy as np
from nlattn.runtime import jit

@jit.kernel
def double(i, x, out):
    out[i] = 2 * x[i]

out = np.empty(1000)
for _ in range(2):
    out[:] = 0
    double(1000, np.ones(1000), out)
    assert (out == 2).all()
"""

INNER = """
import sys
import numpy as np
from nlattn.runtime import jit

@jit.device(fast=True, inline=True)
def inner(a, b):
    total = 0.0
    for c in range(a.size):
        total += a[c] * b[c]
    return total

@jit.kernel
def first(i, a, b, out):
    for j in range(b.shape[0]):
        out[i, j] = inner(a[i], b[j])

@jit.kernel
def second(i, a, b, out):
    for j in range(b.shape[0]):
        out[i, j] = inner(a[i], b[j])

rng = np.random.default_rng(0)
a, b, out = rng.random((20, 3)), rng.random((30, 3)), np.empty((20, 30))
for kernel in [first, second][: int(sys.argv[1])]:
    kernel(20, a, b, out)
    print(out.tobytes().hex())
"""


@jit.kernel
def square(i: int, x: np.ndarray, out: np.ndarray) -> None:
    out[i] = x[i] * x[i]


@jit.kernel
def count(i: int, done: np.ndarray) -> None:
    done[i] += 1


@jit.function
def plain_square(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.shape[0]):
        out[i] = x[i] * x[i]


@pytest.mark.skipif(NO_JIT, reason="nothing is compiled")
def test_compiling_is_logged_and_a_second_call_is_not(caplog: pytest.LogCaptureFixture) -> None:
    @jit.kernel
    def cube(i: int, x: np.ndarray, out: np.ndarray) -> None:
        out[i] = x[i] ** 3

    caplog.set_level("INFO", logger="nlattn")
    for _ in range(2):
        cube(3, np.ones(3), np.empty(3))
    assert [record.name for record in caplog.records] == ["nlattn.runtime"]
    assert "cube: ready for these types after" in caplog.text


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_two_python_threads_may_call_at_once() -> None:
    x = np.arange(10_000.0)
    results = [np.empty_like(x) for _ in range(4)]
    workers = [threading.Thread(target=square, args=(len(x), x, out)) for out in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for out in results:
        np.testing.assert_array_equal(out, x * x)


@pytest.mark.parametrize("tasks", [0, 1, 3, 300, 5000])
def test_every_task_is_done_once(tasks: int) -> None:
    done = np.zeros(6000, np.int64)
    count(tasks, done)
    np.testing.assert_array_equal(done, np.arange(6000) < tasks)


@pytest.mark.jit
def test_who_comes_to_help_does_not_compile() -> None:
    out, other = np.empty(3, np.float32), np.ones(3, np.float32)
    found: list[BaseException] = []

    def work() -> None:
        if not helpers.helps():
            time.sleep(0.2)  # so that the other comes
            return
        try:
            plain_square(other, out)
        except helpers.LaterError as error:
            found.append(error)
            raise

    helpers.together(work, 1)
    assert len(found) == 1
    plain_square(np.ones(3, np.float32), out)
    np.testing.assert_array_equal(out, 1)


def test_an_error_on_a_helping_thread_is_raised_here() -> None:
    def task(number: int) -> None:
        if number == 30:
            raise ValueError("thirty")

    with pytest.raises(ValueError, match="thirty"):
        list(threads.each(task, 50, 10_000))


@pytest.mark.jit
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer")
def test_an_interrupt_does_not_wait_for_a_kernel() -> None:
    """Of one long task here; what was begun ends by itself."""

    @jit.kernel
    def spin(task: int, x: np.ndarray, times: int, out: np.ndarray) -> None:
        for i in range(times):
            out[task] = out[task] * 0.999 + x[i % x.size]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    x, out = np.ones(300_000), np.zeros(4)
    spin(4, x, 10, out)
    begun = time.perf_counter()
    spin(1, x, 10**7, out)
    times = int(6e7 / (time.perf_counter() - begun))  # six seconds
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        begun = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            spin(1, x, times, out)
        waited = time.perf_counter() - begun
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert waited < 3
    spin(4, x, 10, other := np.zeros(4))
    assert (other > 0).all()


@pytest.mark.parametrize(
    ("place", "name", "call"),
    [
        (np.linalg, "qr", lambda: nlattn.orthogonal_features(3, 4, 0)),
        (np, "sort", lambda: nlattn.support_from_index([[0, 1]], n_keys=2)),
    ],
)
def test_long_calls_of_numpy_are_done_by_helping_threads(
    monkeypatch: pytest.MonkeyPatch, place: object, name: str, call: Callable[[], object]
) -> None:
    """In the main thread a Ctrl-C would wait for them: 27 s, d = 2000; 4 s, 25 million keys."""
    before, helped = getattr(place, name), []

    def note(*args: object, **options: object) -> object:
        helped.append(helpers.helps())
        return before(*args, **options)

    monkeypatch.setattr(place, name, note)
    call()
    assert helped
    assert all(helped)


@pytest.mark.jit
def test_kernels_run_while_the_interpreter_ends() -> None:
    done = run(
        COUNT + "import atexit; atexit.register(double, 1000, np.ones(1000), out); out[:] = 0"
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr


@pytest.mark.jit
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_python_threads_and_forks_survive(tmp_path: Path) -> None:
    code = COUNT + (
        "import os, threading\n"
        "new = lambda: threading.Thread(target=double, args=(9, np.ones(9), np.empty(9)))\n"
        "ts = [new() for _ in range(4)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    double(1000, np.ones(1000), out); os._exit(7 if (out == 2).all() else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
    )
    path = tmp_path / "forks.py"
    path.write_text(code)
    done = run(f"import runpy; runpy.run_path({str(path)!r})", NUMBA_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


def cached_run(tmp_path: Path, cache: Path, **environment: str) -> str:
    """Run a kernel that lives in a file, so that it can be cached, and return what it warned."""
    path = tmp_path / "counted.py"
    if not path.exists():  # its age counts, for some versions of Numba
        path.write_text(COUNT)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import counted"
    done = run(code, NUMBA_CACHE_DIR=str(cache), **environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


DAMAGED: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: bytes([data[0] ^ 8]) + data[1:],
    lambda data: data[:-1] + bytes([data[-1] ^ 8]),
    lambda data: data[:40],
)
"""Another bit at either end, or cut."""


@pytest.mark.jit
@pytest.mark.skipif(os.name != "posix", reason="permissions of another kind")
def test_compiled_code_is_kept_unless_it_is_damaged_or_others_can_write_it(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert "not kept" not in cached_run(tmp_path, folder)
    for damage in DAMAGED:
        whole = {path: path.read_bytes() for path in folder.rglob("*.nb?")}
        assert whole
        for path, data in whole.items():
            path.write_bytes(damage(data))
        assert "not kept" not in cached_run(tmp_path, folder)
        assert all(path.read_bytes() != damage(data) for path, data in whole.items())
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")}
    cached_run(tmp_path, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")} == kept
    for part in [path for path in folder.rglob("*") if path.is_dir()]:
        part.chmod(part.stat().st_mode | stat.S_IWOTH)
    assert "can be written by other users" in cached_run(tmp_path, folder)


@pytest.mark.jit
def test_bits_do_not_depend_on_what_was_kept(tmp_path: Path) -> None:
    """Kernels compiled with a helper of today, read from the disk, and compiled with one read."""
    path = tmp_path / "summed.py"
    path.write_text(INNER)
    code = "import sys; sys.path.insert(0, {!r}); sys.argv[1:] = [{}]; import summed"
    bits = []
    for kernels in (1, 2):
        done = run(code.format(str(tmp_path), kernels), NUMBA_CACHE_DIR=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
        bits += done.stdout.split()
    assert len(bits) == 3
    assert len({*bits}) == 1


@pytest.mark.jit
def test_a_cache_that_cannot_be_made_warns_once() -> None:
    done = run(COUNT + COUNT)  # code without a file has no place for a cache
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiled code is not kept") == 1


def test_this_numba_is_known() -> None:
    assert private.KNOWN == {"cache": True, "compiler": True}


def test_a_numba_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private.CPUDispatcher, "get_call_template", len)
    monkeypatch.delattr(private.IndexDataCacheFile, "_dump")
    assert private.known() == {"cache": False, "compiler": False}


@pytest.mark.jit
def test_an_unknown_numba_compiles_and_keeps_code_in_its_own_way(tmp_path: Path) -> None:
    path, folder = tmp_path / "counted.py", tmp_path / "cache"
    unknown = "from nlattn.runtime import private\nprivate.KNOWN = dict.fromkeys(private.KNOWN)\n"
    path.write_text(unknown + COUNT)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import counted"
    done = run(code, NUMBA_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    assert list(folder.rglob("*.nbc"))


@pytest.mark.skipif(os.name != "posix", reason="permissions of another kind")
def test_the_group_of_a_user_alone_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o770)
    for own in (True, False):
        monkeypatch.setattr(cache, "_own_group", lambda _, own=own: own)
        assert cache.others_can_write(str(tmp_path)) != own
    tmp_path.chmod(0o700)
    assert not cache.others_can_write(str(tmp_path))


def test_thread_count_can_be_set() -> None:
    before = threads.threads()
    try:
        threads.set_threads(1)
        assert threads.threads() == 1
    finally:
        threads.set_threads(before)
    assert 1 <= before <= threads.max_threads()


@pytest.mark.parametrize("count", [0, -1, 10**6])
def test_threads_that_are_not_there_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"^set_threads: count={count}, expected "):
        nlattn.set_threads(count)


def test_cache_folder_is_told() -> None:
    folder = jit.cache_folder()
    assert folder is None if NO_JIT else Path(folder or "").is_dir()


def test_a_cached_kernel_knows_the_files_it_calls() -> None:
    kernels = Path(jit.__file__).parents[1] / "kernels"
    assert cache.imported(kernels / "softmax.py") == {"exp", "gemm", "panel"}
    assert cache.sources(kernels / "softmax.py") != cache.sources(kernels / "panel.py")


def test_processes_write_to_the_cache_one_at_a_time(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (
        cache.alone(str(tmp_path)),
        (tmp_path / "nlattn.lock").open("a") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "nlattn.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_long_kernels_are_told_by_numbers_and_by_pairs() -> None:
    """Few channels of many keys are few numbers; a Ctrl-C waited seconds for them."""

    def long(*shapes: tuple[int, ...]) -> bool:
        arrays = tuple(np.broadcast_to(np.float32(0), shape) for shape in shapes)
        assert jit._long((arrays, 1.0)) == jit._long(arrays)
        return jit._long(arrays)

    assert long((20_000, 2), (20_000, 2), (20_000, 2), (20_000, 2))
    assert long((1 << 18,), (1,))
    assert long((64, 70, 64))
    assert not long((1000, 32), (1000, 32), (1000, 32), (1000, 32))
    assert not long((0, 4), ())
