"""What every operator is named alike, from its row; and what is not named by chance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import Case
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.coarse import PRECISION
from nlattn.conformance.judge.diagnosis import diagnose
from nlattn.conformance.judge.measure import call_of
from nlattn.conformance.judge.variants.gradients import wrong
from nlattn.conformance.truth.bounds import exact, wide
from nlattn.conformance.truth.transcription import transcription

pytestmark = pytest.mark.plain


def first(op: str, pattern: str) -> Case:
    return next(cases("smoke", (op,), ("float64", "float32"), pattern))


def answer(c: Case, **changes: Any) -> dict[str, np.ndarray]:
    made = call_of(c).given(**changes)()
    return dict(zip(c.outputs, made if isinstance(made, tuple) else (made,), strict=False))


@pytest.mark.parametrize(
    ("op", "axis", "words"),
    [
        ("efficient_attention", "m", "without the keys after the last whole block of 64"),
        ("refined_self_attention", "d", "without the channels after the last whole block of 64"),
        ("nearest_keys", "m", "without the keys after the last whole block of 64"),
        ("index_scores", "h", "without the heads after the last whole block of 2"),
    ],
)
def test_lost_tails_have_names_in_every_operator(op: str, axis: str, words: str) -> None:
    case = {"m": "keys-300", "d": "channels-72", "h": "primes"}[axis]
    c = first(op, f"{op}/forward/*/{case}")
    changed = {}
    for name, dims in c.spec.arrays.items():
        letters = dims.split()
        if axis in letters:
            x, at = np.asarray(c.arrays[name], float), letters.index(axis)
            kept = x.shape[at] // (2 if axis == "h" else 64) * (2 if axis == "h" else 64)
            if axis == "d":
                x = x * (np.arange(x.shape[at]) < kept)
                changed[name] = x
            else:
                changed[name] = np.take(x, range(kept), at)
    assert words in diagnose(c, answer(c, **changed))


def test_pages_and_windows_have_the_names_of_attention() -> None:
    c = first("paged_attention", "paged_attention/forward/float32/alibi")
    offset = c.options["causal_offset"]
    slopes = c.arrays["alibi"][:, None, None]
    i, j = np.arange(c.arrays["q"].shape[-2])[:, None], np.arange(c.arrays["table"].shape[-1] * 4)
    bias = -slopes * abs(i - j)
    wrong = answer(c, alibi=None, bias=np.broadcast_to(bias, (*c.arrays["q"].shape[:-1], len(j))))
    assert "with a linear bias without the causal offset" in diagnose(c, wrong), offset
    c = first("neighbourhood_attention", "neighbourhood_attention/forward/float32/even")
    assert "scale" in diagnose(c, answer(c, scale=1.0))


def test_a_number_in_a_formula_is_found() -> None:
    c = first("efficient_attention", "efficient_attention/forward/float32/primes")
    q, k, v = (np.asarray(c.arrays[n], float) for n in "qkv")
    Q, K = np.exp(q), np.exp(k)
    out = Q / Q.sum(-1, keepdims=True) @ ((K / (K.sum(-2, keepdims=True) + 0.01)).T @ v)
    moved = np.exp(k - k.max(-2))
    own = Q / Q.sum(-1, keepdims=True) @ ((moved / (moved.sum(-2) + 0.01)).T @ v)
    assert diagnose(c, {"out": own}).startswith(
        "your output equals ours with 0.01 added to `total`"
    )
    assert "0.01 added to `total`" not in diagnose(c, {"out": out})


def test_errors_that_hold_together_are_no_less_precision() -> None:
    c = first("attention", "attention/forward/float32/even")
    want = exact(c)["out"]
    smooth = want + 3e-4 * np.sin(np.arange(want.shape[0]))[:, None] * np.ones(want.shape[1])
    assert PRECISION not in diagnose(c, {"out": smooth}, two=False)


def test_only_what_speaks_of_nan_explains_nan() -> None:
    c = first("efficient_attention", "efficient_attention/forward/float32/mask-none")
    said = diagnose(c, {"out": np.full(exact(c)["out"].shape, np.nan)})
    assert "divided by" not in said
    assert "no key get NaN" in said


def test_factors_are_told_by_options_first() -> None:
    c = first("certified_attention", "certified_attention/vjp/float32/gaussian")
    want = exact(c)
    said = diagnose(c, want | {n: 1.7 * want[n] for n in ("dq", "dk")}, two=False)
    assert "ours times bandwidth, 1.7, once too often" in said
    more = replace(c, options={**c.options, "bandwidth": 4.0})
    want = exact(more)
    assert "sqrt(bandwidth)" in diagnose(more, want | {"dq": 2 * want["dq"]}, two=False)


def test_tables_and_heads_have_names_in_every_operator() -> None:
    c = first("psal", "psal/forward/float32/no-matches")
    index = np.asarray(c.arrays["field.index"])
    wrong = answer(c, field__index=np.where(index < 0, c.arrays["k"][..., 0].size - 1, index))
    assert diagnose(c, wrong) == "your output equals ours with the last key for a match of -1"
    c = first("favor_attention", "favor_attention/forward/float32/heads")
    wrong = answer(c, k=np.broadcast_to(c.arrays["k"][:, :1], c.arrays["k"].shape).copy())
    assert "with the keys of the first head for all" in diagnose(c, wrong)
    want = exact(c)["out"]
    late = np.where(np.arange(want.shape[1])[:, None, None] > 1, want[..., ::-1], want)
    assert "not from head 2 on" in diagnose(c, {"out": late}, two=False)


def test_causality_off_by_one_has_a_name_where_there_is_a_mask() -> None:
    c = first("nearest_keys", "nearest_keys/forward/float32/causal")
    n, m = c.arrays["q"].shape[-2], c.arrays["k"].shape[-2]
    wrong = answer(c, causal=None, mask=np.tri(n, m, -1, dtype=bool))
    assert "causal by one key too few" in diagnose(c, wrong)


def test_whole_numbers_that_are_off_have_names() -> None:
    c = first("scram", "scram/forward/float32/field")  # its window is the default
    assert "with window = 5 in place of 3" in diagnose(c, answer(c, window=5))
    c = first("neighbourhood_attention", "neighbourhood_attention/forward/float32/window-2x4")
    said = diagnose(c, answer(c, window=[2, 3]))
    assert "with window = [2, 3] in place of [2, 4]" in said
    c = first("attention", "attention/forward/float32/window-blocks")
    assert diagnose(c, answer(c, window=[40, None])) == (
        "your output equals ours with the right side of the window open"
    )


def test_boxes_about_matches_have_names() -> None:
    c = first("scram", "scram/forward/float32/field")
    index = np.asarray(c.arrays["field.index"])[..., 0].ravel()
    (Hk, Wk), n = c.arrays["k"].shape[-3:-1], len(index)
    rows = [[j for j in range(Hk * Wk) if j // Wk == at // Wk and abs(j - at) < 2] for at in index]
    support = {
        "support__indptr": np.cumsum([0, *map(len, rows)]),
        "support__indices": np.concatenate(rows).astype(np.int32),
        "support__shape": np.array([n, Hk * Wk]),
    }
    said = diagnose(c, answer(c, field__index=None, **support))
    assert said == "your output equals ours with windows of one row"


def test_empty_entries_that_mark_a_key_have_a_name() -> None:
    c = first("sparse_attention", "sparse_attention/forward/float32/table")
    table, m = np.asarray(c.arrays["support.index"]), c.arrays["k"].shape[-2]
    marked = np.zeros((len(table), m), bool)
    np.put_along_axis(marked, np.where(table < 0, m - 1, table), True, -1)
    own = {
        "support__indptr": np.cumsum([0, *marked.sum(-1)]),
        "support__indices": np.nonzero(marked)[1].astype(np.int32),
    }
    said = diagnose(c, answer(c, **own))
    assert "with the last key for an empty entry, each key once" in said


def test_a_packed_sequence_that_is_lost_has_a_name() -> None:
    c = first("attention", "attention/forward/float32/packed")
    lost = {n: np.asarray(c.arrays[f"cu_seqlens_{n}"])[:-1] for n in "qk"}
    wrong = answer(c, cu_seqlens_q=lost["q"], cu_seqlens_k=lost["k"])
    assert diagnose(c, wrong) == (
        "your output equals ours without the last of the packed sequences"
    )


def test_sums_of_gradients_over_one_block_have_names() -> None:
    c = first("attention", "attention/vjp/float32/tiles")
    want, rows = exact(c), np.arange(c.arrays["dout"].shape[-2])[:, None]
    part = exact(replace(c, arrays={**c.arrays, "dout": c.arrays["dout"] * (rows >= 64)}))
    said = diagnose(c, {**want, "dk": part["dk"], "dv": part["dv"]}, two=False)
    assert "with dk and dv of the last block of queries alone, in blocks of 64" in said


@pytest.mark.parametrize("kind", ["forward", "vjp", "jvp"])
def test_a_blur_in_place_has_a_name_in_every_pass(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_place(z: Any, lattice: Any, order: Any) -> Any:
        z = z.copy()
        for j in order:
            for p, (up, down) in enumerate(zip(lattice.above[j], lattice.below[j], strict=True)):
                z[p] += (z[up] + z[down]) / 2
        return z

    c = first("permutohedral_attention", f"permutohedral_attention/{kind}/float32/even")
    with monkeypatch.context() as patch:
        patch.setattr("nlattn.oracle.permutohedral.blur", in_place)
        made = transcription(c.function, wide(c.arrays), c.options)
    each = made if isinstance(made, tuple) else (made,)
    said = diagnose(c, dict(zip(c.outputs, each, strict=True)))
    assert said.startswith("your output equals ours with axes blurred in place")


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("eps", [1e-10, 1e-6])
@pytest.mark.parametrize("turned", [False, True])
def test_divergences_with_an_epsilon_have_names(turned: bool, eps: float, clipped: bool) -> None:
    c = first("index_loss", "index_loss/forward/float64/primes")
    scores = 4 * c.arrays["scores"]
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    weights = np.where(p < np.median(p), 0, c.arrays["weights"])
    weights = np.where(c.arrays["weights"] < 1e-3, eps / 8, weights)
    c = replace(c, arrays={"scores": scores, "weights": weights})
    one, other = (p, weights) if turned else (weights, p)
    log = [np.log(np.maximum(x, eps) if clipped else x + eps) for x in (one, other)]
    said = diagnose(c, {"loss": (one * (log[0] - log[1])).sum(-1)})
    which = "the other way round: KL(softmax || weights), " if turned else ""
    how = f"with logarithms of {eps:.3g} at least" if clipped else f"with {eps:.3g} added in"
    assert said.startswith(f"your output equals ours {which}{how}")


@pytest.mark.parametrize("op", ["certified_attention", "sparse_attention", "qna"])
def test_a_wrong_bias_has_its_name_in_every_operator(op: str) -> None:
    c = next(x for x in cases("smoke", (op,), ("float32",)) if "bias" in x.arrays)
    bias = np.asarray(c.arrays["bias"], float)
    said = diagnose(c, answer(c, bias=call_of(c).scale * bias))
    assert said == "your output equals ours with the bias scaled like the scores"
    assert "with the bias subtracted" in diagnose(c, answer(c, bias=-bias))


def test_gradients_that_are_scattered_wrongly_have_names() -> None:
    c = first("lev_attention", "lev_attention/vjp/float32/primes")
    want, index = exact(c), c.arrays["index"]
    left = {n: np.zeros_like(want[n]) for n in ("dk", "dv")}
    for name, x in left.items():
        x[: len(index)] = want[name][index]
    said = diagnose(c, {**want, **left}, two=False)
    assert said.startswith("your output equals ours with gradients of chosen keys at the first")
    c = first("paged_attention", "paged_attention/vjp/float32/primes")
    want, table = exact(c), np.asarray(c.arrays["table"])
    got = want["dk_pages"].copy()
    for b, row in enumerate(table):
        alone = dict(c.arrays)
        for name in c.directions:
            alone[name] = np.array(alone[name])
            alone[name][np.arange(len(table)) != b] = 0
        part = exact(replace(c, arrays=alone))
        for page in row[row >= 0]:
            got[page] = part["dk_pages"][page]
    assert not np.allclose(got, want["dk_pages"])
    made = dict(wrong(c, want))
    found = made["with the part of the last sequence alone where several share a page"]
    np.testing.assert_allclose(found["dk_pages"], got)


def test_a_mistake_in_one_gradient_alone_has_its_name() -> None:
    c = first("lev_attention", "lev_attention/vjp/float32/primes")
    want, index = exact(c), c.arrays["index"]
    left = np.zeros_like(want["dk"])
    left[: len(index)] = want["dk"][index]
    said = diagnose(c, {**want, "dk": left}, two=False)
    assert said.startswith("your output equals ours with gradients of chosen keys at the first")
    assert said.endswith(", in dk alone")


@pytest.mark.parametrize(
    ("read", "written", "words"),
    [
        ("qkv", True, "with height and width exchanged"),
        ("qkv", False, "with grids read column by column, results written row by row"),
        ("kv", False, "with keys and values read by columns, not by rows"),
        ("q", True, "with the grid of queries read column by column"),
    ],
)
def test_grids_read_by_columns_have_names(read: str, written: bool, words: str) -> None:
    c = first("scram", "scram/forward/float64/primes")
    turned = {}
    for n in read:
        x = np.asarray(c.arrays[n], float)
        turned[n] = np.array([x[i, j] for j in range(x.shape[1]) for i in range(x.shape[0])])
        turned[n] = turned[n].reshape(x.shape)
    got = answer(c, **turned)
    if written:
        H, W = got["out"].shape[:2]
        rows = got["out"].reshape(H * W, -1)
        got = {"out": np.array([[rows[j * H + i] for j in range(W)] for i in range(H)])}
    assert diagnose(c, got).startswith(f"your output equals ours {words}")


def test_factors_of_queries_and_heads_are_told() -> None:
    c = first("attention", "attention/vjp/float32/bias-shared")
    want = exact(c)
    n = c.arrays["q"][..., 0].size
    assert "1/n" in diagnose(c, want | {"dbias": want["dbias"] / n}, two=False)


def test_the_mean_of_all_heads_has_a_name() -> None:
    c = first("enlca_loss", "enlca_loss/forward/float32/heads")
    want = exact(c)["out"]
    assert diagnose(c, {"out": np.full_like(want, want.mean())}) == (
        "your output is the mean of all of ours"
    )
