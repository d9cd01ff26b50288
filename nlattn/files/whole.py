"""A file that is written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ENDING = 16  # characters of a name's end that say of what format a file is


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place beside `path` to write to, which takes its name at the end, or is removed.

    A device or a pipe is written to as it is. An OSError on the way names `path`.
    """
    target = os.path.abspath(path)
    if os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target):
        yield Path(target)
        return
    ending = os.path.splitext(target)[1][:_ENDING]
    draft = Path(os.path.dirname(target), f".{secrets.token_hex(8)}{ending}")
    try:
        yield draft
        os.replace(draft, target)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
