"""Tasks done by others: the same bytes, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn import images
from nlattn.tiled import executors
from nlattn.tiled.executors import Dask, Processes, WorkersLostError
from nlattn.tiled.folder import Folder
from nlattn.tiled.scram import scram
from nlattn.tiled.task import TileTask

pytestmark = pytest.mark.jit
OPTIONS = {"patch": 3, "channels": 4, "iterations": 1, "tile": 64}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, and what this process makes of it."""
    path = tmp_path_factory.mktemp("whole")
    np.save(path / "image.npy", images.photograph()[:120, :400])
    scram(path / "image.npy", path / "out", **OPTIONS)
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


def same(folder: Path, whole: Path) -> None:
    names = sorted(os.listdir(whole / "out"))
    assert sorted(os.listdir(folder)) == names
    for name in names:
        if name.endswith(".npy"):
            assert (folder / name).read_bytes() == (whole / "out" / name).read_bytes(), name


def kill(number: int) -> None:
    os.kill(number, signal.SIGKILL)


def test_processes_give_the_same_bytes_though_one_is_killed(tmp_path: Path, whole: Path) -> None:
    crew = Processes(2)

    def tell(stage: str, done: int, *_: int) -> None:
        if (stage, done) == ("search 02", 1):
            kill(next(iter(crew._started()._processes)))

    scram(whole / "image.npy", tmp_path / "out", executor=crew, progress=tell, **OPTIONS)
    same(tmp_path / "out", whole)


def test_a_task_that_kills_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_DEATHS", 1)
    crew = Processes(1)
    task = TileTask("fatal", _fatal, (), {})
    with pytest.raises(WorkersLostError, match="1 worker processes died"):
        list(crew.perform(str(tmp_path), [task]))
    crew.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer")
def test_an_interrupt_does_not_wait_for_tasks(tmp_path: Path) -> None:
    crew, begun = Processes(1), time.monotonic()
    task = TileTask("long", _long, (), {})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 5)
        with pytest.raises(KeyboardInterrupt), closing(crew):
            list(crew.perform(str(tmp_path), [task]))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < 30
    assert not crew._pool


def _long(_: Folder) -> Any:
    time.sleep(120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_fork_has_workers_of_its_own(tmp_path: Path, whole: Path) -> None:
    """Those of its parent start from a process that is no child of its own."""
    Processes(1).close()
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(300)
            scram(whole / "image.npy", tmp_path / "out", executor=Processes(1), **OPTIONS)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    same(tmp_path / "out", whole)


def _fatal(_: Folder) -> Any:
    kill(os.getpid())


def test_a_cluster_gives_the_same_bytes_though_a_worker_is_killed(
    tmp_path: Path, whole: Path, cluster: Any
) -> None:
    workers = cluster.run(os.getpid)

    def tell(stage: str, done: int, *_: int) -> None:
        if (stage, done) == ("search 01", 1):
            kill(next(iter(workers.values())))

    scram(whole / "image.npy", tmp_path / "out", executor=Dask(cluster), progress=tell, **OPTIONS)
    same(tmp_path / "out", whole)


def test_a_run_killed_on_a_cluster_is_finished_by_another(
    tmp_path: Path, whole: Path, cluster: Any
) -> None:
    code = (
        "import os, signal, sys\n"
        "from nlattn.tiled.executors import Dask\n"
        "from nlattn.tiled.scram import scram\n"
        "image, out, address = sys.argv[1:]\n"
        "def tell(stage, done, *_):\n"
        "    if (stage, done) == ('search 01', 1): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"scram(image, out, executor=Dask(address), progress=tell, **{OPTIONS})\n"
    )
    out, address = tmp_path / "out", cluster.scheduler.address
    environment = {**os.environ, "PYTHONPATH": str(Path(images.__file__).parents[1])}
    begun = [sys.executable, "-c", code, str(whole / "image.npy"), str(out), address]
    ended = subprocess.run(begun, capture_output=True, env=environment, timeout=240)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert '"search 01/' in (out / "manifest.jsonl").read_text()
    scram(whole / "image.npy", out, executor=Dask(cluster), resume=True, **OPTIONS)
    same(out, whole)


def test_a_worker_of_another_version_is_refused(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = executors.identity()
    monkeypatch.setattr(executors, "identity", lambda: "0.0.1 (other)")
    with pytest.raises(ValueError, match=r"the worker of tcp.* runs nlattn .*, expected 0.0.1"):
        Dask(cluster)
    with pytest.raises(ValueError, match=r"a worker runs nlattn 0.0.1 \(other\), expected"):
        executors._perform_as(own, str(tmp_path), TileTask("x", _fatal, (), {}))


def test_a_lost_scheduler_is_survived(tmp_path: Path, whole: Path, cluster: Any) -> None:
    """The last test of the cluster, which it ends."""
    out = tmp_path / "out"

    def tell(stage: str, done: int, *_: int) -> None:
        if (stage, done) == ("search 01", 1):
            cluster.shutdown()

    with pytest.raises(WorkersLostError, match="resume=True goes on"):
        scram(whole / "image.npy", out, executor=Dask(cluster), progress=tell, **OPTIONS)
    scram(whole / "image.npy", out, resume=True, **OPTIONS)
    same(out, whole)
