"""Files are written whole or not at all, whatever their names, and errors name them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nlattn.files.whole import whole


@pytest.mark.parametrize("name", ["a.txt", "x" * 251 + ".txt", f"a.{'x' * 200}", ".hidden", "none"])
def test_any_name_may_be_written(name: str, tmp_path: Path) -> None:
    for text in ("first", "second"):
        with whole(tmp_path / name) as draft:
            assert draft.parent == tmp_path
            draft.write_text(text)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "second"


def test_what_was_there_stays_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("mine")

    def interrupted() -> None:
        with whole(path) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["no/a.txt", ".", "folder"])
def test_an_error_names_what_was_to_be_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    text = rf"^\[Errno \d+\] [\w ]+: '{re.escape(name)}'$"
    with pytest.raises(OSError, match=text) as caught, whole(name) as draft:
        draft.write_text("x")
    assert caught.value.filename == name
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_device_stays_one(tmp_path: Path) -> None:
    try:
        os.symlink(os.devnull, tmp_path / "nothing")
    except OSError:
        pytest.skip("no links here")
    with whole(tmp_path / "nothing") as draft:
        assert draft == tmp_path / "nothing"
        draft.write_text("x")
    assert (tmp_path / "nothing").is_symlink()
    assert not Path(os.devnull).is_file()
