"""Every public name shows an example in its docstring, and it runs as printed."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nlattn
from tests import golden
from tests.layers import test_qna_upsample, test_window_attention

pytestmark = pytest.mark.jit

MODULES = ("images", "layers", "plots")
INSIDE = {"sample", "nearest_enough", "fitting_scale"}
"""Of `images`: for the command line."""
PUBLISHED = {
    "nonlocal_block": "nl_dot_product_plain_5x7",
    "sagan_block": "sagan_sa_5x7",
    "refined_block": "refined_sa_5x7",
    "efficient_attention_block": "ea_softmax_1head",
    "enlca_block": "enlca_eval_7x9",
    "cross_scale_block": "csnl_s2_6x8",
    "inscale_block": "csnln_inscale_nl_5x7",
    "multi_source_projection": "csnln_msp_s2",
    "sem_cell": "csnln_sem_s2",
    "pam_block": "pam_module_split2_3x4x5",
    "qna_block": "qna_k3_s1_5x7",
    "block_jvp": "sagan_sa_5x7",
}


def documented() -> dict[str, Any]:
    found = {name: getattr(nlattn, name) for names in nlattn._HOME.values() for name in names}
    for module in MODULES:
        for name, x in vars(getattr(nlattn, module)).items():
            home = getattr(x, "__module__", "")
            if inspect.isfunction(x) and home.startswith(f"nlattn.{module}") and name[0] != "_":
                found[f"{module}.{name}"] = x
    return {name: x for name, x in found.items() if name.split(".")[-1] not in INSIDE}


def given(name: str) -> dict[str, Any]:
    """What the page of the reference says that examples begin with."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 64, 8))
    start = {"np": np, "nlattn": nlattn, "rng": rng, "q": q, "k": k, "v": v}
    start |= {"grid": rng.normal(size=(16, 16, 8)), "image": nlattn.images.photograph()[::8, ::8]}
    block = name.removeprefix("layers.").removesuffix("_vjp").removesuffix("_map")
    if block in PUBLISHED:
        data = golden.load(PUBLISHED[block])
        x = data.arrays["in.x"] if block == "qna_block" else data["in.x"]  # one is channels-last
        start |= {"x": x, "weights": data.weights}
    elif block == "qna_upsample_block":
        start |= dict(zip(("x", "weights"), test_qna_upsample.case()[:2], strict=True))
    elif block == "window_attention_block":
        start |= dict(zip(("x", "weights"), test_window_attention.layer(True)[:2], strict=True))
    return start


@pytest.mark.parametrize("name", documented())
def test_its_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(documented()[name]) or ""
    assert ">>> " in text, f"{name} has no example"
    example = doctest.DocTestParser().get_doctest(text, given(name), name, None, None)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert not said, "".join(said)
