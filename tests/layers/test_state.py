"""State dicts as people have them: the right answer, or a sentence that leads to it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from nlattn import layers

C = 8
block = functools.partial(layers.nonlocal_block, pairwise="embedded_gaussian")


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 6, C))


def sagan() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    state = {"gamma": np.ones(1)}
    for name, channels in (("query", 1), ("key", 1), ("value", C)):
        state[f"{name}_conv.weight"] = rng.standard_normal((channels, C, 1, 1))
        state[f"{name}_conv.bias"] = rng.standard_normal(channels)
    return state


def nonlocal_(normed: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    out = "W.0" if normed else "W"
    state = {f"{name}.weight": rng.standard_normal((4, C, 1, 1)) for name in ("g", "theta", "phi")}
    state |= {f"{name}.bias": rng.standard_normal(4) for name in ("g", "theta", "phi")}
    state |= {f"{out}.weight": rng.standard_normal((C, 4, 1, 1)), f"{out}.bias": np.ones(C)}
    if normed:
        names = ("weight", "bias", "running_mean", "running_var")
        state |= {f"W.1.{name}": rng.uniform(0.5, 1, C) for name in names}
        state["W.1.num_batches_tracked"] = np.array(3)
    return state


def test_a_tree_is_flattened(x):
    flat, tree = sagan(), {"params": {"gamma": sagan()["gamma"]}}
    for name, value in flat.items():
        module, _, part = name.partition(".")
        if part:
            tree["params"].setdefault(module, {})[part] = value
    assert np.array_equal(layers.sagan_block(x, tree), layers.sagan_block(x, flat))
    _, gradients = layers.sagan_block_vjp(x, tree, np.ones_like(x))
    assert list(gradients) == list(flat)


def test_a_counter_that_old_files_lack_is_zero(x):
    state = nonlocal_()
    want = block(x, state)
    del state["W.1.num_batches_tracked"]
    assert np.array_equal(block(x, state), want)
    _, buffers = block(x, state, training=True)
    assert buffers["W.1.num_batches_tracked"] == 1


def test_blobs_of_caffe2_have_the_name_of_their_block(x):
    rng = np.random.default_rng(3)
    named: dict[str, Any] = {}
    for name, shape in (("theta", (4, C)), ("phi", (4, C)), ("g", (4, C)), ("out", (C, 4))):
        named[f"nl_{name}_w"] = rng.standard_normal((*shape, 1, 1))
        named[f"nl_{name}_b"] = rng.standard_normal(shape[0])
    blobs = {name.replace("nl_", "nonlocal_conv4_1_"): w for name, w in named.items()}
    want = block(x, named, convention="caffe2")
    assert np.array_equal(block(x, blobs, convention="caffe2"), want)


def test_a_whole_network_is_told_its_prefixes(x):
    state = {f"body.{i}.nl.{name}": w for i in (2, 5) for name, w in sagan().items()}
    text = (
        r"they are there under 'body.2.nl.' or 'body.5.nl.'; "
        r"load_weights\(..., prefix='body.2.nl.'\) picks one"
    )
    with pytest.raises(ValueError, match=text):
        layers.sagan_block(x, state)


def test_channels_first_is_said(x):
    turned = np.moveaxis(x, -1, 0)
    text = r"x has shape \(8, 4, 6\), expected channels last, 8 of them; np.moveaxis\(x, -3, -1\)"
    with pytest.raises(ValueError, match=text):
        layers.sagan_block(turned, sagan())
    with pytest.raises(ValueError, match=text):
        block(turned, nonlocal_())
    wide = np.ones((8, 4, 9))  # channels enough, but not those of the weights
    with pytest.raises(ValueError, match=r"np.moveaxis\(x, -3, -1\) turns it"):
        layers.sagan_block(wide, sagan())


def test_parameters_of_a_module_are_read_where_they_lie(x):
    torch = pytest.importorskip("torch")
    state = sagan()
    named = {name: torch.nn.Parameter(torch.from_numpy(w)) for name, w in state.items()}
    assert np.array_equal(layers.sagan_block(x, named), layers.sagan_block(x, state))
    with pytest.raises(TypeError, match=r"pass dict\(module.named_parameters\(\)\), or module"):
        layers.sagan_block(x, (pair for pair in named.items()))


def test_parameters_without_buffers_are_told_where_those_are(x):
    state = {name: w for name, w in nonlocal_().items() if "running" not in name}
    with pytest.raises(ValueError, match=r"named_parameters\(\) leaves buffers out, state_dict"):
        block(x, state)
