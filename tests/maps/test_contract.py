"""What every attention map promises, whatever its structure: one class of tests for all of them.

Each row of the table that has a map, or whose result is one, gives a map; `MORE` adds the other
pairings and options that make a map of their own kind. A class of maps that none of them makes
fails the last test.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nlattn
import nlattn.maps
from nlattn.conformance.cases.calls import SIZES, call
from nlattn.conformance.table import TABLE, OpSpec
from nlattn.maps.base import AttentionMap
from nlattn.maps.on_disk import DiskMap

Make = Callable[[Any, dict[str, int]], AttentionMap]


def of_row(spec: OpSpec, kind: Any, **options: Any) -> Make:
    def make(dtype: Any, sizes: dict[str, int]) -> AttentionMap:
        arguments = {**call(spec, kind, dtype=dtype, sizes=sizes), **options}
        return spec.function(kind)(**arguments)  # type: ignore[no-any-return]

    return make


class Dims(str):
    """An array of these dimensions, ``Dims("n m")``."""

    __slots__ = ()


def of(name: str, **options: Any) -> Make:
    """A map of an operator with some of its options."""
    (spec,) = (row for row in TABLE if row.name == name)

    def make(dtype: Any, sizes: dict[str, int]) -> AttentionMap:
        rng, size = np.random.default_rng(1), {**SIZES, "2d": 2 * SIZES["d"], **sizes}

        def given(value: Any) -> Any:
            if not isinstance(value, Dims):
                return value
            return rng.standard_normal([size[dim] for dim in value.split()]).astype(dtype)

        made = of_row(spec, "map", **{name: given(value) for name, value in options.items()})
        return made(dtype, sizes)

    return make


def rows_with_a_map() -> Iterator[tuple[str, Make]]:
    for spec in TABLE:
        if spec.has_map:
            yield f"{spec.name}_map", of_row(spec, "map")
        elif spec.growth.counted == "entries":
            yield spec.name, of_row(spec, "")


def permutohedral(normalize: bool) -> Make:
    def make(dtype: Any, sizes: dict[str, int]) -> AttentionMap:
        rng, size = np.random.default_rng(1), {**SIZES, **sizes}
        q, k = (rng.standard_normal((size[rows], 3)).astype(dtype) for rows in "nm")
        return nlattn.permutohedral_attention_map(q, k, normalize=normalize)

    return make


def on_disk(dtype: Any, sizes: dict[str, int]) -> AttentionMap:
    A: Any = of("sparse_attention")(dtype, sizes)
    return DiskMap(A.support, A.weights, A.edge_scores, A.lse, A.work)


MORE: dict[str, Make] = {
    "band": of("attention", causal=True, window=(1, None)),
    "biased": of("attention", bias=Dims("n m"), softcap=2.0),
    "gaussian": of("nonlocal_mean", pairwise="gaussian"),
    "dot product": of("nonlocal_mean", pairwise="dot_product"),
    "concatenation": of("nonlocal_mean", pairwise="concatenation", weight=Dims("2d")),
    "plain factors": of("efficient_attention", normalization="scaling"),
    "random features": of("favor_attention", kernel="relu"),
    "one learned query": of("qna", bias=Dims("t kh kw"), query=1, stride=2),
    "gated windows": of("qna", bias=Dims("t kh kw"), gate=Dims("t kh kw")),
    "average": of("cross_scale_attention", overlap="average"),
    "divide": of("cross_scale_attention", overlap="divide"),
    "absolute powers": of("sparse_attention", weight="abspow", power=1.0),
    "lattice": permutohedral(normalize=True),
    "published lattice": permutohedral(normalize=False),
    "aggregated votes": of("psal", aggregate=True),
    "files": on_disk,
}
MAPS = {**dict(rows_with_a_map()), **MORE}
EMPTY_AXES = {"n": 0}, {"m": 0}, {"n": 0, "m": 0}


def made(name: str, dtype: Any = np.float64, **sizes: int) -> AttentionMap:
    return MAPS[name](dtype, sizes)


def close(A: AttentionMap) -> dict[str, Any]:
    """Sums of some numbers of the map's dtype."""
    return {"rtol": 1e4 * np.finfo(A.dtype).eps, "atol": 64 * np.finfo(A.dtype).eps}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MAPS)
class TestAttentionMap:
    def test_it_says_what_it_is(self, name: str, dtype: Any) -> None:
        A = made(name, dtype)
        assert A.dtype == dtype
        assert np.prod(A.query_grid) == A.shape[0]
        assert np.prod(A.key_grid) == A.shape[1]
        assert A.nbytes > 0
        assert all(isinstance(count, int) and count >= 0 for count in A.work[:3])
        if A.work.per_query is not None:
            assert A.work.per_query.sum() == A.work.scores

    def test_products_are_those_of_the_matrix(self, name: str, dtype: Any) -> None:
        A, rng = made(name, dtype), np.random.default_rng(2)
        dense, (n, m) = A.to_dense(), A.shape
        assert dense.shape == A.shape
        assert dense.dtype == dtype
        x, y = rng.standard_normal((m, 3)), rng.standard_normal((n, 3))
        np.testing.assert_allclose(A @ x, dense @ x.astype(dtype), **close(A))
        np.testing.assert_allclose(A.T @ y, dense.T @ y.astype(dtype), **close(A))
        np.testing.assert_array_equal(A @ x[:, 0], (A @ x[:, :1])[:, 0])
        assert (A @ x).dtype == dtype

    def test_the_adjoint_is_the_adjoint(self, name: str, dtype: Any) -> None:
        A, rng = made(name, dtype), np.random.default_rng(3)
        x, y = (
            rng.standard_normal(size) + 1j * rng.standard_normal(size) for size in A.shape[::-1]
        )
        np.testing.assert_allclose(np.vdot(y, A @ x), np.vdot(A.H @ y, x), **close(A))
        twice = (2 * A.T @ A) @ x  # SciPy's operators are made of ours
        np.testing.assert_allclose(twice, 2 * (A.T @ (A @ x)), **close(A))

    def test_what_has_another_shape_is_refused(self, name: str, dtype: Any) -> None:
        A = made(name, dtype)
        for op, B, grid in (("@", A, A.key_grid), (".T @", A.T, A.query_grid)):
            size = B.shape[1]
            for x in (np.ones(size + 1), np.ones((1, size, 3)), np.ones(())):
                text = f"attention_map{'' if op[0] == '.' else ' '}{op} x: x has shape {x.shape}, "
                with pytest.raises(ValueError, match=re.escape(f"{text}expected ({size},) or (")):
                    B.dot(x)
            if len(grid) > 1:
                with pytest.raises(ValueError, match=rf"; x\.reshape\({size}, -1\) has it$"):
                    B @ np.ones((*grid, 3))
            with pytest.raises(TypeError, match=r"^attention_map: A\S* is no array; A\.to_dense"):
                np.asarray(B)  # else NumPy makes one entry of it, of dtype object

    def test_rows_are_those_of_the_matrix(self, name: str, dtype: Any) -> None:
        A = made(name, dtype)
        dense, n = A.to_dense(), A.shape[0]
        for index in (0, [n - 1, 0, 0], np.arange(n).reshape(1, n), np.uint8(1)):
            np.testing.assert_allclose(A.rows(index), dense[np.asarray(index)], **close(A))
        for bad in (-1, n):
            with pytest.raises(ValueError, match=rf"attention_map.rows: index holds {bad}, "):
                A.rows(bad)
        with pytest.raises(MemoryError, match=r"attention_map.rows: needs .* above max_bytes=1 B"):
            A.rows(0, max_bytes=1)

    def test_the_largest_weights_are_those_of_the_rows(self, name: str, dtype: Any) -> None:
        A = made(name, dtype)
        dense, (n, m) = A.to_dense(), A.shape
        for k in (1, 3, m):
            values, keys = A.topk(k)
            assert values.shape == keys.shape == (n, k)
            assert values.dtype == dtype
            none = keys < 0
            assert not values[none].any()
            held = np.take_along_axis(dense, np.maximum(keys, 0), 1)
            np.testing.assert_allclose(values, np.where(none, 0, held), **close(A))
            kept = np.where(none, -np.inf, values)
            assert (kept[:, :-1] >= kept[:, 1:]).all()  # largest first, what is missing last
            given = np.where(dense == 0, -np.inf, dense)
            best = -np.sort(-given, 1)[:, :k]
            some = np.isfinite(best) & ~none
            np.testing.assert_allclose(values[some], best[some], **close(A))
            for row in range(n):
                assert len(set(keys[row][keys[row] >= 0])) == (keys[row] >= 0).sum()
        with pytest.raises(
            ValueError, match=rf"attention_map.topk: k={m + 1}, expected at most {m}"
        ):
            A.topk(m + 1)

    def test_rows_are_what_their_normaliser_makes_of_scores(self, name: str, dtype: Any) -> None:
        A = made(name, dtype)
        dense, n = A.to_dense(), A.shape[0]
        if A.normalised:
            assert (dense >= 0).all()
            some = A.lse > -np.inf
            np.testing.assert_allclose(dense.sum(1), some, **close(A))
            assert A.lse.shape == (n,)
            assert A.lse.dtype == np.float64
        if name in ("qna_map", "gated windows"):  # a sum of several softmaxes
            with pytest.raises(ValueError, match=r"attention_map.scores: the map is a sum of 2"):
                A.scores(0)
            return
        scores = A.scores(np.arange(n))
        assert scores.shape == A.shape
        assert not dense[np.isneginf(scores)].any()
        if A.normalised and name != "absolute powers":
            weights = np.exp(scores.astype(float) - np.where(some, A.lse, 0)[:, None])
            np.testing.assert_allclose(dense, weights, **close(A))

    def test_sparse_and_dense_agree(self, name: str, dtype: Any) -> None:
        A = made(name, dtype)
        sparse = A.to_csr()
        assert sparse.dtype == dtype
        np.testing.assert_allclose(sparse.toarray(), A.to_dense(), **close(A))
        for convert in (A.to_csr, A.to_dense):
            with pytest.raises(MemoryError, match="above max_bytes=1 B; use rows"):
                convert(max_bytes=1)

    def test_a_saved_map_comes_back(self, name: str, dtype: Any, tmp_path: Path) -> None:
        A = made(name, dtype)
        A.save(tmp_path / "map.npz")
        B = nlattn.load_map(tmp_path / "map.npz")
        assert isinstance(A, type(B))  # what stays on the disk is read back into memory
        assert (B.shape, B.dtype, B.normalised) == (A.shape, A.dtype, A.normalised)
        assert (B.query_grid, B.key_grid, B.work[:3]) == (A.query_grid, A.key_grid, A.work[:3])
        np.testing.assert_array_equal(B.work.per_query, A.work.per_query)
        np.testing.assert_array_equal(B.to_dense(), A.to_dense())
        np.testing.assert_array_equal(B @ np.eye(A.shape[1]), A @ np.eye(A.shape[1]))
        np.testing.assert_array_equal(getattr(B, "lse", 0), getattr(A, "lse", 0))
        assert B.nbytes == A.nbytes or type(A) is not type(B)

    def test_no_columns_and_no_rows(self, name: str, dtype: Any) -> None:
        A = made(name, dtype)
        n, m = A.shape
        for product, size in ((A @ np.zeros((m, 0)), n), (A.T @ np.zeros((n, 0)), m)):
            assert product.shape == (size, 0)
            assert product.dtype == dtype
        for index in ([], np.zeros((2, 0), int)):
            assert A.rows(index).shape == (*np.shape(index), m)

    def test_no_queries_or_no_keys(self, name: str, dtype: Any, tmp_path: Path) -> None:
        """A map of nothing is made and answers, where its operator takes such arrays."""
        for sizes in EMPTY_AXES:
            A = made(name, dtype, **sizes)
            n, m = A.shape
            some = np.arange(n)
            assert (A @ np.ones((m, 2))).shape == (n, 2)
            assert (A.T @ np.ones((n, 2))).shape == (m, 2)
            assert not (A @ np.ones(m)).any() or m
            assert not (A.T @ np.ones(n)).any() or n
            assert A.to_dense().shape == A.rows(some).shape == A.to_csr().shape == (n, m)
            values, keys = A.topk(1)
            assert values.shape == keys.shape == (n, 1)
            if not m:
                assert (keys == -1).all()
                assert not values.any()
                assert np.isneginf(getattr(A, "lse", -np.inf)).all()
            A.save(tmp_path / "map.npz", overwrite=True)
            B = nlattn.load_map(tmp_path / "map.npz")
            assert isinstance(A, type(B))
            assert (B.shape, B.dtype) == ((n, m), A.dtype)
            assert A.nbytes >= 0


def test_every_class_of_maps_is_made() -> None:
    for module in pkgutil.iter_modules(nlattn.maps.__path__):
        importlib.import_module(f"nlattn.maps.{module.name}")
    known: set[type[AttentionMap]] = set()
    open_ends = [AttentionMap]
    while open_ends:
        known |= {open_ends[-1]}
        open_ends.extend(set(open_ends.pop().__subclasses__()) - known)
    made_here = {type(made(name)) for name in MAPS}
    known = {x for x in known if x.__module__.startswith("nlattn.")}  # not those of other tests
    missing = {x.__name__ for x in known - {AttentionMap} - made_here}
    assert not missing, f"no map of class {', '.join(sorted(missing))}: add one to MORE"
