"""Every public operator against every kind of bad or unusual input, from one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import nlattn
from nlattn.conformance.cases import calls as cases
from nlattn.conformance.table import TABLE, OpSpec

KINDS = [
    (spec, kind)
    for spec in TABLE
    for kind in ("", "map", "vjp")
    if {"": True, "map": spec.has_map, "vjp": spec.has_vjp}[kind]
]
ARRAYS = [
    (spec, kind, name)
    for spec, kind in KINDS
    for name in (*spec.arrays, *spec.extras, "dout")
    if not (kind == "map" and name == "v") and (kind == "vjp") >= (name == "dout")
    if not (name == "dout" and spec.out == "")
]


def label(value: Any) -> str | None:
    return value.name if isinstance(value, OpSpec) else None


def flat(result: Any) -> list[np.ndarray]:
    """Arrays of a result, whatever it is, to be compared bit by bit."""
    if hasattr(result, "rows"):
        rows = result.rows(np.arange(result.shape[0]))
        return [rows, result.lse] if result.normalised else [rows]
    if isinstance(result, tuple):
        return [x for part in result for x in flat(part)]
    return [result] if isinstance(result, np.ndarray) else []


class Bad(NamedTuple):
    what: str
    spoil: Callable[[np.ndarray], Any]
    error: type[Exception]
    text: str


def _with(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def spoil(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x.flat[-1] = value
        return x

    return spoil


BAD = [
    Bad("one axis", lambda x: x.reshape(-1), ValueError, "has shape"),
    Bad("more channels", lambda x: np.concatenate([x, x], axis=-1), ValueError, "expected"),
    Bad("no channels", lambda x: x[..., :0], ValueError, "channels, expected at least 1|expected"),
    Bad("integers", lambda x: x.astype(np.int32), TypeError, r"convert it with \w+\.astype"),
    Bad("booleans", lambda x: x > 0, TypeError, "has dtype bool, expected float32"),
    Bad("complex", lambda x: x.astype(np.complex128), TypeError, "is complex, expected float32"),
    Bad("objects", lambda x: x.astype(object), TypeError, "has dtype object, expected float32"),
    Bad("longdouble", lambda x: x.astype(np.longdouble), TypeError, "has dtype .*, expected"),
    Bad("strings", lambda x: x.astype(str), TypeError, "has dtype <U.*, expected float32"),
    Bad("None", lambda _: None, TypeError, "has dtype object, expected float32"),
    Bad("masked", lambda x: np.ma.masked_less(x, 0), TypeError, "is a masked array"),
    Bad("other dtype", lambda x: x.astype(np.float32), TypeError, "arrays must share one dtype"),
    Bad("NaN", _with(np.nan), ValueError, r"\[[\d, ]+\] is nan, expected finite"),
    Bad("inf", _with(-np.inf), ValueError, r"\[[\d, ]+\] is -inf, expected finite"),
    Bad(
        "leading axes that do not broadcast",
        lambda x: np.stack([x, x, x]),
        ValueError,
        "do not broadcast|expected",
    ),
]


RELATIVE = ("more channels", "other dtype", "leading axes that do not broadcast")


@pytest.mark.parametrize(("spec", "kind", "name"), ARRAYS, ids=label)
def test_bad_arrays_are_refused_in_words(spec: OpSpec, kind: Any, name: str) -> None:
    for bad in BAD:
        if bad.what == "more channels" and name == "v" and kind == "":
            continue  # a value may have any number of channels
        if bad.what in RELATIVE and len(spec.arrays) == 1:
            continue  # nothing beside it to disagree with
        if bad.what == "None" and name in (*spec.extras, *spec.optional):
            continue  # may be left out
        lead = (2,) if "leading" in bad.what and kind != "map" and name not in spec.extras else ()
        arguments = cases.call(spec, kind, lead=lead)
        arguments[name] = bad.spoil(arguments[name][0] if lead else arguments[name])
        with pytest.raises(bad.error, match=bad.text) as caught:
            spec.function(kind)(**arguments)
        message = str(caught.value)
        assert message.startswith(spec.name), bad.what
        assert "\n" not in message, bad.what
        assert name in message, bad.what


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": lambda x: x.copy(order="F"),
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "broadcast": lambda x: np.broadcast_to(x[None], (1, *x.shape))[0],
}


@pytest.mark.parametrize(("spec", "kind"), KINDS, ids=label)
def test_every_layout_gives_the_same_bits_and_inputs_are_left_alone(
    spec: OpSpec, kind: Any, tmp_path: Path
) -> None:
    arguments = cases.call(spec, kind)
    want = flat(spec.function(kind)(**arguments))
    assert want
    for result in want:
        for x in arguments.values():
            assert not (isinstance(x, np.ndarray) and np.shares_memory(result, x))
    for layout, lie in LAYOUTS.items():
        unusual = {
            key: lie(x) if isinstance(x, np.ndarray) and x.ndim else x
            for key, x in arguments.items()
        }
        for a, b in zip(flat(spec.function(kind)(**unusual)), want, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=layout)
    mapped = {}
    for key, x in arguments.items():
        if isinstance(x, np.ndarray):
            np.save(tmp_path / f"{key}.npy", x)
            mapped[key] = np.load(tmp_path / f"{key}.npy", mmap_mode="r")
        else:
            mapped[key] = x
    for a, b in zip(flat(spec.function(kind)(**mapped)), want, strict=True):
        np.testing.assert_array_equal(a, b)  # of files that are mapped, read-only
    for key, x in mapped.items():
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, arguments[key])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("spec", "kind"), KINDS, ids=label)
def test_half_precision_is_float32_rounded_once(spec: OpSpec, kind: Any, dtype: type) -> None:
    half = cases.call(spec, kind, dtype=dtype)
    single = {
        key: x.astype(np.float32) if isinstance(x, np.ndarray) else x for key, x in half.items()
    }
    got, want = spec.function(kind)(**half), spec.function(kind)(**single)
    for a, b in zip(flat(got), flat(want), strict=True):
        assert a.dtype in (dtype, b.dtype)
        np.testing.assert_array_equal(a, b.astype(a.dtype))
    if kind != "map" and spec.out.endswith("e"):
        assert flat(got)[0].dtype == dtype


# The draws of a search are keyed by the slice; tests/ops/test_patchmatch.py covers that.
WITH_HEADS = [(s, k) for s, k in KINDS if k != "map" and s.heads]
# Sets of keys have no axis of heads; tests/ops/test_universal.py covers that.
NOT_SEARCHING = [
    (s, k) for s, k in WITH_HEADS if s.stem not in ("patchmatch", "scram", "universal", "psal")
]


@pytest.mark.parametrize(("spec", "kind"), NOT_SEARCHING, ids=label)
def test_a_batch_is_its_slices(spec: OpSpec, kind: Any) -> None:
    arguments = cases.call(spec, kind, lead=(2, 3))
    whole = flat(spec.function(kind)(**arguments))
    for b in np.ndindex(2, 3):
        one = {key: x[b] if key in (*spec.arrays, "dout") else x for key, x in arguments.items()}
        for a, want in zip(whole, flat(spec.function(kind)(**one)), strict=True):
            np.testing.assert_array_equal(a[b], want)


@pytest.mark.parametrize(("spec", "kind"), WITH_HEADS, ids=label)
def test_an_empty_batch_gives_an_empty_result(spec: OpSpec, kind: Any) -> None:
    arguments = cases.call(spec, kind, lead=(0,))
    for result in flat(spec.function(kind)(**arguments)):
        assert result.shape[0] == 0 or spec.stem in ("patchmatch", "universal")


@pytest.mark.parametrize(("spec", "kind"), KINDS, ids=label)
def test_one_pixel(spec: OpSpec, kind: Any) -> None:
    sizes = ("n", "m", "Hq", "Wq", "Hk", "Wk", "H", "W", "d", "e")
    ones = {**dict.fromkeys(sizes, 1), **spec.least}
    for result in flat(spec.function(kind)(**cases.call(spec, kind, sizes=ones))):
        assert not np.isnan(result).any()


@pytest.mark.parametrize(("spec", "kind"), KINDS, ids=label)
def test_non_finite_values_pass_on_request(spec: OpSpec, kind: Any) -> None:
    arguments = cases.call(spec, kind)
    name = next(iter(spec.arrays))
    arguments[name] = _with(np.nan)(arguments[name])
    assert flat(spec.function(kind)(**arguments, nonfinite="propagate"))
    with pytest.raises(ValueError, match="nonfinite='skip', expected 'raise' or 'propagate'"):
        spec.function(kind)(**arguments, nonfinite="skip")


Q8 = np.random.default_rng(0).standard_normal((4, 5, 8))
PAGES = Q8[:3]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: nlattn.attention(*Q8[:3], return_lse="no"),
            "attention: return_lse='no' is no bool",
        ),
        (
            lambda: nlattn.lev_attention(*Q8[:3], return_lse=1),
            "lev_attention: return_lse=1 is no b",
        ),
        (
            lambda: nlattn.attention(*Q8[:3], sinks=10**400),
            "attention: sinks=1000.*is more than a f",
        ),
        (
            lambda: nlattn.attention(*Q8[:3], scale=10**400),
            "attention: scale=1000.*is out of range",
        ),
        (
            lambda: nlattn.attention(*Q8[:3], scale=np.ma.masked),
            "attention: scale=masked is no num",
        ),
        (
            lambda: nlattn.paged_attention(Q8[0], PAGES, PAGES, [0], causal=np.ones(2)),
            r"paged_attention: causal=array\(\[1., 1.\]\) is no bool",
        ),
        (
            lambda: nlattn.paged_attention(Q8[0], PAGES, PAGES[0], [0]),
            r"paged_attention: v_pages has shape \(5, 8\), expected \(count, size, ..., d\)",
        ),
        (
            lambda: nlattn.paged_attention(np.ones(8), PAGES, PAGES, [0]),
            r"paged_attention: q has shape \(8,\), expected \(..., n, d\)",
        ),
        (
            lambda: nlattn.sampled_truth(Q8[0], None, Q8[0], queries=[0]),  # type: ignore[arg-type]
            "sampled_truth: k has dtype object, expected float32",
        ),
        (
            lambda: nlattn.sparse_attention(*Q8[:3], ([0], [0], 3)),  # type: ignore[arg-type]
            "sparse_attention: support is a tuple, expected a Support as from",
        ),
        (
            lambda: nlattn.scram_for_mass(Q8, Q8, mass=0.5, seed=0.5),  # type: ignore[arg-type]
            "scram_for_mass: seed=0.5 is no integer",
        ),
        (
            lambda: nlattn.scram_for_mass(Q8 * np.nan, Q8, mass=0.5),
            r"scram_for_mass: q\[0, 0, 0\] is nan, expected finite values$",
        ),
        (
            lambda: nlattn.orthogonal_features(4, 2**63, 0),
            "orthogonal_features: d=4, r=92233.*are m",
        ),
        (
            lambda: nlattn.scram_support(nlattn.patchmatch(Q8, Q8), kind=5),  # type: ignore[arg-type]
            "scram_support: kind=5, expected 'window'",
        ),
    ],
)
def test_every_function_says_what_it_cannot_use(call: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{text}"):
        call()
