"""Files that are written whole or not at all, tables, progress, and what a run took."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from nlattn import _ending
from nlattn.cli.words import span
from nlattn.files.whole import remove

_OFTEN = 0.2
"""Seconds between two lines of progress."""


class MachineError(Exception):
    """The machine does not serve: nothing is wrong with what was asked for."""


def free(path: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """An error unless a file can be written there; without `force`, also if there is one."""
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder, expected a name for a file")
    if not os.path.isdir(parent := os.path.dirname(os.path.abspath(path))):
        raise ValueError(f"{path} cannot be written: there is no folder {parent}")
    for other in inputs:
        if os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other):
            raise ValueError(f"{path} is read, and would be overwritten; another name is free")
    if _there(path) and not force:
        raise ValueError(f"{path} exists; --force overwrites it")


def _there(path: Path) -> bool:
    """Whether there is a file, a folder or a link; OSError if there cannot be."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class Output:
    """A folder of results: made under another name, and put in place when all of it is there."""

    _open: ClassVar[list[Output]] = []

    def __init__(
        self, folder: Path, names: Sequence[str], *, force: bool, stale: Sequence[str] = ()
    ):
        self._stale = stale
        self.folder = Path(os.path.abspath(folder))
        self._made: list[Path] = []
        self._existed = self.folder.is_dir()
        for name in names if self._existed else ():
            if (self.folder / name).exists() and not force:
                raise ValueError(
                    f"{folder / name} exists; --force overwrites it, --out names another folder"
                )
        if not self._existed and _there(self.folder):
            raise ValueError(f"--out {folder} is a file, expected a folder")
        self._force, self._lock = force, -1
        with self._writing():
            home = self.folder if self._existed else self._make(self.folder.parent)
            self.draft = home / f".nlattn-{secrets.token_hex(4)}"
            Output._open.append(self)  # before there is something to remove
            if self._existed:
                self._hold()
            self.draft.mkdir()

    def write(self, name: str, writer: Callable[[Path], object]) -> None:
        """Call ``writer(path)`` for one of the files."""
        with self._writing():
            writer(self.draft / name)

    def commit(self) -> list[str]:
        """Put all files in place; returns their names."""
        names = sorted(os.listdir(self.draft))
        with self._writing():
            if self._existed:
                self._place(names)
            else:
                try:
                    os.rename(self.draft, self.folder)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                    raise ValueError(
                        f"{self.folder} was written by another run meanwhile; --out names another"
                    ) from None
        self._made.clear()
        self.discard()
        return names

    def _place(self, names: Sequence[str]) -> None:
        """Move files into the folder; without force nothing there is replaced."""
        placed: list[str] = []
        try:
            for name in names:
                if self._force:
                    os.replace(self.draft / name, self.folder / name)
                else:
                    _move(self.draft / name, self.folder / name)
                    placed.append(name)
            for name in {*self._stale} - {*names} if self._force else ():
                (self.folder / name).unlink(missing_ok=True)
        except FileExistsError:
            for name in placed:
                (self.folder / name).unlink(missing_ok=True)
            raise ValueError(
                f"{self.folder} was written to by another run meanwhile; --out names another"
            ) from None

    def _hold(self) -> None:
        """Keep other runs out of a folder that is there, until this one ends."""
        try:
            import fcntl
        except ModuleNotFoundError:  # not on this system
            return
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.discard()
            text = f"another run writes to {self.folder}; --out names another folder"
            raise ValueError(text) from None
        except OSError:  # a file system without locks
            pass

    def discard(self) -> None:
        """Remove what was not put in place."""
        remove(self.draft)
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self in Output._open:
            Output._open.remove(self)

    @classmethod
    def discard_all(cls) -> None:
        """Remove what no run put in place."""
        for output in list(cls._open):
            output.discard()

    def _make(self, folder: Path) -> Path:
        """Folder, made with its parents; what was made is remembered."""
        missing = [p for p in (folder, *folder.parents) if not os.path.lexists(p)]
        for parent in reversed(missing):
            parent.mkdir()
            self._made.append(parent)
        return folder

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            for folder in reversed(self._made):
                with suppress(OSError):
                    folder.rmdir()
            raise MachineError(
                f"cannot write to {self.folder}: {error.strerror or error}"
            ) from None


_ending.before(Output.discard_all)


def _move(file: Path, to: Path) -> None:
    """Move a file to a place where there is none; FileExistsError if there is one."""
    try:
        os.link(file, to)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(to):
            raise FileExistsError(to) from None
        os.rename(file, to)


class StageClock:
    """Seconds of each named stage; on a terminal, a bar or the name of what is running."""

    def __init__(self, *, quiet: bool):
        self.seconds: dict[str, float] = {}
        self._shown = not quiet and sys.stderr.isatty()
        self._stage, self._begun, self._said = "", 0.0, 0.0

    def __enter__(self) -> StageClock:
        return self

    def __exit__(self, *_: object) -> None:
        self._say("")

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what runs within, under `name`."""
        self._say(f"{name} ...")
        start = time.perf_counter()
        self._stage, self._begun = name, start
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def part(self, done: int, total: int) -> None:
        """Say how much of the stage is done, and how long the rest will take."""
        now = time.perf_counter()
        if not self._shown or not 0 < done < total or now - self._said < _OFTEN:
            return
        self._said = now
        left = span((now - self._begun) / done * (total - done))
        self._say(f"{self._stage}: {done} of {total} parts, {left} left")

    def progress(self, blocks: Sequence[int]) -> Iterable[int]:
        """Iterate over `blocks`, under a progress bar on a terminal."""
        if not self._shown:
            return blocks
        from tqdm import tqdm

        self._say("")
        return tqdm(blocks, leave=False, delay=1, unit="block")

    def _say(self, text: str) -> None:
        if self._shown:
            say(text)


def say(text: str) -> None:
    """Put a text in the place of the terminal's last line of progress; nothing takes it away."""
    print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, two spaces apart."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def to_json(report: object) -> str:
    """JSON text; what is infinite or undefined becomes null."""
    return json.dumps(_plain(report), indent=2, allow_nan=False)


def _plain(x: object) -> Any:
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if hasattr(x, "_asdict"):
        return _plain(x._asdict())
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if hasattr(x, "tolist"):
        return _plain(x.tolist())
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    return x if isinstance(x, (bool, int, str)) or x is None else str(x)


def peak_memory() -> int | None:
    """Most bytes of memory this process has held at once; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ModuleNotFoundError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
