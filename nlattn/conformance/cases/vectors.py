"""Cases as files, with what they should give: for people who want only files.

DIR/manifest.json     format, version, seed, certificate, and SHA-256 of every file
DIR/<case>/           a folder as `folders` says, and ``want.<output>.npy`` and
                      ``bound.<output>.npy``: truth and the error allowed, float64
RESULTS/<case>/       ``<output>.npy``, made elsewhere
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nlattn import __version__
from nlattn._types import Array, JsonObject, Options
from nlattn.conformance.case import Case
from nlattn.conformance.cases import folders
from nlattn.files.untrusted import open_regular

FORMAT = "nlattn vectors 1"
OP = "vectors"
_MANIFEST_BYTES = 1 << 26


def write(
    folder: Path,
    cases: Iterable[Case],
    truth: Any,
    bound: Any,
    about: Options | None = None,
) -> int:
    """Write cases and a manifest into a folder; returns their number.

    ``truth(case)`` and ``bound(case)`` give arrays by output; `about` goes into the manifest.
    """
    listed: JsonObject = {}
    for case in cases:
        folders.check_name(OP, case.name)
        place = folder / case.name
        place.mkdir(parents=True)
        folders.write(place, case)
        for kind, values in () if case.error else (("want", truth(case)), ("bound", bound(case))):
            for output, x in values.items():
                np.save(place / f"{kind}.{output}.npy", np.asarray(x, np.float64))
        files = sorted(place.iterdir())
        listed[case.name] = {file.name: _sha256(file) for file in files}
    manifest = {"format": FORMAT, "version": __version__, **(about or {}), "cases": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")
    return len(listed)


def read(folder: Path) -> Iterator[tuple[Case, dict[str, Array], dict[str, Array]]]:
    """Each case with truth and bounds; ValueError if a file is not the one that was written."""
    manifest = folders.read_json(OP, folder / "manifest.json", _MANIFEST_BYTES)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{OP}: manifest.json is not of format {FORMAT!r}")
    cases = manifest.get("cases")
    if not isinstance(cases, dict):
        raise ValueError(f"{OP}: manifest.json lists no cases")
    for name, files in cases.items():
        place = folders.inside(OP, folder, name)
        _check(name, place, files)
        case = folders.read(OP, place)
        if case.name != name:
            raise ValueError(f"{OP}: {name} holds the case {case.name}")
        want, bound = ({} if case.error else _outputs(case, place, kind) for kind in _KINDS)
        yield case, want, bound


_KINDS = ("want", "bound")


def _outputs(case: Case, place: Path, kind: str) -> dict[str, Array]:
    return {
        output: folders.answer(OP, place, f"{kind}.{output}", "float64") for output in case.outputs
    }


def _check(name: str, place: Path, files: Any) -> None:
    """ValueError unless a folder holds the listed files, unaltered, and no other."""
    found = {path.name for path in place.iterdir()}
    if not isinstance(files, dict) or found != files.keys():
        raise ValueError(f"{OP}: {name} holds other files than manifest.json lists")
    for file, digest in files.items():
        if _sha256(place / file) != digest:
            raise ValueError(f"{OP}: {name}/{file} is not the file that manifest.json lists")


def result(results: Path, case: Case) -> dict[str, Array]:
    """What was computed elsewhere for a case; ValueError says what is wrong with it.

    LookupError where nothing was: there is no folder, or a file ``unsupported`` in it says why.
    """
    try:
        place = folders.inside(OP, results, case.name)
    except FileNotFoundError:
        raise LookupError("no results") from None
    if (place / "unsupported").exists():
        with open_regular(OP, place / "unsupported") as file:
            said = file.read(500).decode("utf-8", "replace").split("\n")[0]
        raise LookupError(said or "unsupported")
    return folders.answers(OP, place, case)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(OP, path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
