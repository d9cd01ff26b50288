"""The bridge to autograd: every operator with a gradient, against its own ``_vjp``."""

from __future__ import annotations

import numpy as np
import pytest

import nlattn
from nlattn.conformance.cases.calls import call
from nlattn.conformance.table import TABLE, OpSpec

torch = pytest.importorskip("torch")
bridge = nlattn.torch
WITH_GRADIENT = [spec for spec in TABLE if spec.has_vjp]


@pytest.mark.parametrize("spec", WITH_GRADIENT, ids=lambda spec: spec.name)
def test_backward_is_the_vjp(spec: OpSpec):
    arguments = call(spec, "vjp")
    dout = arguments.pop("dout")
    wanted = {**arguments}
    for name in (*spec.arrays, *spec.cases.differentiable):
        if isinstance(arguments.get(name), np.ndarray) and arguments[name].dtype.kind == "f":
            wanted[name] = torch.from_numpy(arguments[name]).requires_grad_(name in spec.arrays)
    out = getattr(bridge, spec.name)(**wanted)
    first = spec.function()(**arguments)
    assert np.array_equal(out.detach().numpy(), first)
    out.backward(torch.from_numpy(np.asarray(dout)))
    gradients = spec.function("vjp")(**arguments, dout=dout)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    names = [name for name in spec.arrays if name in arguments]
    for name, gradient in zip(names, gradients, strict=False):
        assert np.array_equal(wanted[name].grad.numpy(), gradient), name


def test_gradients_of_a_bias_and_of_lse_pass_pytorchs_own_check():
    rng = np.random.default_rng(0)
    shapes = ((2, 5, 3), (2, 6, 3), (2, 6, 4), (2, 5, 6))
    given = [torch.from_numpy(rng.standard_normal(s)).requires_grad_() for s in shapes]

    def function(q, k, v, bias):
        return bridge.attention(q, k, v, bias=bias, return_lse=True)

    assert torch.autograd.gradcheck(function, given)


def test_a_result_that_is_not_used_gives_nothing():
    rng = np.random.default_rng(0)
    q, k, v = (torch.from_numpy(x).float() for x in rng.standard_normal((3, 5, 4)))
    q.requires_grad_()
    _, lse = bridge.attention(q, k, v, return_lse=True)
    assert lse.dtype == torch.float64  # as of arrays
    lse.sum().backward()
    arrays = (x.detach().numpy() for x in (q, k, v))
    zero, one = np.zeros((5, 4), np.float32), np.ones(5, np.float32)
    assert np.array_equal(q.grad.numpy(), nlattn.attention_vjp(*arrays, zero, dlse=one)[0])


def test_only_what_has_a_gradient_is_there():
    assert dir(bridge) == sorted(dir(bridge))
    assert {"attention", "scram", "qna"} < set(dir(bridge))
    with pytest.raises(AttributeError, match="no attribute 'universal_set'"):
        _ = bridge.universal_set


def test_arrays_without_a_gradient_are_named():
    q = torch.ones(4, 2, dtype=torch.float64)
    features = torch.ones(3, 2, dtype=torch.float64).requires_grad_()
    out = bridge.favor_attention(q, q, q, projection=features)
    with pytest.raises(TypeError, match="favor_attention: projection has no gradient; pass"):
        out.sum().backward()
    with pytest.raises(TypeError, match="attention: missing a required argument: 'v'"):
        bridge.attention(q, q)
