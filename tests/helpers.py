"""What several tests share: derivatives by complex step, published vectors, the rule of error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nlattn

DATA = Path(__file__).parent / "data"


def complex_step(function: Callable[..., Any], inputs: Sequence[Any]) -> list[Any]:
    """Gradients of a real function of arrays: ``Im f(x + i h) / h`` has no cancellation."""
    step, gradients = 1e-30, []
    for number, x in enumerate(inputs):
        gradient = np.zeros_like(x)
        for index in np.ndindex(np.shape(x)):
            moved = [np.array(a, complex) for a in inputs]
            moved[number][index] += 1j * step
            gradient[index] = np.imag(function(*moved)) / step
        gradients.append(gradient)
    return gradients


def assert_gradients(
    got: Sequence[Any],
    function: Callable[..., Any],
    inputs: Sequence[Any],
    tolerance: float = 4e-15,
) -> None:
    """Gradients agree with the complex step to rounding, relative to the largest."""
    for gradient, want in zip(got, complex_step(function, inputs), strict=True):
        assert gradient.shape == want.shape
        largest = max(1, abs(want).max(initial=0))
        np.testing.assert_allclose(gradient, want, rtol=0, atol=tolerance * largest)


def published(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and description of a run of a paper's own module."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key != "meta"}, json.loads(
            str(file["meta"])
        )


def for_any_threads(call: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    """The arrays that a call gives, the same bits with one thread, two, and all there are."""
    before, found = nlattn.threads(), []
    try:
        for count in sorted({1, min(2, nlattn.max_threads()), nlattn.max_threads()}):
            nlattn.set_threads(count)
            found.append(call())
    finally:
        nlattn.set_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    return found[0]


def joined(runs: Sequence[tuple[Any, Any, Any]]) -> Iterator[list[Any]]:
    """Of runs (got, plain, exact), each result as one row: an average error needs many numbers."""
    for each in zip(*runs, strict=True):
        yield [np.concatenate([np.ravel(x) for x in same]) for same in zip(*each, strict=True)]


def assert_as_exact_as_numpy(got: Any, plain: Any, exact: Any) -> None:
    """Lists of results: root mean square error at most twice that of NumPy, plus one spacing.

    `got` and `plain` are of one dtype, `plain` by the plain transcription; `exact` is wider.
    """
    for number, (a, b, c) in enumerate(zip(got, plain, exact, strict=True)):
        assert a.shape == b.shape == c.shape
        assert a.dtype == b.dtype
        error, allowed = (np.sqrt(np.mean((x - c) ** 2)) for x in (a, b))
        spacing = np.spacing(a.dtype.type(abs(c).max(initial=0)))
        assert error <= 2 * allowed + spacing, f"result {number}: {error} against {allowed}"
