"""Files that are written whole or not at all, tables, progress, and what a run took."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar


class MachineError(Exception):
    """The machine does not serve: nothing is wrong with what was asked for."""


class Output:
    """A folder of results: made under another name, and put in place when all of it is there."""

    _open: ClassVar[list[Output]] = []

    def __init__(self, folder: Path, names: Sequence[str], *, force: bool):
        self.folder = Path(os.path.abspath(folder))
        self._made: list[Path] = []
        self._existed = self.folder.is_dir()
        for name in names if self._existed else ():
            if (self.folder / name).exists() and not force:
                raise ValueError(
                    f"{folder / name} exists; --force overwrites it, --out names another folder"
                )
        if not self._existed and os.path.lexists(self.folder):
            raise ValueError(f"--out {folder} is a file, expected a folder")
        with self._writing():
            home = self.folder if self._existed else self._make(self.folder.parent)
            self.draft = Path(tempfile.mkdtemp(prefix=".nlattn-", dir=home))
            os.chmod(self.draft, 0o777 & ~_umask())
        Output._open.append(self)

    def write(self, name: str, writer: Callable[[Path], Any]) -> None:
        """Call ``writer(path)`` for one of the files."""
        with self._writing():
            writer(self.draft / name)

    def commit(self) -> list[str]:
        """Put all files in place; returns their names."""
        names = sorted(os.listdir(self.draft))
        with self._writing():
            if self._existed:
                for name in names:
                    os.replace(self.draft / name, self.folder / name)
            else:
                os.rename(self.draft, self.folder)
        self._made.clear()
        self.discard()
        return names

    def discard(self) -> None:
        """Remove what was not put in place."""
        shutil.rmtree(self.draft, ignore_errors=True)
        shutil.rmtree(self.draft, ignore_errors=True)  # a file may have come while the first ran
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()
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


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


class Stages:
    """Seconds of each named stage; on a terminal, a bar or the name of what is running."""

    def __init__(self, *, quiet: bool):
        self.seconds: dict[str, float] = {}
        self._shown = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self._say("")

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what runs within, under `name`."""
        self._say(f"{name} ...")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def progress(self, blocks: Sequence[int]) -> Iterable[int]:
        """Iterate over `blocks`, under a progress bar on a terminal."""
        if not self._shown:
            return blocks
        from tqdm import tqdm

        self._say("")
        return tqdm(blocks, leave=False, delay=1, unit="block")  # type: ignore[no-any-return]

    def _say(self, text: str) -> None:
        if self._shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, two spaces apart."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def to_json(report: Any) -> str:
    """JSON text; what is infinite or undefined becomes null."""
    return json.dumps(_plain(report), indent=2, allow_nan=False)


def _plain(x: Any) -> Any:
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
