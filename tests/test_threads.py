"""Results are the same bits for any number of threads, and from several Python threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.cases import calls as cases
from tests.helpers import for_any_threads
from tests.test_inputs import KINDS, flat, label

# Several tiles of queries and of keys, none of them full.
SIZES = {"n": 300, "m": 530, "Hq": 17, "Wq": 19, "Hk": 23, "Wk": 21, "d": 5, "e": 3}
SIZES |= {"H": 37, "W": 70}

pytestmark = pytest.mark.jit


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("spec", "kind"), KINDS, ids=label)
def test_any_number_of_threads_gives_the_same_bits(spec: Any, kind: Any, dtype: type) -> None:
    lead = () if kind == "map" or not spec.heads else (2,)
    arguments = cases.call(spec, kind, sizes=SIZES, lead=lead, dtype=dtype)
    for_any_threads(lambda: flat(spec.function(kind)(**arguments)))


@pytest.mark.parametrize(("spec", "kind"), KINDS, ids=label)
def test_python_threads_do_not_meet(spec: Any, kind: Any) -> None:
    arguments = cases.call(spec, kind)
    want = flat(spec.function(kind)(**arguments))
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(spec.function(kind), **arguments) for _ in range(8)]
    for call in calls:
        for a, b in zip(flat(call.result()), want, strict=True):
            np.testing.assert_array_equal(a, b)
