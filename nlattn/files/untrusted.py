"""Plain files of others: opened without waiting for anybody, and JSON of bounded size."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import IO, Any, NoReturn

from nlattn._types import Json, JsonObject

DIGITS = 40
"""Characters of the longest number in JSON."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}


def open_regular(op: str, path: str | os.PathLike[str], *, links: bool = False) -> IO[bytes]:
    """Open a file to be read; ValueError if it is a folder, a pipe, a socket or a device.

    Links are followed if `links`, and refused otherwise.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"{op}: path is a {type(path).__name__}, expected the name of a file")
    try:
        mode = os.stat(path, follow_symlinks=links).st_mode
    except ValueError:  # no system has such a name
        raise ValueError(f"{op}: {one_line(path)!r} is no name of a file") from None
    _regular(op, path, mode)
    flags = 0 if links else getattr(os, "O_NOFOLLOW", 0)

    def opener(name: str, wanted: int) -> int:
        return os.open(name, wanted | flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=opener)  # noqa: SIM115  it is returned
    try:
        _regular(op, path, os.fstat(file.fileno()).st_mode)  # what has taken its place meanwhile
    except BaseException:
        file.close()
        raise
    return file


def _regular(op: str, path: str | os.PathLike[str], mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        name = Path(os.fsdecode(path)).name or os.fsdecode(path)
        raise ValueError(f"{op}: {name} is {kind}, expected a plain file")


def parse_json(data: bytes, *, infinite: bool = False) -> Json:
    """The value of a JSON text of others: short numbers, `infinite` ones too if so, names once.

    ValueError says what is wrong; its text does not grow with the data.
    """
    try:
        return json.loads(
            data.decode(),
            parse_int=_integer,
            parse_float=_float,
            parse_constant=float if infinite else _refused,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def one_line(error: object) -> str:
    """What an error says, on one line that a terminal can show, of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else "?" for c in text[:301])
    return text if len(text) <= 300 else f"{text[:297]}..."


def _integer(text: str) -> int:
    return int(text) if len(text) <= DIGITS else _refused(text)


def _float(text: str) -> float:
    return float(text) if len(text) <= DIGITS else _refused(text)


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text[:DIGITS]} is no number that it may hold")


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a name twice")
    return found
