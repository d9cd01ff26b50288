"""``nlattn validate``: its table, its failures, its exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nlattn.cli import main
from nlattn.conformance.report.text import from_data

pytestmark = pytest.mark.plain

FILE = """
import numpy as np

class Backend:
    name = "zeros"
    def capabilities(self):
        return {"dtypes": ["float32"]}
    def attention(self, q, k, v, *, causal=False):
        return np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
"""


@pytest.fixture
def zeros(tmp_path: Path) -> str:
    (tmp_path / "zeros.py").write_text(FILE)
    return str(tmp_path / "zeros.py")


def test_a_wrong_backend_is_rejected(capsys: Any, zeros: str) -> None:
    code = main(["validate", zeros, "--operators", "attention", "--case", "*/forward/*/[cp]*"])
    out, err = capsys.readouterr()
    assert (code, err) == (1, "")
    assert "FAIL attention/forward/float32/causal\n" in out
    assert f"again: nlattn validate {zeros} --case attention/forward/float32/causal" in out
    assert re.search(r"attention: (\d+) of \d+ cases judged: forward; float32; n ", out)
    assert "not asked" not in out  # operators were asked for
    assert re.search(r", smoke: 6 pass, 23 fail, \d+ unsupported in", out)


def test_one_case_as_data(capsys: Any) -> None:
    code = main(["validate", "numpy", "--case", "attention/forward/float32/causal", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["backend"] == "numpy"
    assert [v["status"] for v in report["verdicts"]] == ["pass"]
    assert from_data(report).counts() == {"pass": 1}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nobody.py"], "nobody.py: no such file"),
        (["numpy", "--operators", "fast"], "--operators: 'fast' is no operator; there are"),
        (["numpy", "--case", "x"], "no case of this tier has such a name, operator and dtype"),
        (["numpy", "--case", "x", "--sweep", "3"], "no case of this tier has such a name"),
        (["numpy", "--dtypes", "int4", "--sweep", "3"], "no case of this tier has such a name"),
    ],
)
def test_wrong_use_is_said(capsys: Any, words: list[str], text: str) -> None:
    assert main(["validate", *words]) == 2
    assert f"nlattn: {text}" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["torch", "jax"])
def test_a_missing_library_is_named(
    module: str, capsys: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    text = f"raise ModuleNotFoundError('No module named {module}', name='{module}')\n"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(["validate", module, "--operators", "attention"]) == 3
    said = capsys.readouterr().err
    assert f"{module} is not installed; python -m pip install 'nlattn[{module}]' brings it" in said


SHOWN = """
import numpy as np

class Backend:
    def capabilities(self):
        return {"operators": ["attention"], "stages": True}
    def attention_stages(self, q, k, v):
        raw = q @ k.T / np.sqrt(q.shape[1])
        weights = np.exp(raw) / np.exp(raw).sum()
        return {"raw": raw, "weights": weights, "output": weights @ v}
    def attention(self, q, k, v):
        return self.attention_stages(q, k, v)["output"]
"""


@pytest.mark.parametrize("shows", [True, False])
def test_stages_that_a_backend_shows_are_compared(shows: bool, tmp_path: Any, capsys: Any) -> None:
    file = tmp_path / "shown.py"
    file.write_text(SHOWN if shows else SHOWN.replace("True", "False"))
    assert main(["validate", str(file), "--case", "attention/forward/float64/primes"]) == 1
    said = "raw is right, weights is the first stage that differs: at [0, 0]"
    assert (said in capsys.readouterr().out) == shows


TF32 = """
import numpy as np

def attention(q, k, v, *, scale=None):
    def short(x):  # TF32 keeps eleven bits
        m, e = np.frexp(x.astype(np.float32))
        return np.ldexp(np.round(m * 2**11) / 2**11, e).astype(np.float32)
    scale = np.float32(q.shape[-1] ** -0.5 if scale is None else scale)
    s = (short(q) @ np.swapaxes(short(k), -1, -2)) * scale
    p = np.exp(s - s.max(-1, keepdims=True))
    return (short(p) @ short(v)) / p.sum(-1, keepdims=True)
"""


def test_the_arithmetic_may_be_said_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "short.py"
    file.write_text(TF32)
    words = ["validate", f"{file}:attention", "--op", "attention", "--dtypes", "float32"]
    words += ["--case", "attention/*/ev*"]
    assert main(words) == 1
    assert "computed in float16 or TF32" in capsys.readouterr().out
    assert main([*words, "--products", "tf32"]) == 0
    assert main([*words, "--products", "3xtf32"]) == 1
    assert "--products 3xtf32 --case attention/forward/float32/ev" in capsys.readouterr().out


NARROW = """
import numpy as np
from nlattn.conformance import capable

@capable(dtypes=("float16",))
def mine(q, k, v, *, causal=False):
    return np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
"""


def test_the_replay_of_a_backend_of_16_bits_alone_works_as_printed(
    capsys: Any, tmp_path: Path
) -> None:
    """Some cases are of wide dtypes for all others."""
    (tmp_path / "narrow.py").write_text(NARROW)
    words = ["validate", f"{tmp_path}/narrow.py:mine", "--op", "attention"]
    assert main([*words, "--case", "*/causal"]) == 1
    again = re.search(r"again: nlattn (validate .*)", capsys.readouterr().out)
    assert again is not None
    assert again[1].split()[-1] == "attention/forward/float16/causal"
    assert main(again[1].split()) == 1
    assert "FAIL attention/forward/float16/causal" in capsys.readouterr().out
