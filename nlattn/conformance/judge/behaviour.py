"""How a backend behaves, beside being right: each rule is a verdict of its own.

    inputs         arrays that were passed in, and the memory beside them, are left as they were
    aliasing       no result shares memory with an input, or with a result of an earlier call
    repeatable     the same call twice gives the same bits, a small one and one of many rows
    dtype          results are not narrower than what was given
    heads          a slice of the leading axes alone gives what it gives among the others; the
                   same bits, where the backend says that it is deterministic by the batch
    keys           keys, values and masks in another order give the same result
    linear         twice the values give twice the result
    refusal        arrays that do not fit each other are refused
    bias           errors of all forward cases together are not of one sign (`judge/bias.py`)

Results of two calls may differ by the sum of their bounds; only `repeatable` asks for bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from nlattn._types import Array, JsonObject
from nlattn.conformance.backends.perform import Reply
from nlattn.conformance.backends.process import Died
from nlattn.conformance.case import Case, dtype_of
from nlattn.conformance.cases.recipes import given_per_head
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.truth.arithmetic import Arithmetic, precision
from nlattn.conformance.truth.bounds import allowed, exact, ratios

RULES = (
    "inputs", "aliasing", "repeatable", "dtype", "heads", "keys", "linear", "refusal", "bias",
)  # fmt: skip
_LARGER = ("both-200", "queries-300", "tiles", "square", "even")
"""Cases on which a workspace of an earlier call, or blocks in any order, would show; best first."""
Ask = Callable[[Case], Reply]


def behaviours(
    ask: Ask,
    cases: Iterable[Case],
    flaws: Mapping[tuple[str, str], list[str]],
    sure: bool | str = True,
    arithmetic: Callable[[str], Arithmetic] = Arithmetic.of,
) -> Iterator[Verdict]:
    """Verdicts of every operator and dtype that `cases` show on plain arrays.

    `flaws` are what the calls so far have told, by operator and dtype. `sure` is what the backend
    says of its bits: False, and it is not asked to repeat itself; "batch", and a head alone must
    give the same bits. `arithmetic` is that of a dtype.
    """
    cases = list(cases)
    for case in behaved(cases):
        label = case.name.rsplit("/", 1)[-1]
        rules = _rules(case, label, sure, arithmetic(case.dtype), larger(cases, case))
        try:
            first = ask(case)
            if first.unsupported or first.raised or not _shaped(case, first.outputs):
                continue
            for name, rule in rules.items():
                base = Verdict(f"{case.op}/behaviour/{case.dtype}/{name}", "pass", seed=case.seed)
                if name == "repeatable" and not sure:
                    yield replace(base, status="unsupported", detail="not deterministic, it says")
                    continue
                try:
                    wrong = rule(ask, case, first)
                except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                    wrong = f"{type(error).__name__}: {error}"
                yield replace(base, status="fail", detail=wrong) if wrong else base
        except Died as end:
            yield Verdict(f"{case.op}/behaviour/{case.dtype}/{label}", end.status, detail=str(end))
            continue
        if label == "primes":
            for name in ("inputs", "aliasing"):
                told = [x for x in flaws.get((case.op, case.dtype), []) if x.startswith(name)]
                base = Verdict(f"{case.op}/behaviour/{case.dtype}/{name}", "pass", seed=case.seed)
                yield replace(base, status="fail", detail=told[0]) if told else base


def behaved(cases: Iterable[Case]) -> list[Case]:
    """The cases that behaviour is seen on."""
    seen = ("primes", "heads")
    return [
        case
        for case in cases
        if case.kind == "forward" and case.name.rsplit("/", 1)[-1] in seen and not case.error
    ]


def larger(cases: Iterable[Case], case: Case) -> Case | None:
    """A forward case of the same operator and dtype with many rows, without options of its own."""
    alike = {
        other.name.rsplit("/", 1)[-1]: other
        for other in cases
        if other.op == case.op and other.dtype == case.dtype and other.kind == case.kind
    }
    return next((alike[x] for x in _LARGER if x in alike and not alike[x].error), None)


def _rules(
    case: Case, label: str, sure: bool | str, how: Arithmetic, more: Case | None
) -> dict[str, Callable[[Ask, Case, Reply], str]]:
    if case.results_in:  # of codes: rows in another order would need their scales so, too
        return {"repeatable": partial(_repeatable, more)} if label == "primes" else {}
    if label == "heads":
        return {"heads": partial(_heads, how, bits=sure == "batch")}
    rules: JsonObject = {"repeatable": partial(_repeatable, more)}
    if case.spec.cases.bound == "analysis" and case.spec.cases.result == "numbers":
        rules["dtype"] = _dtype
    if "keys" in case.spec.behaviour:
        rules["keys"] = partial(_keys, how)
    if "linear" in case.spec.behaviour:
        rules["linear"] = partial(_linear, how)
    if {"q", "k"} <= set(case.arrays):
        rules["refusal"] = _refusal
    return rules


def _repeatable(more: Case | None, ask: Ask, case: Case, first: Reply) -> str:
    wrong = _again(ask, case, first)
    if wrong or more is None:
        return wrong
    first = ask(more)
    known = not (first.unsupported or first.raised) and _shaped(more, first.outputs)
    return _again(ask, more, first) if known else ""


def _again(ask: Ask, case: Case, first: Reply) -> str:
    again = ask(case)
    for flaw in again.flaws:
        if flaw.startswith("aliasing"):
            return flaw
    for name, x in first.outputs.items():
        y = again.outputs.get(name)
        if y is None or y.shape != x.shape or y.dtype != x.dtype:
            return f"{name} has another shape or dtype from one call to the next"
        if y.tobytes() != x.tobytes():
            numbers = np.argwhere((y != x) & ((y == y) | (x == x)))
            at = tuple(map(int, numbers[0])) if len(numbers) else None
            what = f"{len(numbers)} places, first {at}: {x[at]}, {y[at]}" if at else "signs or NaN"
            return f"{name} differs from one call to the next: {what}"
    return ""


def _shaped(case: Case, outputs: Mapping[str, Array]) -> bool:
    """Whether results have the shapes that they should; what they hold is judged elsewhere."""
    want = exact(case)
    return all(name in outputs and outputs[name].shape == x.shape for name, x in want.items())


def _dtype(_: Ask, case: Case, first: Reply) -> str:
    """Results are of the dtype of what was given, or of a wider one."""
    own = dtype_of(case.dtype)
    for name, x in first.outputs.items():
        if x.dtype.kind in "biu" or precision(x.dtype).unit > precision(own).unit:
            return f"{name} has dtype {x.dtype}, of arrays of {own}"
    return ""


def _heads(how: Arithmetic, ask: Ask, case: Case, first: Reply, bits: bool = False) -> str:
    """The last slice alone."""
    lead = len(case.arrays[next(iter(case.spec.arrays))].shape) - len(
        next(iter(case.spec.arrays.values())).split()
    )
    arrays = {
        name: np.ascontiguousarray(x[(-1,) * lead]) if given_per_head(case.spec, name) else x
        for name, x in case.arrays.items()
    }
    if any(name.startswith("support") for name in arrays):
        return ""
    alone = ask(replace(case, arrays=arrays)).outputs
    among = {name: x[(-1,) * lead] for name, x in first.outputs.items()}
    slack = {name: x[(-1,) * lead] for name, x in allowed(case, how).items()}
    if bits and any(alone[n].tobytes() != among[n].tobytes() for n in among if n in alone):
        return "the last head alone has other bits than among the others"
    return _differ(alone, among, slack, "the last head alone")


def _keys(how: Arithmetic, ask: Ask, case: Case, first: Reply) -> str:
    order = np.random.default_rng(case.seed).permutation(case.arrays["k"].shape[-2])
    arrays = {n: x[..., order, :] if n in ("k", "v") else x for n, x in case.arrays.items()}
    moved = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    other = ask(replace(case, arrays=moved)).outputs
    return _differ(other, first.outputs, allowed(case, how), "keys in another order")


def _linear(how: Arithmetic, ask: Ask, case: Case, first: Reply) -> str:
    arrays = dict(case.arrays)
    arrays["v"] = arrays["v"] + arrays["v"]
    twice = {n: x.astype(float) / 2 for n, x in ask(replace(case, arrays=arrays)).outputs.items()}
    return _differ(twice, first.outputs, allowed(case, how), "half the result of twice the values")


def _refusal(ask: Ask, case: Case, _: Reply) -> str:
    """Keys with a channel more than queries; values of a key fewer."""
    k = case.arrays["k"]
    wider = np.concatenate([k, k[..., :1]], -1)
    if ask(_with(case, k=wider)).outputs:
        return "accepts keys of more channels than queries have"
    if "keys" not in case.spec.behaviour:
        return ""
    short = np.ascontiguousarray(case.arrays["v"][..., :-1, :])
    accepted = ask(_with(case, v=short)).outputs
    return "accepts values of fewer keys than there are" if accepted else ""


def _with(case: Case, **arrays: Array) -> Case:
    return replace(case, arrays={**case.arrays, **arrays}, error="shapes that do not fit")


def _differ(
    got: Mapping[str, Array], want: Mapping[str, Array], bound: Mapping[str, Array], what: str
) -> str:
    for name, x in want.items():
        if name not in got or got[name].shape != x.shape:
            return f"{what}: {name} has another shape"
        mine, other = got[name].astype(np.float64), x.astype(np.float64)
        worst = float(ratios(mine, other, 2 * bound[name]).max(initial=0))
        if worst > 1:
            return f"{what}: {name} differs by {worst:.3g} bounds"
    return ""
