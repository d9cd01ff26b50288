"""A file that is written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nlattn import _ending

_ENDING = 16  # characters of a name's end that say of what format a file is
_drafts: set[str] = set()
"""What is being written, for a process that ends at once."""


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place beside `path` to write to, which takes its name at the end, or is removed.

    What is written may be a file or a folder. A device or a pipe is written to as it is. An OSError
    on the way names `path`.
    """
    target = os.path.abspath(path)
    if os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target):
        yield Path(target)
        return
    ending = os.path.splitext(target)[1][:_ENDING]
    draft = Path(os.path.dirname(target), f".{secrets.token_hex(8)}{ending}")
    try:
        with _noted(draft):
            yield draft
            os.replace(draft, target)
    except BaseException as error:
        remove(draft)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for files that nobody needs afterwards."""
    with tempfile.TemporaryDirectory() as folder, _noted(folder):
        yield Path(folder)


def discard_all() -> None:
    """Remove what is being written, since this process ends at once."""
    for draft in list(_drafts):
        remove(draft)


_ending.before(discard_all)


@contextmanager
def _noted(draft: str | os.PathLike[str]) -> Iterator[None]:
    name = os.fspath(draft)
    _drafts.add(name)
    try:
        yield
    finally:
        _drafts.discard(name)


def remove(draft: str | os.PathLike[str]) -> None:
    """Remove a file or a folder, also while another thread writes into it."""
    place = os.fspath(draft)
    if os.path.isdir(place):
        with suppress(OSError):  # then no more can come into it
            gone = f"{place}.gone"
            os.rename(place, gone)
            place = gone
        shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):
        os.unlink(place)
