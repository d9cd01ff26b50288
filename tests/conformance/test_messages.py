"""Messages between processes: what goes in comes out, and damage is refused."""

from __future__ import annotations

import io

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlattn.conformance.backends.messages import npy_bytes, pack, parse, unpack


def test_arrays_of_every_kind_come_through() -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3).T, "b": np.zeros((0, 4), np.float16),
        "c": np.array(True), "d": np.arange(3, dtype=ml_dtypes.bfloat16), "e": np.arange(3),
    }  # fmt: skip
    head, got = unpack(io.BytesIO(pack({"x": {1}}, arrays)).read)
    assert head == {"x": [1]}
    for name, x in arrays.items():
        assert got[name].dtype == x.dtype
        np.testing.assert_array_equal(got[name], x)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is no .npy array"),
        (npy_bytes(np.zeros(3))[:-1], "declares shape"),
        (npy_bytes(np.zeros(3)) + b"x", "declares shape"),
        (npy_bytes(np.zeros(3)).replace(b"(3,)", b"(9,)"), "declares shape"),
        (npy_bytes(np.array(["a"])), "expected numbers"),
        (b"\x93NUMPY\x03\x00" + npy_bytes(np.zeros(3))[8:], "version"),
    ],
)
def test_a_damaged_array_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse(data)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_message_with_a_wrong_byte_is_read_or_refused(place: int, byte: int) -> None:
    data = bytearray(pack({"x": 1}, {"a": np.arange(5.0), "b": np.ones((2, 2), np.int32)}))
    data[place % len(data)] = byte
    try:
        _, arrays = unpack(io.BytesIO(data).read)
    except (ValueError, EOFError, LookupError, TypeError, SyntaxError, AttributeError):
        return
    assert sum(x.nbytes for x in arrays.values()) <= 1000


def test_a_message_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="a part of 72057594037927936 bytes"):
        unpack(io.BytesIO(b"\x01" + bytes(7)).read)
    with pytest.raises(ValueError, match="a message without a head"):
        unpack(io.BytesIO((2).to_bytes(8, "big") + b"[]").read)
