"""Attention maps from ``.npz`` files, read without trust.

A file has the members `format`, `kind` and the state of the map; `files.npz` reads them.
"""

from __future__ import annotations

import os
from typing import NoReturn

from nlattn import _check
from nlattn.files import npz
from nlattn.files.untrusted import one_line, open_regular
from nlattn.maps.base import FORMAT, AttentionMap
from nlattn.maps.certified import CertifiedMap
from nlattn.maps.concatenation import ConcatenationMap
from nlattn.maps.cross_scale import CrossScaleMap
from nlattn.maps.dense import DenseMap
from nlattn.maps.factored import FactoredMap
from nlattn.maps.heavy import HeavyMap
from nlattn.maps.permutohedral import PermutohedralMap
from nlattn.maps.selected import SelectedMap
from nlattn.maps.sparse import SparseMap
from nlattn.maps.state import OP, REMEDY
from nlattn.maps.window import WindowMap

_STRUCTURES: tuple[type[AttentionMap], ...] = (
    CertifiedMap,
    ConcatenationMap,
    CrossScaleMap,
    DenseMap,
    FactoredMap,
    HeavyMap,
    PermutohedralMap,
    SelectedMap,
    SparseMap,
    WindowMap,
)
KINDS = {structure.kind: structure for structure in _STRUCTURES}
MEMBERS = 64
NAME = "[a-z_]{1,32}"


def load_map(path: str | os.PathLike[str], *, max_bytes: float = 4e9) -> AttentionMap:
    """Read a map that ``AttentionMap.save`` wrote.

    Parameters
    ----------
    path : path
        The file.
    max_bytes : float
        Most bytes that its arrays may take, and whatever the map allocates beside them.

    Returns
    -------
    AttentionMap
        Of the structure that was saved.

    Raises
    ------
    ValueError
        The file is no map, is damaged, or its arrays do not fit each other.
    MemoryError
        It declares more than `max_bytes`.
    OSError
        It cannot be opened.

    Examples
    --------
    >>> nlattn.attention_map(q, k).save("map.npz")
    >>> nlattn.load_map("map.npz").shape
    (64, 64)
    """
    with open_regular(OP, path, links=True) as file:
        try:
            state = npz.read(
                OP, file, pattern=NAME, what="array of a map", members=MEMBERS, max_bytes=max_bytes
            )
        except ValueError as error:
            _refuse(path, error)
    if state.pop("format", None) != FORMAT:
        _refuse(path, f"its format is not {FORMAT!r}")
    kind = str(state.pop("kind", None))
    if kind not in KINDS:
        given = _check.quoted(kind)
        _refuse(path, f"it is of kind {given}, expected one of {', '.join(KINDS)}")
    try:
        result = KINDS[kind].from_state(state, max_bytes)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        _refuse(path, error)
    vectors = max(result.shape) * result.dtype.itemsize
    what = f"a vector of the {result.shape[0]} x {result.shape[1]} map"
    _check.memory(OP, vectors, max_bytes, what, REMEDY)
    return result


def _refuse(path: str | os.PathLike[str], reason: object) -> NoReturn:
    raise ValueError(f"{OP}: {os.fspath(path)} is no readable map: {one_line(reason)}") from None
