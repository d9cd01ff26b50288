"""The modules of cross-scale super-resolution: published arrays, differences, wrong calls."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn import layers
from nlattn.layers import _cross_scale_parts as parts
from tests.layers.published_csnln import Cell

DATA = Path(__file__).parent.parent / "data"
GOLDEN: dict[str, tuple[str, bool]] = {
    "csnl_s2_6x8": ("cross_scale_block", True),
    "csnl_s3_6x9": ("cross_scale_block", True),
    "csnln_inscale_nl_5x7": ("inscale_block", False),
    "csnln_msp_s2": ("multi_source_projection", True),
    "csnln_sem_s2": ("sem_cell", True),
}


def last(x: Any) -> Any:
    return x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", GOLDEN)
def test_it_is_the_published_module(name: str) -> None:
    case = np.load(DATA / f"{name}.npz")
    layer, scaled = GOLDEN[name]
    options = {"parity": True, "scale": json.loads(str(case["meta"]))["scale"]} if scaled else {}
    weights = {key[2:]: case[key] for key in case.files if key.startswith("w.")}
    outputs = ("x_final", "y") if layer == "sem_cell" else ("y",)
    found = getattr(layers, layer)(last(case["in.x"]), weights, **options)
    for a, key in zip(found if len(outputs) == 2 else (found,), outputs, strict=True):
        np.testing.assert_allclose(a, last(case[f"out.{key}"]), rtol=1e-9, atol=1e-10)
    cotangents = [last(case[f"cot.{key}"]) for key in outputs]
    pull = getattr(layers, f"{layer}_vjp")
    dx, dweights = pull(last(case["in.x"]), weights, *cotangents, **options)
    np.testing.assert_allclose(dx, last(case["grad.in.x"]), rtol=1e-8, atol=1e-10)
    expected = {key[7:] for key in case.files if key.startswith("grad.w.")}
    assert set(dweights) == expected
    for key in expected:
        np.testing.assert_allclose(dweights[key], case[f"grad.w.{key}"], rtol=1e-8, atol=1e-10)


def drawn(shapes: dict[str, str], seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sizes = {"C": 2, "c": 1, "b": 1}
    weights = {
        name: 0.4 * rng.standard_normal([sizes.get(d) or int(d) for d in spec.split()])
        for name, spec in shapes.items()
    }
    return {n: np.array([1e-4]) if n.endswith("escape_NaN") else w for n, w in weights.items()}


CASES: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    ("cross_scale_block", parts.of_block(), {"scale": 2, "pad": "reflect"}),
    ("cross_scale_block", parts.of_block(), {"scale": 4, "pad": "zero", "overlap": "mass"}),
    ("cross_scale_block", parts.of_block(), {"scale": 3, "patch": 1}),
    ("inscale_block", parts.of_inscale(), {}),
    ("multi_source_projection", parts.of_projection(3), {"scale": 3}),
    ("multi_source_projection", parts.of_projection(4), {"scale": 4, "overlap": "mass"}),
    ("sem_cell", parts.of_cell(2), {"scale": 2}),
    ("sem_cell", parts.of_cell(3), {"scale": 3, "temperature": 1.0}),
    ("sem_cell", parts.of_cell(4), {"scale": 4, "patch": 5}),
]


@pytest.mark.parametrize(("name", "shapes", "options"), CASES, ids=str)
def test_gradients_agree_with_differences(
    name: str, shapes: dict[str, str], options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(1)
    x, weights = rng.standard_normal((1, 3, 4, 2)), drawn(shapes)

    def results(x: Any, w: Any) -> list[Any]:
        y = getattr(layers, name)(x, w, **options)
        return list(y) if isinstance(y, tuple) else [y]

    cotangents = [rng.standard_normal(y.shape) for y in results(x, weights)]
    factor = options.get("scale", 1) ** (0 if name == "inscale_block" else 1)
    enlarged = 2 if name == "multi_source_projection" and factor == 4 else factor
    assert cotangents[-1].shape == (1, 3 * enlarged, 4 * enlarged, 2)
    dx, dweights = getattr(layers, f"{name}_vjp")(x, weights, *cotangents, **options)
    assert set(dweights) == {n for n in weights if not n.endswith("escape_NaN")}

    way = {n: rng.standard_normal(w.shape) for n, w in dweights.items()}
    for dx_way, w_way in ((rng.standard_normal(x.shape), {}), (0 * x, way)):
        ends = []
        for step in (1e-6, -1e-6):
            moved = {n: w + step * w_way[n] if n in w_way else w for n, w in weights.items()}
            ys = results(x + step * dx_way, moved)
            ends.append(sum((c * y).sum() for c, y in zip(cotangents, ys, strict=True)))
        slope = (ends[0] - ends[1]) / 2e-6
        want = (dx * dx_way).sum() + sum((dweights[n] * w_way[n]).sum() for n in w_way)
        np.testing.assert_allclose(want, slope, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("grid", [(6, 6), (2, 10), (4, 6), (8, 4)], ids=str)
def test_scale_4_takes_what_the_published_network_takes(grid: tuple[int, int]) -> None:
    """It steps by 2 twice: multiples of 2 do, of 4 are not asked for."""
    x, weights = np.random.default_rng(3).standard_normal((*grid, 2)), drawn(parts.of_cell(4))
    published, first = Cell(weights, 4), x.transpose(2, 0, 1)
    prefix = "multi_source_projection."
    own = {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)}
    for options in ({"parity": True}, {"overlap": "divide"}):
        found = layers.multi_source_projection(x, own, scale=4, **options)
        want = published.projection(prefix, first)
        np.testing.assert_allclose(found, want.transpose(1, 2, 0), rtol=1e-9, atol=1e-11)
        for a, b in zip(
            layers.sem_cell(x, weights, scale=4, **options), published.cell(first), strict=True
        ):
            np.testing.assert_allclose(a, b.transpose(1, 2, 0), rtol=1e-9, atol=1e-11)
    cotangents = np.ones(x.shape), np.ones((4 * grid[0], 4 * grid[1], 2))
    dx, _ = layers.sem_cell_vjp(x, weights, *cotangents, scale=4, parity=True)
    again, _ = layers.sem_cell_vjp(x, weights, *cotangents, scale=4, overlap="divide")
    np.testing.assert_allclose(dx, again, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scale", [2, 3])
def test_smaller_scales_are_the_published_network_too(scale: int) -> None:
    x = np.random.default_rng(4).standard_normal((2 * scale, scale, 2))
    weights = drawn(parts.of_cell(scale))
    want = Cell(weights, scale).cell(x.transpose(2, 0, 1))
    for a, b in zip(layers.sem_cell(x, weights, scale=scale, parity=True), want, strict=True):
        np.testing.assert_allclose(a, b.transpose(1, 2, 0), rtol=1e-9, atol=1e-11)


def test_odd_sizes_are_refused_with_the_step_of_scale_4() -> None:
    text = (
        "sem_cell: x has 3 x 6 pixels, expected multiples of 2, the steps of scale=4; "
        "pad='edge' allows any"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        layers.sem_cell(np.ones((3, 6, 2)), drawn(parts.of_cell(4)), scale=4, parity=True)


def test_gradients_refuse_the_sizes_that_outputs_do() -> None:
    x, text = np.ones((3, 4, 2)), "x has 3 x 4 pixels, expected multiples of"
    for call, weights, cotangents in (
        (layers.cross_scale_block_vjp, parts.of_block(), (x,)),
        (layers.multi_source_projection_vjp, parts.of_projection(2), (x,)),
        (layers.sem_cell_vjp, parts.of_cell(2), (x, x)),
    ):
        with pytest.raises(ValueError, match=text):
            call(x, drawn(weights), *cotangents, scale=2, parity=True)


def test_a_batch_is_its_slices_and_the_floor_may_be_missing() -> None:
    x, weights = np.random.default_rng(2).standard_normal((2, 2, 4, 2)), drawn(parts.of_cell(2))
    whole = layers.sem_cell(x, weights, scale=2)
    del weights["multi_source_projection.up_attention.escape_NaN"]
    for b in range(2):
        for a, want in zip(layers.sem_cell(x[b], weights, scale=2), whole, strict=True):
            np.testing.assert_array_equal(a, want[b])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scale": 5}, "scale=5 is none of (2, 3, 4), which have weights"),
        ({"scale": 2, "pad": "wrap"}, "pad='wrap', expected 'edge', 'reflect', 'zero' or 'error'"),
        (
            {"scale": 2, "parity": True},
            "x has 3 x 4 pixels, expected multiples of scale=2; pad='edge' allows any",
        ),
        (
            {"scale": 2, "parity": True, "patch": 5},
            "patch=5 with parity=True, where the published sizes fit for patch=3 alone",
        ),
        ({"scale": 3}, "upsample.0.weight has shape (2, 2, 6, 6), expected (C, C, 9, 9) with C=2"),
    ],
)
def test_bad_calls_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^multi_source_projection: {re.escape(text)}"):
        layers.multi_source_projection(np.ones((3, 4, 2)), drawn(parts.of_projection(2)), **options)


def test_cotangents_of_another_shape_are_refused() -> None:
    text = r"cross_scale_block_vjp: dout has shape \(3, 4, 2\), expected \(6, 8, 2\) as the output"
    x = np.ones((3, 4, 2))
    with pytest.raises(ValueError, match=text):
        layers.cross_scale_block_vjp(x, drawn(parts.of_block()), x, scale=2)
