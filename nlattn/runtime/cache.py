"""Compiled code on disk: valid for one state of its sources, private, never a reason to fail."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache

_IMPORT = re.compile(r"^from nlattn\.kernels(?:\.(\w+))? import (\([^)]*\)|.*)", re.MULTILINE)
_warned = False


@functools.cache
def sources(file: Path) -> str:
    """Digest of `file` and of all kernel files it calls: a change of a callee makes it stale."""
    package = Path(__file__).parent.parent
    folder = package / "kernels"
    found, open_ends = {package / "runtime" / "jit.py"}, {file}
    while open_ends:
        found |= open_ends
        names = set().union(*map(imported, open_ends))
        open_ends = {folder / f"{name}.py" for name in names} - found
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def imported(file: Path) -> set[str]:
    """Stems of the kernel files that a source file imports."""
    names = set()
    for stem, listed in _IMPORT.findall(file.read_text(encoding="utf-8")):
        names |= {stem} if stem else set(re.findall(r"(\w+)(?: as \w+)?", listed))
    return names


def no_cache(reason: object) -> None:
    """Warn, once, that nothing is kept, and why."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"nlattn: compiled code is not kept on disk ({reason}); every process compiles anew. "
            "Set NUMBA_CACHE_DIR to a private writable folder.",
            RuntimeWarning,
            stacklevel=4,
        )


def _others_can_write(folder: str) -> bool:
    status = os.stat(folder)
    foreign = hasattr(os, "geteuid") and status.st_uid not in (0, os.geteuid())
    return foreign or bool(status.st_mode & stat.S_IWOTH)


@contextmanager
def alone(folder: str) -> Iterator[None]:
    """Wait for other processes that write to a folder, where the system can lock files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with Path(folder, "nlattn.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Cache(FunctionCache):
    """Numba's cache, which here never fails a computation and never trusts a shared folder."""

    def __init__(self, function: Callable[..., Any], variant: str) -> None:
        super().__init__(function)
        self._variant = variant
        self._digest = sources(Path(function.__code__.co_filename))
        if os.name == "posix" and _others_can_write(self.cache_path):
            raise PermissionError(f"{self.cache_path} can be written by other users")

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return sig, codegen.magic_tuple(), self._variant, self._digest

    def _save_overload(self, sig: Any, data: Any) -> None:
        self._impl.locator.ensure_cache_path()
        with alone(self.cache_path):  # two that save at once might swap their code
            super()._save_overload(sig, data)

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, pickle.PickleError) as error:
            self.disable()
            no_cache(error)
