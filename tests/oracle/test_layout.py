"""Every oracle, gradients and forward mode too: the same bits in every layout, no option unread."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nlattn._types import Support
from nlattn.conformance.cases import calls as cases
from nlattn.conformance.table import TABLE, OpSpec
from nlattn.conformance.table.parts import PARTS

ORACLES = [
    (spec, kind)
    for spec in (*TABLE, *PARTS)
    for kind in ("", "vjp", "jvp")
    if not kind or getattr(spec, f"has_{kind}")
]
GRADIENTS = [spec for spec in TABLE if spec.has_vjp]
OPTIONS: dict[str, dict[str, Any]] = {
    "favor_attention": {"causal": True},
    "psal": {"aggregate": True, "dedup": True},
    "scram": {"iterations": 1},
    "cross_scale_attention": {"overlap": "mass"},
    "attention": {"qk_norm": 0.1, "softcap": 1.0},
    "sparse_attention": {"qk_norm": 0.1, "softcap": 1.0},
    "neighbourhood_attention": {"causal": [True, False]},
}
"""Beside what the table has: branches in which layouts have mattered, or may."""


def wider(x: Any) -> Any:
    room = np.zeros([2 * size for size in x.shape], x.dtype)
    room[tuple(slice(None, None, 2) for _ in x.shape)] = x
    return room[tuple(slice(None, None, 2) for _ in x.shape)]


def read_only(x: Any) -> Any:
    x = x.copy()
    x.flags.writeable = False
    return x


def unaligned(x: Any) -> Any:
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    return raw


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "Fortran": lambda x: x.copy(order="F"),
    "reversed": lambda x: np.flip(np.flip(x).copy()),
    "strided": wider,
    "read-only": read_only,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "axes moved": lambda x: np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0),
    "unaligned": unaligned,
}


def arguments(spec: OpSpec, kind: Any, dtype: Any = np.float64) -> dict[str, Any]:
    """A small call of an oracle by its own names."""
    rng = np.random.default_rng(3)
    sizes = {"parts": 3, "h": 2, "count": 5, "size": 2, "rows": 12, "s": 2}
    given = cases.call(spec, "" if kind == "jvp" else kind, sizes=sizes, dtype=dtype)
    given |= OPTIONS.get(spec.name, {})
    if kind == "vjp":
        given[f"d{spec.cases.outputs[0]}"] = given.pop("dout")
    if kind == "jvp":
        given |= {f"d{n}": rng.standard_normal(given[n].shape) for n in moving(spec, given)}
    if spec.name == "psal":
        given["index"] = rng.integers(-1, 12, (3, 4, 3))
    if spec.name == "gather_pages":
        given["table"] = rng.integers(-1, 5, (2, 3))
        given |= {n: x.reshape(2, 6, *x.shape[1:]) for n, x in given.items() if n == "dout"}
    if spec.name == "paged_attention":
        given["table"] = rng.integers(-1, 5, (2, 3))
    if spec.name in ("lewis_weights", "sensitivity_bounds", "lp_sensitivity", "universal_set"):
        given["K"] = given.pop("k")
    if "support" in given:
        given["support"] = tuple(given["support"])
    if spec.name in ("attention", "sparse_attention"):
        pairs = (5, 7) if spec.name == "attention" else given["support"][1].shape
        given |= {"bias": rng.standard_normal(pairs), "dropout_mask": rng.random(pairs) < 0.8}
        if kind == "jvp":
            given["dbias"] = rng.standard_normal(pairs)
    return given


def moving(spec: OpSpec, given: dict[str, Any]) -> list[str]:
    """Arrays that have a gradient."""
    return [n for n in spec.arrays if n in given and n not in spec.cases.shares]


def results(result: Any) -> list[Any]:
    if isinstance(result, (tuple, list)):
        return [x for part in result for x in results(part)]
    return [result] if isinstance(result, (np.ndarray, np.generic)) else []


def name(value: Any) -> str | None:
    return value.name if isinstance(value, OpSpec) else None


@pytest.mark.parametrize(("spec", "kind"), ORACLES, ids=name)
def test_every_layout_gives_the_same_bits(spec: OpSpec, kind: Any) -> None:
    given = arguments(spec, kind)
    want = results(spec.oracle(kind)(**given))
    assert want
    for layout, lie in LAYOUTS.items():
        moved = {n: lie(x) if isinstance(x, np.ndarray) and x.ndim else x for n, x in given.items()}
        if "support" in given:
            indptr, indices, shape = given["support"]
            moved["support"] = (lie(indptr), lie(indices), shape)
        for a, b in zip(results(spec.oracle(kind)(**moved)), want, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=layout)


@pytest.mark.parametrize(("spec", "kind"), ORACLES, ids=name)
def test_broadcast_arrays_give_the_bits_of_their_copies(spec: OpSpec, kind: Any) -> None:
    given = arguments(spec, kind)
    for n in {*spec.arrays, *(f"d{n}" for n in spec.arrays), "dout"} & {*given}:
        if given[n].ndim > 1:
            rows = given[n][..., :1, :]
            given[n] = np.broadcast_to(rows, given[n].shape)
    copies = {n: x.copy() if isinstance(x, np.ndarray) else x for n, x in given.items()}
    want, got = (results(spec.oracle(kind)(**x)) for x in (copies, given))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("spec", GRADIENTS, ids=name)
def test_gradients_of_arrays_in_fortran_order_are_those_of_the_complex_step(spec: OpSpec) -> None:
    """Which are those of every layout; a gradient was once added into a copy, which gave dv = 0."""
    lie = LAYOUTS["Fortran"]
    given = {
        n: lie(x) if isinstance(x, np.ndarray) and x.ndim else x
        for n, x in arguments(spec, "vjp").items()
    }
    dout = np.asarray(given["dout"])
    fixed = {n: x for n, x in given.items() if n not in (*spec.arrays, "dout")}
    lifting = {n: given[n] for n in spec.arrays if n in given}
    if spec.name == "scram":  # the search does not move
        fixed["support"] = scram_support(lifting)
    gradients = spec.oracle("vjp")(**lifting, dout=dout, **fixed)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for (n, x), gradient in zip(lifting.items(), gradients, strict=False):  # of a bias, too
        want = np.zeros(x.shape)
        for place in np.ndindex(x.shape):
            lifted = {key: lie(np.array(y, complex)) for key, y in lifting.items()}
            lifted[n][place] += 1e-30j
            want[place] = (dout * spec.oracle("")(**lifted, **fixed)).sum().imag / 1e-30
        assert abs(want).max() > 0
        np.testing.assert_allclose(gradient, want, rtol=0, atol=1e-13 * max(1, abs(want).max()))


def scram_support(moving: Any) -> Support:
    rng = np.random.default_rng(0)
    n, m = (int(np.prod(moving[name].shape[:2])) for name in "qk")
    keys = [np.sort(rng.permutation(m)[:3]) for _ in range(n)]
    return Support(3 * np.arange(n + 1), np.concatenate(keys).astype(np.int32), (n, m))


@pytest.mark.parametrize(("spec", "kind"), ORACLES, ids=name)
def test_no_oracle_takes_an_option_that_it_does_not_know(spec: OpSpec, kind: Any) -> None:
    given = arguments(spec, kind)
    with pytest.raises(TypeError, match="unexpected"):
        spec.oracle(kind)(**given, temperatur=1.0)
    function = spec.oracle(kind)
    if spec.stem in ("scram", "lev", "psal"):  # what is given must not hide what is misspelt
        known = inspect.signature(function).parameters
        chosen: dict[str, Any] = {"index": np.array([0, 1])} if "index" in known else {}
        if spec.stem == "scram":
            chosen["support"] = scram_support(given)
        if spec.stem != "psal":
            given |= chosen
        with pytest.raises(TypeError, match="unexpected"):
            functools.partial(function, **given)(iteratons=1)
