"""Options of runs by name, as an editor and a type checker see them; jobs have the defaults."""

from __future__ import annotations

from typing import TypedDict

from nlattn._modes import (
    Aggregate,
    Candidates,
    PatchChoice,
    PatchSearch,
    Propagate,
    SelfWeight,
    SupportKind,
)


class SearchedOptions(TypedDict, total=False):
    """What is said of tiles, of the search for matches, and of the support."""

    tile: int
    candidates: Candidates
    iterations: int | None
    trees: int
    topk: int
    propagate: Propagate
    kind: SupportKind
    window: int
    reach: int
    seed: int


class ArraysOptions(SearchedOptions, total=False):
    """Of SCRAM of arrays."""

    scale: float | None


class PictureOptions(ArraysOptions, total=False):
    """Of attention of a picture to itself."""

    patch: int
    channels: int
    gain: float
    keys: float
    values: bool


class MeansOptions(TypedDict, total=False):
    """Of non-local means beside sigma."""

    h: float | None
    patch_size: int
    patch_distance: int
    search: PatchSearch
    topk: int | None
    select: PatchChoice
    aggregate: Aggregate
    self_weight: SelfWeight
    candidates: Candidates
    iterations: int | None
    seed: int
    tile: int
