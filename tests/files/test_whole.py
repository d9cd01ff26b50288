"""Files are written whole or not at all, whatever their names, and errors name them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nlattn.files.whole import discard_all, scratch, whole


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


def test_a_process_that_ends_at_once_removes_what_it_writes(tmp_path: Path) -> None:
    file, folder, place = whole(tmp_path / "a.txt"), whole(tmp_path / "b.zarr"), scratch()
    with place as other:
        (other / "part").write_text("x")
        file.__enter__().write_text("half")
        draft = folder.__enter__()
        draft.mkdir()
        (draft / "part").write_text("half")
        assert len([*tmp_path.iterdir()]) == 2
        discard_all()
        assert not [*tmp_path.iterdir()]
        assert not other.exists()
        other.mkdir()  # for the block, which has not heard


def test_a_picture_of_another_program_may_have_any_name(tmp_path: Path) -> None:
    with whole(tmp_path / f"{'x' * 250}.zarr") as draft:
        draft.mkdir()
        (draft / "part").touch()
    assert [p.name for p in tmp_path.iterdir()] == [f"{'x' * 250}.zarr"]
