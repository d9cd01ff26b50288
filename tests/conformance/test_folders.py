"""Cases as folders: what was written is read back, and nothing else is believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlattn.conformance.case import Case
from nlattn.conformance.cases import folders

pytestmark = pytest.mark.plain

RNG = np.random.default_rng(0)


def attention(dtype: Any = np.float32, **options: Any) -> Case:
    shapes = {"q": (4, 3), "k": (5, 3), "v": (5, 2)}
    arrays = {name: RNG.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    name = f"attention/forward/{np.dtype(dtype).name}/small"
    return Case(name, "attention", "forward", np.dtype(dtype).name, arrays, options)


def sparse() -> Case:
    arrays = {
        **attention(np.float64).arrays,
        "dout": np.ones((4, 2)),
        "support.indptr": np.array([0, 1, 1, 3, 4]),
        "support.indices": np.array([0, 2, 4, 1], np.int32),
        "support.shape": np.array([4, 5]),
    }
    return Case("sparse/x", "sparse_attention", "vjp", "float64", arrays, {"scale": 0.5})


@pytest.mark.parametrize(
    "case",
    [
        attention(causal=True, window=[None, 2]),
        attention(np.float16),
        attention(ml_dtypes.bfloat16),
        sparse(),
    ],
    ids=lambda case: case.name,
)
def test_a_case_comes_back(case: Case, tmp_path: Path) -> None:
    folders.write(tmp_path, case)
    got = folders.read("vectors", tmp_path)
    for name in ("name", "op", "kind", "dtype", "options", "tier", "seed", "error", "outputs"):
        assert getattr(got, name) == getattr(case, name)
    assert got.arrays.keys() == case.arrays.keys()
    for name, x in case.arrays.items():
        assert got.arrays[name].dtype == x.dtype
        np.testing.assert_array_equal(got.arrays[name], x)


def test_sixteen_bits_may_be_written_as_numpy_does(tmp_path: Path) -> None:
    x = RNG.standard_normal((2, 3)).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "out.npy", x)
    np.testing.assert_array_equal(folders.answer("read", tmp_path, "out", "bfloat16"), x)


def test_an_answer_has_the_dtype_of_its_case(tmp_path: Path) -> None:
    np.save(tmp_path / "out.npy", np.zeros(3, np.float32))
    text = r"^read: out\.npy has dtype float32, expected float16$"
    with pytest.raises(ValueError, match=text):
        folders.answer("read", tmp_path, "out", "float16")


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another operator": ({"op": "os.system"}, "case.json has op 'os.system'"),
    "another kind": ({"kind": ["forward"]}, "case.json has kind"),
    "another dtype": ({"dtype": "object"}, "case.json has dtype 'object'"),
    "a path upwards": ({"name": "../../etc"}, "'../../etc' is no name of a case"),
    "an absolute path": ({"name": "/etc"}, "'/etc' is no name of a case"),
    "a hidden folder": ({"name": "a/.ssh"}, "'a/.ssh' is no name of a case"),
    "options in a list": ({"options": []}, "case.json has no proper options"),
    "a field too many": ({"more": 1}, "case.json has not the fields arrays, dtype"),
    "an array elsewhere": (
        {"arrays": {"../q": {"dtype": "float32", "shape": [1]}}},
        "case.json has no proper array '../q'",
    ),
    "another shape": (
        {"arrays": {"q": {"dtype": "float32", "shape": [3, 4]}}},
        r"q.npy has shape \(4, 3\), not as declared",
    ),
    "an array's dtype": (
        {"arrays": {"q": {"dtype": "float16", "shape": [4, 3]}}},
        "q.npy has dtype float32, expected float16",
    ),
    "other outputs": ({"outputs": ["dq"]}, "case.json names outputs that attention does not have"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_case_that_is_none_is_refused(what: str, tmp_path: Path) -> None:
    change, text = CHANGES[what]
    folders.write(tmp_path, attention())
    about = json.loads((tmp_path / "case.json").read_text()) | change
    (tmp_path / "case.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=rf"^vectors: {text}"):
        folders.read("vectors", tmp_path)


TEXTS = {
    "nothing": (b"", "is no readable JSON: Expecting value"),
    "not UTF-8": (b"\xff\xfe\xfa", "is no readable JSON"),
    "not a number": (b'{"seed": NaN}', "is no readable JSON: NaN is no number that it may hold"),
    "a deep nest": (b"[" * 60000, "is no readable JSON: "),
    "a huge number": (b"9" * 60000, "is no readable JSON: "),
    "too long": (b" " * 70000, "is longer than 65536 bytes"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_what_is_no_json_is_refused(what: str, tmp_path: Path) -> None:
    content, text = TEXTS[what]
    (tmp_path / "case.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^vectors: case\.json {text}"):
        folders.read("vectors", tmp_path)


def test_no_link_leads_out(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "root").mkdir()
    folders.write(tmp_path / "there", attention())
    os.symlink(tmp_path / "there", tmp_path / "root" / "case")
    with pytest.raises(ValueError, match=r"^vectors: case is no plain folder$"):
        folders.inside("vectors", tmp_path / "root", "case")
    (tmp_path / "there" / "q.npy").rename(tmp_path / "q.npy")
    os.symlink(tmp_path / "q.npy", tmp_path / "there" / "q.npy")
    with pytest.raises(ValueError, match=r"^vectors: q\.npy is a link, expected a plain file$"):
        folders.read("vectors", tmp_path / "there")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
FIELDS = ("name", "op", "kind", "dtype", "options", "arrays", "outputs", "tier", "seed", "error")
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=100, **QUIET)  # type: ignore[arg-type]
@given(field=st.sampled_from(FIELDS), value=JSON)
def test_no_field_is_worse_than_a_refusal(field: str, value: Any, tmp_path: Path) -> None:
    if not (tmp_path / "case.json").exists():
        folders.write(tmp_path, attention())
        (tmp_path / "whole").write_text((tmp_path / "case.json").read_text())
    about = json.loads((tmp_path / "whole").read_text()) | {field: value}
    (tmp_path / "case.json").write_text(json.dumps(about))
    try:
        case = folders.read("vectors", tmp_path)
    except ValueError as error:
        if "\n" in str(error):
            pytest.fail(str(error))
    else:
        assert case.op == "attention"
