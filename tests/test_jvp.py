"""Forward mode of every operator: ``<Jx, y> = <x, J'y>``, oracle, complex step, hidden NaN."""

from __future__ import annotations

import functools
import inspect
import itertools
import zlib
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest

import nlattn
from nlattn.conformance.case import Case, native
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.table import TABLE, OpSpec, find
from nlattn.oracle import indexer, merge
from tests.hidden import SCENES, Array, Scene

ROWS = [spec for spec in TABLE if spec.has_vjp]
NAMED = pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.name)
STEP = 1e-200
"""Its square is 0: a score of 0 stays one."""
COUNT = 8 if numba.config.DISABLE_JIT else 30
"""So many cases of an operator are tried at most, half as many in float32: those whose names have
the least checksums, which stay nearly the same when the kit is given more."""
HARD = {"large", "large-mask", "deep", "deep-mask", "faint", "mask-poison"}
HARD |= {"rising", "falling", "last", "sink", "channel", "negative", "offset", "long"}
"""Values whose scores are so large that the rounding of a score changes its weight much."""
UNDEFINED = {"parity-few"}
"""Losses that are NaN, and so are their changes and gradients."""


@functools.cache
def calls(name: str, dtype: str = "float64") -> list[Case]:
    """Gradient cases of the kit, of finite arrays: these, their options and cotangents."""
    spec = find(name)
    found = [c for c in cases("smoke", (name,), (dtype,)) if c.kind == "vjp"]
    found = [c for c in found if not (HARD | UNDEFINED) & {*c.name.split("/")[-1].split("+")}]
    # oracles take keys as lists: none of a search, nor SCRAM's of a field
    found = [c for c in found if "search" not in c.options]
    found = [c for c in found if name != "scram" or "field" not in native(c.arrays)]
    found = [
        c
        for c in found
        if all(np.isfinite(c.arrays[n]).all() for n in spec.arrays if n in c.arrays)
    ]
    found.sort(key=lambda c: zlib.crc32(c.name.split("/")[-1].encode()))
    return found[: COUNT if dtype == "float64" else COUNT // 2]


def moved(case: Case, rng: Any) -> dict[str, Any]:
    """A random direction for each array that has a gradient; what is infinite stays."""
    names = [name.removeprefix("d") for name in case.outputs]
    directions = {}
    for name in names:
        x = case.arrays[name]
        change = np.where(np.isfinite(x), rng.standard_normal(x.shape), 0.0)
        directions[f"d{name}"] = change.astype(x.dtype)
    return directions


def forward(case: Case) -> dict[str, Any]:
    """Arguments of the forward call."""
    return {n: x for n, x in native(case.arrays).items() if n not in ("dout", "dlse")}


def forward_options(case: Case) -> dict[str, Any]:
    """Those that are not of gradients alone."""
    return {n: x for n, x in case.options.items() if n != "alibi_gradient"}


def tuples(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def with_lse(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options, and the logarithm of normalisers if there is one."""
    plain = options.get("normalize", True) and not options.get("stages")
    asked = "return_lse" in inspect.signature(function).parameters and plain
    return {**options, "return_lse": True} if asked else options


def by_oracle(spec: OpSpec, kind: Any, given: dict[str, Any], options: dict[str, Any]) -> Any:
    """What the oracle gives; of one that takes no heads, head by head."""
    given = dict(given)
    if "field" in given:
        given["index"] = given.pop("field").index
    if "support" in given:
        given["support"] = tuple(given["support"])
    dims = len(next(iter(spec.arrays.values())).split())
    if not spec.cases.one_head:
        return tuples(spec.oracle(kind)(**given, **options))
    lead = np.broadcast_shapes(*(x.shape[:-dims] for x in given.values()))
    if not lead:
        return tuples(spec.oracle(kind)(**given, **options))
    given = {n: np.broadcast_to(x, lead + x.shape[-dims:]) for n, x in given.items()}
    heads = [spec.oracle(kind)(**{n: x[b] for n, x in given.items()}, **options)
             for b in np.ndindex(lead)]  # fmt: skip
    return (np.reshape(heads, (*lead, *np.shape(heads[0]))),)


class Moved(NamedTuple):
    """A case, a direction, and what its outputs do along it."""

    case: Case
    directions: dict[str, Any]
    options: dict[str, Any]
    got: tuple[Any, ...]
    truth: tuple[Any, ...]
    """By the oracle in float64."""


@functools.cache
def along(name: str, dtype: str) -> list[Moved]:
    """The cases of an operator, each along one direction; asked by several tests."""
    spec, rng, found = find(name), np.random.default_rng(5), []
    jvp = getattr(nlattn, f"{name}_jvp")
    for case in calls(name, dtype):
        directions, options = moved(case, rng), with_lse(jvp, forward_options(case))
        given = {**forward(case), **directions}
        wide = {
            n: x.astype(float) if getattr(x, "dtype", None) == np.float32 else x
            for n, x in given.items()
        }
        got, truth = tuples(jvp(**given, **options)), by_oracle(spec, "jvp", wide, options)
        found.append(Moved(case, directions, options, got, truth))
    return found


@NAMED
def test_it_is_the_transpose_of_the_gradient(spec: OpSpec) -> None:
    vjp = getattr(nlattn, f"{spec.name}_vjp")
    for case, directions, _, got, _ in along(spec.name, "float64"):
        gradients = [g for g in tuples(vjp(**native(case.arrays), **case.options)) if g is not None]
        left, size = 0.0, 0.0
        for change, name in zip(got, ("dout", "dlse"), strict=False):
            if name in case.arrays:
                left += (change * case.arrays[name]).sum()
                size += abs(change * case.arrays[name]).sum()
        pairs = list(zip(directions.values(), gradients, strict=True))
        right = sum((x * g).sum() for x, g in pairs)
        size += sum(abs(x * g).sum() for x, g in pairs)
        assert abs(left - right) <= 1e-12 * size + 1e-300, case.name
    assert len(along(spec.name, "float64")) >= min(COUNT, 8)


@NAMED
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_is_the_oracle(spec: OpSpec, dtype: str) -> None:
    """Sums of some hundred terms."""
    tolerance = 64 * np.finfo(dtype).eps
    for case, directions, _, got, want in along(spec.name, dtype):
        for mine, truth in zip(got, want, strict=True):
            assert mine.shape == truth.shape
            atol = tolerance * (terms(case, directions) + abs(truth).max(initial=0))
            np.testing.assert_allclose(mine, truth, rtol=0, atol=atol, err_msg=case.name)


def terms(case: Case, directions: dict[str, Any]) -> float:
    """The size of what a change is summed from: arrays times directions."""
    changes = sum(abs(x).max(initial=0) for x in directions.values())
    sizes = [abs(case.arrays[n]).max(initial=0) for n in case.spec.arrays if n in case.arrays]
    return float(changes * max(1, *sizes, 1) * case.options.get("temperature", 1.0))


@NAMED
def test_the_oracle_is_the_complex_step(spec: OpSpec) -> None:
    for case, directions, options, _, change in along(spec.name, "float64"):
        given = forward(case)
        stepped = {n[1:]: given[n[1:]] + 1j * STEP * x for n, x in directions.items()}
        options = {n: x for n, x in options.items() if n != "stabilizer_gradient"}
        with np.errstate(invalid="ignore"):  # -inf and a complex number
            result = by_oracle(spec, "", {**given, **stepped}, options)
        for mine, moving in zip(change, result, strict=False):
            want = np.where(np.isneginf(np.real(moving)), 0, np.imag(moving) / STEP)
            size = terms(case, directions) + abs(want).max(initial=0)
            atol = 64 * np.finfo(float).eps * size
            np.testing.assert_allclose(mine, want, rtol=0, atol=atol, err_msg=case.name)


@NAMED
def test_no_change_of_arrays_is_no_change_and_layout_does_not_count(spec: OpSpec) -> None:
    jvp = getattr(nlattn, f"{spec.name}_jvp")
    case, rng = calls(spec.name)[0], np.random.default_rng(7)
    directions, options = moved(case, rng), with_lse(jvp, forward_options(case))
    plain = tuples(jvp(**forward(case), **directions, **options))
    turned = {n: x[..., ::-1].copy()[..., ::-1] for n, x in directions.items()}
    given = {n: x[..., ::-1].copy()[..., ::-1] if isinstance(x, np.ndarray) else x
             for n, x in forward(case).items()}  # fmt: skip
    for x, y in zip(plain, tuples(jvp(**given, **turned, **options)), strict=True):
        np.testing.assert_array_equal(x, y)
    none = {n: 0 * x for n, x in directions.items()}
    for x, y in zip(tuples(jvp(**forward(case), **none, **options)), plain, strict=True):
        assert x.shape == y.shape
        np.testing.assert_array_equal(x, 0 * y)


@NAMED
def test_a_change_has_the_shape_of_its_array(spec: OpSpec) -> None:
    jvp = getattr(nlattn, f"{spec.name}_jvp")
    case = calls(spec.name)[0]
    directions = moved(case, np.random.default_rng(8))
    name = next(iter(directions))
    directions[name] = np.stack([directions[name]] * 2)
    with pytest.raises(ValueError, match=rf"^{spec.name}_jvp: (leading|{name} has)"):
        jvp(**forward(case), **directions, **forward_options(case))


@pytest.mark.parametrize(
    ("scene", "names"), [*itertools.product(SCENES, ("k", "v", "kv"))], ids=str
)
def test_what_is_hidden_does_not_reach_a_change(scene: Scene, names: str) -> None:
    """Neither numbers that are not finite in arrays, nor in their changes."""
    rng = np.random.default_rng(9)
    wild, plain, struck = scene.spoilt(names, True), scene.plain(names, True), scene.struck(True)
    jvp = getattr(nlattn, f"{scene.op}_jvp")
    changes = {f"d{n}": rng.standard_normal(plain[n].shape) for n in "qkv"}
    spoilt = {f"d{n}": np.where(np.isfinite(wild[n]), changes[f"d{n}"], np.nan) for n in "qkv"}
    neat = {n: np.where(np.isfinite(spoilt[n]), x, 0) for n, x in changes.items()}

    def called(arrays: Any, directions: Any) -> Any:
        given = {n: arrays[n] for n in "qkv"}
        return jvp(**given, **directions, **scene.options, nonfinite="propagate")

    want = called(plain, neat if scene.zeros else changes)
    for arrays, directions in ((wild, changes), (plain, spoilt), (wild, spoilt)):
        got = called(arrays, directions)
        flat, wanted = (x.reshape(len(struck), -1)[~struck] for x in (got, want))
        size = abs(np.asarray(wanted)).max(initial=1)
        np.testing.assert_allclose(flat, wanted, rtol=0, atol=1e-12 * size)
        assert np.isnan(got).any() or not struck.any()


def test_every_operator_with_a_gradient_has_a_forward_mode() -> None:
    gradients = [name for name in nlattn.__all__ if name.endswith("_vjp")]
    linear = {"gather_pages_vjp", "downscale_vjp"}  # their own forward mode
    for name in {*gradients} - linear:
        assert name.replace("_vjp", "_jvp") in nlattn.__all__, name


def test_a_change_of_what_is_not_there_is_refused() -> None:
    x = np.ones((2, 3))
    text = r"^attention_jvp: dbias has shape \(2, 2\), expected nothing as bias has$"
    with pytest.raises(ValueError, match=text):
        nlattn.attention_jvp(x, x, x, x, x, x, dbias=np.ones((2, 2)))
    for call, name in ((nlattn.nonlocal_mean_jvp, "dweight"), (nlattn.qna_jvp, "dgate")):
        with pytest.raises(ValueError, match=f"{name} is given without {name[1:]}, expected None"):
            call(x, x, x, x, x, x, **{name: x}, **({"window": 1} if name == "dgate" else {}))


def small(*shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape) for shape in shapes]


def agree(name: str, arrays: list[Array], changes: list[Array], cotangents: list[Array]) -> None:
    """Functions without a row: oracle by complex step, the public one by oracle and transpose."""
    jvp, vjp = (getattr(nlattn, f"{name}_{kind}") for kind in ("jvp", "vjp"))
    oracle = merge if name.startswith("merge") else indexer
    stepped = [x + 1j * STEP * dx for x, dx in zip(arrays, changes, strict=False)]
    moved = tuples(getattr(oracle, name)(*stepped, *arrays[len(stepped) :]))
    mine = tuples(jvp(*arrays, *changes))
    for x, y, z in zip(mine, tuples(getattr(oracle, f"{name}_jvp")(*arrays, *changes)), moved,
                       strict=True):  # fmt: skip
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(y, np.imag(z) / STEP, rtol=1e-12, atol=1e-13)
    beside = {"dlse": cotangents[1]} if len(cotangents) > 1 else {}
    gradients = tuples(vjp(*arrays, cotangents[0], **beside))
    left = sum((x * g).sum() for x, g in zip(mine, cotangents, strict=True))
    right = sum((x * g).sum() for x, g in zip(changes, gradients, strict=True))
    np.testing.assert_allclose(left, right, rtol=1e-12)


def test_indexer_and_merge() -> None:
    agree("index_scores", small((5, 2, 3), (7, 3), (5, 2)), small((5, 2, 3), (7, 3), (5, 2)),
          small((5, 7)))  # fmt: skip
    scores, weights = small((5, 7), (5, 7))
    weights = np.exp(weights) / np.exp(weights).sum(1, keepdims=True)
    agree("index_loss", [scores, weights], small((5, 7)), small((5,)))
    outs, lses = small((2, 3, 4), (2, 3))
    lses[1, 2] = -900  # as good as an empty set
    agree("merge_attention", [outs, lses], small((2, 3, 4), (2, 3)), small((3, 4), (3,)))
