"""Tensors of other libraries go in without a copy and come out as what they were."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import pytest

import nlattn
from nlattn import tensors


class Tensor:
    """A tensor of a library that has DLPack and the array API, and no more."""

    def __init__(self, array: np.ndarray, device: int = 1):
        self.array, self.code = np.asarray(array), device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.code, 0

    @staticmethod
    def asarray(array: np.ndarray) -> Tensor:
        return Tensor(array)

    def __array_namespace__(self) -> type[Tensor]:
        return Tensor


@pytest.fixture
def qkv() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in ((5, 3), (7, 3), (7, 2))]


def test_results_are_of_the_library_of_the_first_tensor(qkv):
    out = nlattn.attention(*map(Tensor, qkv))
    assert type(out) is Tensor
    assert np.array_equal(out.array, nlattn.attention(*qkv))
    out, lse = nlattn.attention(Tensor(qkv[0]), *qkv[1:], return_lse=True)
    assert type(out) is type(lse) is Tensor
    bias = np.ones((5, 7))
    assert type(nlattn.attention(*qkv, bias=Tensor(bias))) is Tensor
    gradients = nlattn.attention_vjp(*map(Tensor, qkv), Tensor(np.ones((5, 2))))
    assert [type(x) for x in gradients] == [Tensor] * 3


def test_arrays_stay_arrays_and_maps_maps(qkv):
    assert type(nlattn.attention(*qkv)) is np.ndarray
    A = nlattn.attention_map(Tensor(qkv[0]), Tensor(qkv[1]))
    assert np.array_equal(A @ qkv[2], nlattn.attention_map(*qkv[:2]) @ qkv[2])


def test_nothing_is_copied(qkv):
    array, _ = tensors.taken("op", "q", Tensor(qkv[0]))
    assert np.shares_memory(array, qkv[0])


def test_memory_of_another_device_is_refused(qkv):
    text = r"attention: k lies on another device, expected the memory of the CPU; pass its copy"
    with pytest.raises(TypeError, match=text):
        nlattn.attention(qkv[0], Tensor(qkv[1], device=2), qkv[2])


def test_a_masked_array_is_no_tensor(qkv):
    with pytest.raises(TypeError, match="is a masked array, whose mask would be lost"):
        nlattn.attention(np.ma.masked_array(qkv[0]), *qkv[1:])


def test_public_functions_are_found_again_by_pickle():
    assert pickle.loads(pickle.dumps(nlattn.attention)) is nlattn.attention
    assert nlattn.attention.__doc__.startswith("Softmax attention")


class TestTorch:
    """The tensors of PyTorch, of which one cannot say all in DLPack."""

    torch = pytest.importorskip("torch") if tensors.__name__ else None

    def of(self, arrays, dtype=None):
        return [self.torch.from_numpy(x).to(dtype) for x in arrays]

    @pytest.mark.parametrize("name", ["float16", "float32", "float64", "bfloat16"])
    def test_any_dtype_comes_back(self, qkv, name: str):
        q, k, v = self.of(qkv, getattr(self.torch, name))
        out = nlattn.attention(q, k, v)
        assert out.dtype == q.dtype
        kind = ml_dtypes.bfloat16 if name == "bfloat16" else name
        want = nlattn.attention(*(x.double().numpy().astype(kind) for x in (q, k, v)))
        assert np.array_equal(out.double().numpy(), want.astype(float))

    @pytest.mark.parametrize("name", ["float32", "bfloat16"])
    def test_memory_is_shared(self, qkv, name: str):
        (x,) = self.of(qkv[:1], getattr(self.torch, name))
        array, _ = tensors.taken("op", "x", x)
        assert array.__array_interface__["data"][0] == x.data_ptr()

    def test_a_gradient_asked_of_plain_functions_is_refused_with_both_remedies(self, qkv):
        q, k, v = self.of(qkv)
        text = "k requires a gradient, .*nlattn.torch.attention differentiates, k.detach"
        with pytest.raises(TypeError, match=text):
            nlattn.attention(q, k.requires_grad_(), v)

    def test_what_is_no_plain_tensor_is_refused(self, qkv):
        q, k, v = self.of(qkv)
        with pytest.raises(TypeError, match=r"q is torch.sparse_coo"):
            nlattn.attention(q.to_sparse(), k, v)
        with pytest.raises(TypeError, match=r"q lies on meta, expected .*; pass q.cpu()"):
            nlattn.attention(q.to("meta"), k, v)

    def test_numbers_that_numpy_does_not_know_are_refused_by_name(self, qkv):
        q, k, v = self.of(qkv, self.torch.float32)
        text = r"^attention: k .*float8_e4m3fn.*; pass k\.float"
        with pytest.raises(TypeError, match=text):
            nlattn.attention(q, k.to(self.torch.float8_e4m3fn), v)

    def test_two_libraries_do_not_mix(self, qkv):
        with pytest.raises(TypeError, match=r"k is a tensor of .* beside one of torch"):
            nlattn.attention(self.of(qkv)[0], Tensor(qkv[1]), qkv[2])


@pytest.mark.parametrize("library", ["jax", "array_api_strict"])
def test_real_libraries(library: str, qkv):
    module = pytest.importorskip({"jax": "jax.numpy"}.get(library, library))
    given = [module.asarray(x.astype(np.float32)) for x in qkv]
    out = nlattn.attention(*given)
    assert type(out) is type(given[0])
    assert np.array_equal(np.asarray(out), nlattn.attention(*(x.astype(np.float32) for x in qkv)))


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError])
def test_what_an_object_says_of_itself_reaches_the_caller(error: type[Exception], qkv):
    class Own:
        def __array__(self, *_: object, **__: object) -> None:
            raise error("I am not ready")

    for call in (
        lambda: nlattn.attention(Own(), *qkv[1:]),
        lambda: nlattn.images.patch_features(Own()),
    ):
        with pytest.raises(error, match="I am not ready"):
            call()
