"""Manifests of others, or damaged ones, are read without trust."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nlattn.tiled.folder import ArraySpec, Folder, Written
from nlattn.tiled.manifest import Manifest
from nlattn.tiled.run import run
from nlattn.tiled.task import Cost, Done, Record, Stage, TileTask

pytestmark = pytest.mark.plain
HEADER = {"job": "ones"}


def ones(_: Folder) -> Done:
    return {"ones": np.ones(3)}, 5


def stages() -> list[Stage]:
    def begin(_: Folder) -> tuple[list[ArraySpec], list[TileTask]]:
        return [ArraySpec("ones", (3,), "float64")], [TileTask("make", ones, (), {"ones": 0})]

    return [Stage("make", (), ("ones",), begin, Cost(1, 24, 24))]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    (record,) = run(tmp_path / "o", stages(), HEADER)
    assert (record.task, record.scores, record.parts[0][:3]) == ("make", 5, ("ones", 0, 3))
    again = run(tmp_path / "o", stages(), HEADER, resume=True)
    assert [one[:3] for one in again] == [record[:3]]


PART = ["ones", 0, 3, "ab"]


def line(**change: object) -> str:
    return json.dumps({"task": "x", "parts": [PART], "scores": 0, "seconds": 0, **change})


@pytest.mark.parametrize(
    "text",
    [
        *("garbage{", "5", "[]", "null", "", "\udcff", '"task"', "[" * 10**5, "9" * 99),
        '{"task": "x"}',
        '{"dropped": 5}',
        *(line(parts=x) for x in (5, [5], [["ones"]], [[*PART[:3]]], [["ones", "a", 3, "ab"]])),
        *(line(scores=x) for x in ("x", None, [])),
        line(parts=[["nobodys", 0, 3, "ab"]]),
        line(parts=[["../../etc/passwd", 0, 3, "ab"]]),
    ],
)
def test_a_manifest_that_is_none_is_refused_in_words(text: str, tmp_path: Path) -> None:
    run(tmp_path / "o", stages(), HEADER)
    path = tmp_path / "o" / "manifest.jsonl"
    first, *rest = path.read_text().splitlines()
    for lines in ([first, text, *rest], [text, *rest]):
        path.write_bytes("\n".join([*lines, ""]).encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=r"^tiled: .*another folder begins anew$") as caught:
            run(tmp_path / "o", stages(), HEADER, resume=True)
        assert str(path) in str(caught.value) or "was begun with" in str(caught.value)
        assert len(str(caught.value)) < 600


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").touch()
    with pytest.raises(ValueError, match="is damaged: it has no whole line; another folder begin"):
        Manifest(Folder(tmp_path), HEADER, resume=True)


def test_rows_that_a_manifest_claims_are_looked_at(tmp_path: Path) -> None:
    (record,) = run(tmp_path / "o", stages(), HEADER)
    path = tmp_path / "o" / "manifest.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([lines[0], json.dumps({**json.loads(lines[1]), "parts": [PART]}), ""])
    )
    again = run(tmp_path / "o", stages(), HEADER, resume=True)
    assert again[0].parts == record.parts == (Written("ones", 0, 3, record.parts[0].digest),)
    assert isinstance(again[0], Record)
