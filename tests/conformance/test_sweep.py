"""Sweeps: a wrong backend is found and its least failing case told, a right one is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.cli import main
from nlattn.conformance.backends.adapters.numpy import Backend
from nlattn.conformance.cases.arrays import lay
from nlattn.conformance.cases.suite import make
from nlattn.conformance.runner import Here
from nlattn.conformance.sweep import LAYOUTS, sweep, torn
from nlattn.conformance.table import TABLE, OpSpec, find
from nlattn.conformance.table.recipe import Recipe
from nlattn.oracle.dense import attention

pytestmark = pytest.mark.plain

pytest.importorskip("hypothesis")
ONE: Any = {"ops": ("attention",), "dtypes": ("float64",)}


class Odd:
    """Wrong where there are more than two keys and several queries."""

    def capabilities(self) -> dict[str, Any]:
        return {"operators": ["attention"]}

    def attention(self, q: Any, k: Any, v: Any, **options: Any) -> Any:
        with np.errstate(all="ignore"):
            got = attention(q, k, v, **options)
        out, *lse = got if isinstance(got, tuple) else (got,)
        bad = k.shape[-2] > 2 and q.shape[-2] > 1
        return (out + bad, *lse) if lse else out + bad


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["forward", "vjp", "jvp"])
def test_keys_that_rounding_chooses_are_told_from_others(kind: Any, dtype: str) -> None:
    """Of as many keys as channels each has a leverage of 1."""

    def case(keys: int, *extra: str) -> Any:
        sizes = {"n": 1, "m": keys, "d": 5, "e": 1}
        recipe = Recipe("drawn", {"keys": 4} if extra else {}, sizes, extra=extra)
        return make(find("lev_attention"), recipe, kind, dtype, 1)

    assert torn(case(5, "index:own"))
    assert not torn(case(12, "index:own"))
    assert not torn(case(5))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_least_failing_case_is_told(seed: int) -> None:
    forward, gradient = sweep(Here(Odd()), 60, pattern="*/sweep", seed=seed, **ONE)
    assert forward.case == "attention/forward/float64/sweep"
    assert forward.failed
    assert "least case that fails: q (2, 1), k (3, 1), v (3, 1), numbers 0" in forward.detail
    assert forward.seed == seed
    assert (gradient.status, gradient.detail) == ("unsupported", "has no method attention_vjp")


def test_the_same_seed_draws_the_same() -> None:
    one, other = (list(sweep(Here(Backend()), 10, seed=3, **ONE)) for _ in range(2))
    assert [v.ratio for v in one] == [v.ratio for v in other]


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_every_case_drawn_is_one_that_the_oracle_computes(spec: OpSpec, monkeypatch: Any) -> None:
    monkeypatch.setattr("nlattn.conformance.sweep.LARGEST", 5)
    for verdict in sweep(Here(Backend()), 2, ops=(spec.name,), dtypes=("float32",)):
        assert verdict.status in ("pass", "suspicious"), verdict.detail
        assert verdict.case.endswith("/sweep")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_layouts_change_no_shape_and_no_number(layout: str, shape: tuple[int, ...]) -> None:
    x = np.arange(6.0)[: int(np.prod(shape))].reshape(shape)
    laid = lay(x, layout)
    assert laid.shape == shape
    np.testing.assert_array_equal(laid, x)


def test_from_the_command_line(tmp_path: Any, capsys: Any) -> None:
    module = tmp_path / "mine.py"
    module.write_text(
        "def mine(q, k, v, *, causal=False, scale=None):\n"
        "    from nlattn.oracle.dense import attention\n"
        "    return attention(q, k, v, causal=causal, scale=scale) + (q.shape[-2] > 3)\n"
    )
    words = ["validate", f"{module}:mine", "--op", "attention", "--dtypes", "float64"]
    assert main([*words, "--sweep", "20", "--seed", "7", "--case", "*/sweep"]) == 1
    said = capsys.readouterr().out
    assert "q (4, 1), k (1, 1), v (1, 1)" in said
    assert "--sweep 20 --seed 7 --case attention/forward/float64/sweep" in said
    assert np.count_nonzero([line.startswith("FAIL") for line in said.splitlines()]) == 1
