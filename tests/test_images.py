"""Images are read as they look, refused in one line, and their features are what they say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from nlattn import images
from nlattn.engines import components

pytest.importorskip("PIL")
from PIL import Image

PHOTOGRAPH_SHA256 = "a8c429c18afa7b0fd5673e598d73a21225d94c864a71bbb3885126fdecb41071"
RGB = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 8, 7], [255, 255, 255], [0, 0, 0]]])


def test_the_photograph_is_the_one_its_note_describes():
    x = images.photograph()
    assert x.shape == (512, 512, 3)
    assert x.dtype == np.float32
    pixels = np.rint(x * 255).astype(np.uint8)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == PHOTOGRAPH_SHA256


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_colours_are_read_as_stored(tmp_path: Path, suffix: str):
    path = tmp_path / f"x{suffix}"
    flat = np.broadcast_to(np.uint8([200, 100, 50]), (16, 24, 3))
    Image.fromarray(flat).save(path)
    x = images.load(path)
    assert x.shape == (16, 24, 3)
    assert np.abs(x * 255 - flat).max() <= (2 if suffix == ".jpg" else 1e-4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_pixel_is_read(tmp_path: Path, mode: str):
    colour = Image.fromarray(RGB.astype(np.uint8))
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    if mode.startswith("I"):
        Image.fromarray(np.array([[0, 65535, 257]], np.uint16)).convert(mode).save(path)
        expected = np.array([[[0], [1], [257 / 65535]]])
    else:
        colour.convert(mode).save(path)
        expected = (
            np.asarray(colour.convert("1").convert("L") if mode == "1" else colour.convert("L"))
            if mode in ("1", "L", "LA")
            else RGB
        ) / 255
    x = images.load(path)
    assert x.dtype == np.float32
    assert np.abs(x - expected.reshape(x.shape)).max() < (0.3 if mode == "P" else 1e-6)


def test_transparency_is_laid_on_white(tmp_path: Path):
    Image.fromarray(np.uint8([[[10, 20, 30, 0], [10, 20, 30, 255]]]), "RGBA").save(
        tmp_path / "x.png"
    )
    assert np.allclose(images.load(tmp_path / "x.png") * 255, [[[255] * 3, [10, 20, 30]]])


def test_an_image_is_turned_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(RGB.astype(np.uint8)).save(tmp_path / "x.png", exif=exif)
    assert np.allclose(images.load(tmp_path / "x.png") * 255, np.rot90(RGB, -1))


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "float", "deep", "many"])
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, damage: str):
    path = tmp_path / "x.png"
    limit = 64_000_000
    if damage == "text":
        path.write_text("no image")
    elif damage == "empty":
        path.touch()
    elif damage == "cut":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:4000])
    elif damage == "float":
        path = path.with_suffix(".tif")
        Image.fromarray(np.ones((3, 3), np.float32)).save(path)
    elif damage == "deep":
        path = path.with_suffix(".tif")
        Image.fromarray(np.full((3, 3), 70000, np.int32)).save(path)
    else:
        Image.fromarray(RGB.astype(np.uint8)).save(path)
        limit = 5
    with pytest.raises(ValueError, match=f"^load: .*{path.name}") as caught:
        images.load(path, max_pixels=limit)
    assert "\n" not in str(caught.value)
    if damage == "many":
        assert "it has 3 x 2 pixels, above 5" in str(caught.value)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read: .*400000000 pixels"):
        images.load(tmp_path / "bomb.png")


def test_a_missing_file_is_missing(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        images.load(tmp_path / "nowhere.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_saving_rounds_to_8_bits(tmp_path: Path, channels: int):
    x = np.random.default_rng(0).random((5, 4, channels))
    x[0, 0] = 1.7
    images.save(tmp_path / "x.png", x)
    back = images.load(tmp_path / "x.png")
    assert back.shape == x.shape
    assert np.abs(back - np.clip(x, 0, 1)).max() <= 0.5 / 255 + 1e-6


def patches_of(x: np.ndarray, width: int) -> np.ndarray:
    """Reflect-padded patches, one by one: (H, W, C width width)."""
    r = width // 2
    padded = np.pad(x, ((r, r), (r, r), (0, 0)), mode="reflect")
    return np.array(
        [
            [
                padded[i : i + width, j : j + width].transpose(2, 0, 1).ravel()
                for j in range(x.shape[1])
            ]
            for i in range(x.shape[0])
        ]
    )


def test_features_are_principal_components():
    x = np.random.default_rng(1).random((9, 11, 3))
    f = images.patch_features(x, patch=3, channels=5, dtype=np.float64).reshape(-1, 5)
    vectors = patches_of(x, 3).reshape(-1, 27)
    left, sigma, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    expected = left[:, :5] * sigma[:5] / np.sqrt(27)
    assert np.allclose(np.abs(f), np.abs(expected), atol=1e-9)


def test_all_components_keep_the_distances_of_patches():
    x = np.random.default_rng(2).random((6, 7, 1))
    f = images.patch_features(x, patch=3, channels=9, dtype=np.float64).reshape(-1, 9)
    vectors = patches_of(x, 3).reshape(-1, 9)
    apart = [((a[:, None] - a[None]) ** 2).sum(-1) for a in (f, vectors)]
    assert np.allclose(apart[0], apart[1] / 9, atol=1e-12)


@pytest.mark.parametrize("gain", [1.0, 1.5, 3.0])
def test_queries_look_for_their_own_patch_but_stronger(gain: float):
    f = np.random.default_rng(3).standard_normal((4, 5, 3))
    q, k = (x.reshape(-1, 4) for x in images.queries_and_keys(f, gain=gain))
    flat = f.reshape(-1, 3)
    apart = -((gain * flat[:, None] - flat) ** 2).sum(-1) / (2 * gain)
    difference = q @ k.T - apart
    assert np.allclose(difference, difference[:, :1])
    assert abs(k[:, -1].mean()) < 1e-12
    if gain == 1:
        assert ((q @ k.T).argmax(1) == np.arange(20)).all()


def test_features_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch):
    x = np.random.default_rng(3).random((13, 8, 3)).astype(np.float32)
    whole = images.patch_features(x, patch=3, channels=4)
    monkeypatch.setattr(components, "_BLOCK", 16)
    assert np.abs(images.patch_features(x, patch=3, channels=4) - whole).max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 1), (4, 5, 3)])
def test_flat_and_tiny_images_have_features(shape: tuple[int, ...]):
    f = images.patch_features(np.full(shape, 0.3), patch=5, channels=7)
    assert f.shape == (*shape[:2], 7)
    assert not f.any()
    assert images.softmax_scale(*images.queries_and_keys(f)) == 1.0


def test_the_scale_spreads_attention_as_asked():
    f = images.patch_features(np.random.default_rng(4).random((12, 12, 3)), patch=3, channels=8)
    q, k = images.queries_and_keys(f)
    scale = images.softmax_scale(q, k, keys=6, rows=1000)
    logits = scale * q.reshape(-1, 9).astype(float) @ k.reshape(-1, 9).T
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(1)
    assert np.isclose(np.median(np.exp(entropy)), 6, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"image": np.ones((3, 24, 32))},
            r"patch_features: image has shape \(3, 24, 32\), expected channels last; np.move",
        ),
        (
            {"image": np.ones((3, 3))},
            r"patch_features: image has shape \(3, 3\), expected \(H, W, C\); image\[\.\.\., None",
        ),
        ({"image": np.ones((0, 3, 1))}, "none of them 0"),
        ({"image": np.full((3, 3, 1), np.nan)}, "image holds NaN or infinities"),
        ({"patch": 4}, "patch=4 is even, expected an odd width so that its centre is a pixel"),
        ({"channels": 28}, "channels=28, expected at most 27"),
        ({"dtype": np.float16}, "dtype=float16 is unknown here, expected float32 or float64"),
    ],
)
def test_wrong_features_are_refused(change: dict, text: str):
    arguments = {"image": np.ones((4, 4, 3)), "patch": 3, "channels": 2, **change}
    with pytest.raises(ValueError, match=text):
        images.patch_features(**arguments)


def test_complex_images_and_flat_features_are_refused():
    with pytest.raises(TypeError, match="image has dtype complex128"):
        images.patch_features(np.ones((3, 3, 1), complex))
    with pytest.raises(TypeError, match="image is a str, expected an array"):
        images.patch_features("photograph.jpg")
    with pytest.raises(
        ValueError, match=r"softmax_scale: q has shape \(3, 2\), expected \(Hq, Wq, d\)"
    ):
        images.softmax_scale(np.ones((3, 2)), np.ones((3, 2)))


F = np.random.default_rng(0).random((3, 4, 2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: images.softmax_scale(F, F[..., :1]), r"k has shape \(3, 4, 1\), expected"),
        (
            lambda: images.softmax_scale(F, F * np.nan),
            r"k\[0, 0, 0\] is nan, expected finite values$",
        ),
        (lambda: images.softmax_scale(F, F.astype(np.float32)), "arrays must share one dtype"),
        (lambda: images.softmax_scale(F[None], F), r"q has leading axes \(1,\), expected one head"),
        (lambda: images.softmax_scale(F, F, seed=-1), "seed=-1, expected at least 0"),
        (
            lambda: images.queries_and_keys(F * np.inf),
            r"features\[.*\] is inf, expected finite values$",
        ),
        (
            lambda: images.queries_and_keys(F, gain=10**400),
            "gain=10000.*is more than a float holds",
        ),
        (
            lambda: images.patch_features(F, dtype="nonsense"),
            "dtype='nonsense' is none, expected float32",
        ),
        (lambda: images.save("x.png", F[..., :1], bits=True), "bits=True is no integer"),
        (
            lambda: images.save("x.xyz", F[..., :1]),
            "^save: a '.xyz' file cannot be written: unknown",
        ),
        (
            lambda: images.save("x.jpg", F[..., :1], bits=16),
            "^save: a .jpg file holds 8 bits, expe",
        ),
        (
            lambda: images.save("x.png", F),
            r"image has shape \(3, 4, 2\), expected \(H, W, 1 or 3\)",
        ),
    ],
)
def test_features_and_options_that_do_not_fit_are_refused(call, text: str):
    with pytest.raises((TypeError, ValueError), match=text):
        call()


def test_gaussian_points_have_the_weights_of_queries_and_keys() -> None:
    f = np.random.default_rng(0).standard_normal((4, 5, 3))
    q, k = (x.reshape(20, -1) for x in images.queries_and_keys(f, gain=1.7))
    x, y = (z.reshape(20, -1) for z in images.gaussian_points(f, scale=0.6, gain=1.7))
    P = np.exp(0.6 * q @ k.T)
    G = np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / 2)
    np.testing.assert_allclose(G / G.sum(1, keepdims=True), P / P.sum(1, keepdims=True), rtol=1e-10)
    assert images.gaussian_points(f, scale=1.0, channels=2)[0].shape == (4, 5, 2)
    with pytest.raises(ValueError, match=r"gaussian_points: scale=-1.0, expected a positive"):
        images.gaussian_points(f, scale=-1.0)
