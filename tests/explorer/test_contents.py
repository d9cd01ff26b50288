"""What a page holds is unpacked again, and is what the map says."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib

import numpy as np
import pytest

import nlattn
from nlattn.explorer import Layer, contents, page


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).random((6, 9, 3))


@pytest.fixture(scope="module")
def few(image: np.ndarray) -> nlattn.AttentionMap:
    """A map of five keys for each pixel, chosen by hand."""
    flat = image.reshape(-1, 3)
    index = np.random.default_rng(1).permuted(np.tile(np.arange(54), (54, 1)), axis=1)[:, :5]
    support = nlattn.support_from_index(index, 54)
    return nlattn.sparse_attention_map(flat, flat, support, scale=5.0)


def bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def read(packed: dict) -> tuple[np.ndarray, np.ndarray]:
    """Keys and weights (r, t) as the script of the page unpacks them."""
    r, t = math.prod(packed["grid"]), packed["count"]
    planes = bytes_of(packed["keys"]).reshape(4, -1).T
    steps = np.ascontiguousarray(planes).view("<i4").reshape(t, r)
    halves = np.ascontiguousarray(bytes_of(packed["weights"]).reshape(2, -1).T).view("<u2")
    weights = (halves.astype(np.uint32) << 16).view(np.float32).reshape(t, r)
    return np.cumsum(steps, axis=1, dtype=np.int32).T, weights.T


def test_keys_come_back_and_weights_within_half_a_unit_of_eight_bits(few: nlattn.AttentionMap):
    values, keys = few.topk(5)
    packed = contents.of_looks("x", contents.looks(few, (6, 9), 5), (6, 9))
    got_keys, got = read(packed)
    assert np.array_equal(got_keys, keys)
    np.testing.assert_allclose(got, values, rtol=2.0**-8)  # 8 bits of significand, rounded


def test_a_map_that_is_dear_is_asked_for_the_middle_of_blocks(image, monkeypatch):
    flat = image.reshape(-1, 3)
    dense = nlattn.attention_map(flat, flat, scale=5.0)
    monkeypatch.setattr(contents, "SCORES", 54 * 12)  # twelve queries may be asked
    looks = contents.looks(dense, (6, 9), 4)
    assert (looks.step, looks.grid) == (3, (2, 3))
    index = [9 * row + column for row in (1, 4) for column in (1, 4, 7)]
    values, keys = dense.topk(4)
    assert np.array_equal(looks.keys, keys[index])
    assert np.allclose(looks.weights, values[index], rtol=1e-12)
    assert contents.received(dense, (6, 9)) is None


@pytest.mark.parametrize("kind", ["sparse", "selected"])
def test_a_map_of_few_keys_is_never_asked_for_whole_rows(image, few, kind, monkeypatch):
    flat = image.reshape(-1, 3)
    A = few if kind == "sparse" else nlattn.lev_attention_map(flat, flat, keys=6, select="norm")
    values, keys = A.topk(4)
    monkeypatch.setattr(contents, "QUERIES", 12)
    monkeypatch.setattr(type(A), "rows", None)  # (n, m) of a photograph are a terabyte
    looks = contents.looks(A, (6, 9), 4)
    index = [9 * row + column for row in (1, 4) for column in (1, 4, 7)]
    assert np.array_equal(looks.keys, keys[index])
    assert np.array_equal(looks.weights, values[index])


def test_what_a_key_receives_is_its_column(few: nlattn.AttentionMap):
    share = few.to_dense().sum(0)
    given = contents.received(few, (6, 9))
    assert given is not None
    assert np.allclose(given.values.ravel(), share / share.mean())


def test_levels_of_a_layer_span_what_is_known():
    values = np.array([[1.0, 10.0, 100.0], [np.nan, -1.0, np.inf]])
    layer = contents.of_layer(Layer(values, "of tests", log=True))
    levels = bytes_of(layer["levels"]).reshape(2, 3)
    low, high = (layer[name] for name in ("low", "high"))
    back = low * (high / low) ** ((levels[0].astype(float) - 1) / 254)
    np.testing.assert_allclose(back, np.clip([1.0, 10.0, 100.0], low, high), rtol=0.01)
    assert not levels[1].any()


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_layer_of_one_number_has_colours(value: float):
    layer = contents.of_layer(Layer(np.full((2, 2), value), "one"))
    assert layer["low"] < value < layer["high"]


def test_a_large_picture_is_shrunk_to_means(monkeypatch):
    monkeypatch.setattr(contents, "PIXELS", 6)
    image = np.arange(25, dtype=float).reshape(5, 5, 1) / 25
    means = contents.shrunk(image)
    assert means.shape == (2, 2, 3)
    assert means[0, 0, 0] == round(image[:3, :3].mean() * 255)
    assert means[1, 1, 2] == round(image[3:, 3:].mean() * 255)


def test_a_picture_comes_back(image: np.ndarray):
    packed = contents.of_picture(image)
    steps = bytes_of(packed["pixels"]).reshape(3, 6, 9)
    back = np.cumsum(steps, axis=2, dtype=np.uint8).transpose(1, 2, 0)
    assert np.array_equal(back, np.rint(image * 255))


def test_text_of_others_stays_text(image: np.ndarray, few: nlattn.AttentionMap):
    name = '</script><script>alert("x")'
    text = page(image, {name: few}, title=name)
    assert text.count("<script") == 2
    data = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert data is not None
    assert json.loads(data[1])["maps"][0]["name"] == name


def test_a_name_may_be_of_any_bytes(image: np.ndarray, few: nlattn.AttentionMap):
    assert "<h1>?.png</h1>" in page(image, few, title="\udcff.png").encode().decode()


def test_whole_numbers_are_colours(few: nlattn.AttentionMap):
    whole = np.full((6, 9, 1), 255, np.uint8)
    assert page(whole, few) == page(np.ones((6, 9, 1)), few)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"image": np.zeros((6, 9))}, r"explorer.page: image has shape \(6, 9\)"),
        ({"image": np.zeros((5, 9, 3))}, "image is 5 x 9, map 'attention' has .54,."),
        ({"keys": np.zeros((9, 5, 1))}, "keys is 9 x 5, map 'attention' has"),
        ({"maps": {}}, "maps holds 0 maps, expected one or two"),
        ({"top": 0}, "top"),
        ({"top": 65}, "top"),
    ],
)
def test_what_does_not_fit_is_refused(image, few, change: dict, text: str):
    given = {"image": image, "maps": few, **change}
    with pytest.raises(ValueError, match=text):
        page(given.pop("image"), given.pop("maps"), **given)
