"""A case as a folder: one ``.npy`` for each array, and ``case.json`` for the rest.

    attention/forward/float32/causal-17x13/
        case.json    name, op, kind, dtype, options, arrays with shapes and dtypes, outputs
        q.npy ...    the arrays; bfloat16 as the 16 bits of each number, ``<u2``
        out.npy ...  what a program answers, one file for each of the outputs

Folders come from others: names, links, sizes, headers and dtypes are checked, nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nlattn.conformance.case import DTYPES, TIERS, Array, Case, dtype_of
from nlattn.conformance.table import JUDGED
from nlattn.files import npy
from nlattn.files.untrusted import one_line, open_regular, parse_json

JSON_BYTES = 1 << 16
MAX_BYTES = 1e9
"""Most that one array of a case, or of an answer, may take."""
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+=,-]{0,99}"
_ARRAY = r"[a-z_]{1,32}(\.[a-z_]{1,32})?"
_FIELDS = {"name", "op", "kind", "dtype", "options", "arrays", "outputs", "tier", "seed", "error"}


def write(folder: Path, case: Case) -> None:
    """Write a case into a folder, which is there."""
    arrays = {name: _bits(x) for name, x in case.arrays.items()}
    about = {
        "name": case.name,
        "op": case.op,
        "kind": case.kind,
        "dtype": case.dtype,
        "options": dict(case.options),
        "arrays": {
            name: {"dtype": x.dtype.name, "shape": list(x.shape)} for name, x in case.arrays.items()
        },
        "outputs": list(case.outputs),
        "tier": case.tier,
        "seed": case.seed,
        "error": case.error,
    }
    text = json.dumps(about, indent=2, allow_nan=False, default=_plain)
    (folder / "case.json").write_text(text + "\n")
    for name, x in arrays.items():
        np.save(folder / f"{name}.npy", x, allow_pickle=False)


def read(op: str, folder: Path) -> Case:
    """The case of a folder; ValueError says what is wrong with it."""
    about = read_json(op, folder / "case.json", JSON_BYTES)
    if not isinstance(about, dict) or about.keys() != _FIELDS:
        raise ValueError(f"{op}: case.json has not the fields {', '.join(sorted(_FIELDS))}")
    names = [spec.name for spec in JUDGED]
    closed: Any = (
        ("op", names), ("kind", ("forward", "vjp", "jvp")), ("dtype", DTYPES), ("tier", TIERS)
    )  # fmt: skip
    for field, values in closed:
        if about[field] not in values:
            raise ValueError(f"{op}: case.json has {field} {str(about[field])[:64]!r}")
    for field, kind in (("name", str), ("error", str), ("seed", int), ("options", dict)):
        if not isinstance(about[field], kind):
            raise ValueError(f"{op}: case.json has no proper {field}")
    check_name(op, about["name"])
    arrays = {}
    declared = about["arrays"] if isinstance(about["arrays"], dict) else {}
    for name, layout in declared.items():
        if not re.fullmatch(_ARRAY, name) or not isinstance(layout, dict):
            raise ValueError(f"{op}: case.json has no proper array {name[:64]!r}")
        arrays[name] = answer(op, folder, name, str(layout.get("dtype")))
        if list(arrays[name].shape) != layout.get("shape"):
            raise ValueError(f"{op}: {name}.npy has shape {arrays[name].shape}, not as declared")
    case = Case(arrays=arrays, **{k: about[k] for k in _FIELDS - {"arrays", "outputs"}})
    if list(case.outputs) != about["outputs"]:
        raise ValueError(f"{op}: case.json names outputs that {case.function} does not have")
    return case


def answer(op: str, folder: Path, name: str, dtype: str) -> Array:
    """One array of a folder; `dtype` is what it should be, which 16 plain bits may stand for."""
    path = folder / f"{name}.npy"
    x: Array = npy.load(op, path, kinds="fiubV", max_bytes=MAX_BYTES)
    if dtype == "bfloat16" and x.dtype.newbyteorder("=") in (np.dtype("u2"), np.dtype("V2")):
        x = x.view(dtype_of(dtype))
    if x.dtype.name not in (dtype, "float64"):
        raise ValueError(f"{op}: {name}.npy has dtype {x.dtype}, expected {dtype}")
    return x


def answers(op: str, folder: Path, case: Case) -> dict[str, Array]:
    """All results of a case; ValueError if one is not there, or is no plain array of its dtype."""
    dtype = {"set": "bool", "index": "int64"}.get(case.spec.cases.result, case.dtype)
    try:
        return {output: answer(op, folder, output, dtype) for output in case.outputs}
    except FileNotFoundError as error:
        raise ValueError(f"{op}: there is no {Path(error.filename).name}") from None


def check_name(op: str, name: str) -> None:
    """ValueError unless a name is a relative path of plain parts, none of which leads upwards."""
    if not re.fullmatch(rf"{_PART}(/{_PART}){{0,7}}", name):
        raise ValueError(f"{op}: {name[:64]!r} is no name of a case")


def inside(op: str, root: Path, name: str) -> Path:
    """The folder `name` under `root`, reached without links."""
    check_name(op, name)
    path = root
    for part in name.split("/"):
        path = path / part
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise ValueError(f"{op}: {path.relative_to(root)} is no plain folder")
    return path


def read_json(op: str, path: Path, most: int) -> Any:
    """Contents of a JSON file of at most so many bytes, without NaN and infinities."""
    with open_regular(op, path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{op}: {path.name} is longer than {most} bytes")
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"{op}: {path.name} is no readable JSON: {one_line(error)}") from None


def _bits(x: Array) -> Array:
    return np.ascontiguousarray(x).view(np.uint16) if x.dtype.name == "bfloat16" else x


def _plain(x: object) -> Any:
    """JSON's own types for NumPy's."""
    if isinstance(x, (np.generic, np.ndarray)):
        return x.tolist()
    if isinstance(x, Mapping):
        return dict(x)
    raise TypeError(f"{x!r} is no JSON value")
