"""A short run of every target on damaged files, always the same ones; and what was found before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.corpus import kept, seeds, whole
from tests.fuzz.mutate import mutants
from tests.fuzz.targets import TARGETS, run

COUNT = 250


@pytest.mark.parametrize("target", TARGETS)
def test_whole_files_are_read(target: str, tmp_path: Path) -> None:
    for data in whole(target):
        said = run(target, data, tmp_path)
        assert said == "read" or target == "map_state", said


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_found_once_is_read_or_refused(target: str, tmp_path: Path) -> None:
    for data in kept(target):
        run(target, data, tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_are_read_or_refused(target: str, tmp_path: Path) -> None:
    said = [run(target, data, tmp_path) for data in mutants(seeds(target), COUNT, seed=1)]
    assert sum(text != "read" for text in said) > COUNT // 10  # damages are seen at all
