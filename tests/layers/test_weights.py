"""Weights of a layer: every name, shape and dtype that does not fit is named before work starts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nlattn import _check
from nlattn.layers import _weights

SHAPES = {"g.weight": "c C 1 1", "g.bias": "c", "p.weight": "1 2c 1 1", "gamma": "1", "s": ""}
GOOD: dict[str, Any] = {
    "g.weight": np.ones((3, 6, 1, 1)),
    "g.bias": np.ones(3),
    "p.weight": np.ones((1, 6, 1, 1)),
    "gamma": np.ones(1),
    "s": np.ones(()),
}


def take(weights: Any, dtype: Any = np.float64, **options: Any) -> _weights.Weights:
    fit = _check.fit("layer", {"x": (np.ones((4, 5, 6), dtype), "H W C")})
    return _weights.take(fit, weights, SHAPES, **options)


def test_what_fits_is_taken_frozen() -> None:
    weights = take(GOOD)
    assert list(weights) == list(SHAPES)
    assert len(weights) == 5
    assert weights.sizes["c"] == 3
    assert weights.matrix("g.weight").shape == (3, 6)
    assert not weights["g.bias"].flags.writeable


def test_half_precision_is_computed_in_float32_and_rounded_back() -> None:
    weights = take({k: x.astype(np.float16) for k, x in GOOD.items()}, np.float16)
    assert weights["g.bias"].dtype == np.float32
    gradients = weights.gradients({"s": np.float32(1), "g.weight": np.ones((3, 6))})
    assert list(gradients) == ["g.weight", "s"]
    assert gradients["g.weight"].dtype == np.float16
    assert gradients["g.weight"].shape == (3, 6, 1, 1)
    assert gradients["s"].shape == ()


def test_every_fault_is_named_at_once() -> None:
    bad = {**GOOD, "g.bias": np.ones(4), "gamma": np.ones(()), "more": 1, "W": None}
    bad["p.weight"] = np.ones((1, 5, 1, 1))
    del bad["s"]
    text = (
        "layer: weights lack 's'; weights hold 'more', 'W', expected none of that name; "
        "g.bias has shape (4,), expected (c,) with c=3 from g.weight; "
        "p.weight has shape (1, 5, 1, 1), expected (1, 2c, 1, 1) with c=3 from g.weight; "
        "gamma has shape (), expected (1,)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        take(bad)


def test_a_prefix_of_all_names_is_told() -> None:
    text = "they are there under 'net.'; load_weights(..., prefix='net.') picks one"
    with pytest.raises(ValueError, match=re.escape(text)):
        take({f"net.{name}": x for name, x in GOOD.items()})


def test_a_weight_that_names_no_size_lets_the_next_one() -> None:
    text = (
        "layer: g.weight has shape (3, 6), expected (c, C, 1, 1) with C=6 from x; "
        "p.weight has shape (1, 6, 1, 1), expected (1, 2c, 1, 1) with c=4 from g.bias"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        take({**GOOD, "g.weight": np.ones((3, 6)), "g.bias": np.ones(4)})
    with pytest.raises(ValueError, match=re.escape("g.weight has shape (0, 6, 1, 1), expected")):
        take({**GOOD, "g.weight": np.ones((0, 6, 1, 1))})


def test_every_weight_of_another_dtype_is_named() -> None:
    bad = {**GOOD, "g.bias": np.ones(3, np.float32), "s": np.float32(1)}
    text = (
        "layer: arrays must share one dtype, got x: float64, g.bias: float32, s: float32; "
        "convert each with .astype(np.float64)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        take(bad)


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        (None, TypeError, "layer: weights is a NoneType, expected a mapping of names to arrays"),
        ([1], TypeError, "layer: weights is a list, expected a mapping of names to arrays"),
        ({**GOOD, "g.bias": np.ones(3, int)}, TypeError, "layer: g.bias has dtype int64, expected"),
        (
            {**GOOD, "g.bias": np.array([1, np.nan, 0])},
            ValueError,
            "layer: g.bias[1] is nan, expected finite values; nonfinite='propagate' lets them pass",
        ),
    ],
)
def test_other_faults(weights: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        take(weights)


def test_values_that_are_not_finite_pass_on_request() -> None:
    assert np.isnan(take({**GOOD, "s": np.float64(np.nan)}, nonfinite="propagate")["s"])


def test_a_counter_is_one_integer() -> None:
    assert take({**GOOD, "n": np.int64(7)}, counters=("n",))["n"] == 7
    assert take(GOOD, counters=("n",))["n"] == 0  # files of PyTorch before 0.4.1 have none
    for bad in (1.0, np.ones(1, int)):
        with pytest.raises(TypeError, match=r"^layer: n is .*, expected one integer$"):
            take({**GOOD, "n": bad}, counters=("n",))
