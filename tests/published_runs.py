"""Runs of the papers' own modules, asked of the oracle and of the operators alike.

Each takes a module, `nlattn` or an oracle, whose functions are called.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden import FORWARD, GRADIENT
from tests.helpers import published

ENLCA = ("conv_match1.0", "conv_match2.0", "conv_assembly.0")


def projected(data: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    """The input (1, C, H, W) by 1x1 convolutions of these names, (1, n, channels)."""
    x = data["in.x"].reshape(*data["in.x"].shape[:2], -1)
    return [
        np.einsum("oc,bcn->bno", data[f"w.{name}.weight"][:, :, 0, 0], x) + data[f"w.{name}.bias"]
        for name in names
    ]


def assert_output(data: dict[str, Any], out: Any) -> None:
    """Of a module whose images are channels-first."""
    want = data["out.y"]
    np.testing.assert_allclose(out, want.reshape(*want.shape[:2], -1).swapaxes(1, 2), **FORWARD)


def _assert_gradients(data: dict[str, Any], got: Any) -> None:
    for x, gradient in zip("qkv", got, strict=True):
        np.testing.assert_allclose(gradient, data[f"grad.in.{x}"], **GRADIENT)


def enla(module: Any) -> None:
    """The operator alone."""
    data, _ = published("enla_orthoscaling1")
    inputs = [data[f"in.{x}"] for x in "qkv"]
    options: Any = {"projection": data["w.projection_matrix"], "amplification": None}
    np.testing.assert_allclose(module.enla(*inputs, **options), data["out.y"], **FORWARD)
    _assert_gradients(data, module.enla_vjp(*inputs, data["cot.y"], **options))


def enlca_loss(module: Any, name: str) -> None:
    """Of a run in training: the mean over the batch."""
    data, _ = published(name)
    q, k, _ = projected(data, ENLCA)
    np.testing.assert_allclose(module.enlca_loss(q, k).mean(), data["out.loss"], rtol=1e-12)


def favor(module: Any, name: str) -> None:
    """Gradients hold the stabilizer fixed."""
    data, _ = published(name)
    inputs = [data[f"in.{x}"] for x in "qkv"]
    options: Any = {"projection": data["w.projection_matrix"]}
    np.testing.assert_allclose(module.favor_attention(*inputs, **options), data["out.y"], **FORWARD)
    options["stabilizer_gradient"] = "detached"
    _assert_gradients(data, module.favor_attention_vjp(*inputs, data["cot.y"], **options))


def efficient(module: Any, name: str) -> None:
    """The module is the operator between 1x1 convolutions, heads being contiguous channels."""
    data, meta = published(name)
    heads = meta.get("head_count", meta.get("heads", 2 if "2heads" in name else 1))
    sets = projected(data, ("queries", "keys", "values"))
    parts = [np.stack(np.split(y, heads, -1), 1) for y in sets]
    kind = "scaling" if "scaling" in name else "softmax"
    each = module.efficient_attention(*parts, normalization=kind)
    out = np.concatenate(list(each.swapaxes(0, 1)), -1)
    weight, bias = data["w.reprojection.weight"][:, :, 0, 0], data["w.reprojection.bias"]
    x = data["in.x"].reshape(*data["in.x"].shape[:2], -1).swapaxes(1, 2)
    assert_output(data, out @ weight.T + bias + x)


def permutohedral(module: Any, name: str) -> None:
    """Queries are keys: their gradients are one."""
    data, _ = published(name)
    f, v, dout = (np.ascontiguousarray(data[key][0].T) for key in ("in.f", "in.v", "cot.y"))
    out = module.permutohedral_attention(f, f, v, normalize=False)
    np.testing.assert_allclose(out, data["out.y"][0].T, **FORWARD)
    out, lse = module.permutohedral_attention(f, f, v, return_lse=True)
    np.testing.assert_allclose(out, data["out.normalised"][0].T, **FORWARD)
    np.testing.assert_allclose(np.exp(lse), data["aux.filtered_ones"][0, 0], **FORWARD)
    for kind, normalize in (("grad", False), ("gradnorm", True)):
        dq, dk, dv = module.permutohedral_attention_vjp(f, f, v, dout, normalize=normalize)
        np.testing.assert_allclose(dq + dk, data[f"{kind}.in.f"][0].T, **GRADIENT)
        np.testing.assert_allclose(dv, data[f"{kind}.in.v"][0].T, **GRADIENT)


def cross_scale(module: Any, name: str) -> None:
    """Between 1x1 convolutions with PReLU."""
    data, meta = published(name)
    x, scale = data["in.x"].transpose(0, 2, 3, 1), meta["scale"]

    def embedded(name: str, x: Any) -> Any:
        weight, bias = data[f"w.{name}.0.weight"][:, :, 0, 0], data[f"w.{name}.0.bias"]
        y = x @ weight.T + bias
        return np.where(y > 0, y, data[f"w.{name}.1.weight"] * y)

    q, v = embedded("conv_match_1", x), embedded("conv_assembly", x)
    k = embedded("conv_match_2", module.downscale(x, scale))
    floor = float(data["w.escape_NaN"][0])
    out = module.cross_scale_attention(q, k, v, scale=scale, floor=floor, overlap="divide")
    want = data["out.y"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-12)
