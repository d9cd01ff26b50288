"""Sizes that a backend takes."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn.conformance.cases.arrays import lay, layout_of
from nlattn.conformance.cases.shapes import Shapes, Sizes
from nlattn.conformance.cases.suite import cases

pytestmark = pytest.mark.plain

NAMES = ("n", "m", "d", "e")


def test_sizes_nearest_to_what_is_wanted() -> None:
    assert [Sizes(multiple=8, least=16, most=250).nearest(n) for n in (1, 17, 24, 999)] == [
        16, 24, 24, 248
    ]  # fmt: skip
    assert [Sizes((64, 128)).nearest(n) for n in (1, 65, 512)] == [64, 128, 128]
    assert 24 in Sizes(multiple=8)
    assert 20 not in Sizes(multiple=8)


def test_a_blocked_kernel() -> None:
    told = {"d": (64, 128), "e": "d", "n": {"multiple": 64}, "m": "n", "heads": range(1, 9)}
    shapes = Shapes.of(told, NAMES)
    assert shapes.fit({"n": 65, "m": 129, "d": 17, "e": 33}) == {
        "n": 128, "m": 128, "d": 64, "e": 64
    }  # fmt: skip
    assert shapes.fit({"n": 0, "m": 13})["n"] == 0
    assert shapes.fit_lead((2, 13)) == (2, 8)
    assert shapes.fault({"n": 64, "m": 64, "d": 64, "e": 64}) == ""
    assert shapes.fault({"d": 80}) == "takes no d of 80: d is one of 64, 128"
    assert shapes.fault({"d": 64, "e": 128}) == "takes e equal to d only"


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"dd": 3}, "shapes name 'dd', expected some of n, m, d, e, heads, batch, group, layouts"),
        ({"d": {"multiples": 8}}, "expected numbers for some of least, most, multiple"),
        ({"d": True}, "d is True, expected a number"),
        ({"e": "h"}, "e equals 'h', expected one of n, m, d, e"),
        ({"layouts": ["c"]}, "expected some of C, read-only"),
        (64, "expected a dict of dimensions"),
    ],
)
def test_words_that_say_nothing_are_an_error(told: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Shapes.of(told, NAMES)


def test_an_empty_array_lies_like_any() -> None:
    """NumPy gives it steps of 0, as to one that is broadcast."""
    empty = np.zeros((0, 2, 3))
    assert layout_of(empty) == "C"
    assert lay(empty, layout_of(empty)).shape == (0, 2, 3)
    assert layout_of(lay(np.ones((2, 2, 3)), "broadcast")) == "broadcast"


def test_packed_sequences_lie_within_their_arrays() -> None:
    """Whatever sizes they are crossed with; one list of starts may stand for queries and keys."""
    seen = 0
    for case in cases("smoke", ("attention",), ("float32",)):
        starts = case.arrays.get("cu_seqlens_q")
        if starts is None:
            continue
        ends = case.arrays.get("cu_seqlens_k", starts)
        assert starts[-1] <= case.arrays["q"].shape[-2], case.name
        assert ends[-1] <= case.arrays["k"].shape[-2], case.name
        seen += 1
    assert seen > 20
