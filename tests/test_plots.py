"""Pictures say the truth: colours, dots and numbers are read back from the figures."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest

from nlattn import plots

pytest.importorskip("matplotlib")

REACH = 100.0


def drawn(figure) -> bytes:
    to = io.BytesIO()
    figure.savefig(to, format="png", dpi=40)
    return to.getvalue()


def some_weights() -> np.ndarray:
    weights = np.zeros((3, 20, 30))
    weights[0, 5, 7], weights[0, 15, 25] = 0.75, 0.25
    weights[1, 0, 0] = 1
    return weights


def test_an_overlay_shows_each_query_and_its_numbers():
    image = np.random.default_rng(0).random((20, 30, 3))
    figure = plots.overlay(image, some_weights(), np.array([[1, 2], [3, 4], [5, 6]]), title="T")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "T"
    assert "1: pixel (1, 2)\n2 keys, strongest 0.75" in titles
    assert "3: pixel (5, 6)\n0 keys, strongest 0" in titles
    assert any("attention weight" in axes.get_ylabel() for axes in figure.axes)
    assert drawn(figure).startswith(b"\x89PNG")


def test_one_query_and_grey_keys_of_another_picture():
    image, keys = np.ones((4, 5, 1)), np.zeros((20, 30, 1))
    figure = plots.overlay(image, some_weights()[:1], np.array([[0, 0]]), keys=keys)
    assert drawn(figure)


def test_a_single_key_is_drawn_as_a_dot_of_its_weight():
    weights = np.zeros((9, 9))
    weights[4, 4], weights[4, 5] = 0.5, 0.25
    spread = plots._dots(weights, 2)
    assert spread[4, 2] == spread[2, 4] == 0.5
    assert spread[4, 7] == 0.25
    assert spread[0, 0] == spread[4, 8] == 0
    assert spread.max() == 0.5


def test_no_displacement_is_the_palest_colour_and_directions_differ():
    zero = plots._hue(np.zeros(1), np.zeros(1), REACH)
    assert np.allclose(zero, zero[0, 0], atol=1e-3)
    assert zero.min() > 0.9
    turn = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    ring = plots._hue(50 * np.sin(turn), 50 * np.cos(turn), REACH)
    apart = np.abs(ring[:, None] - ring[None]).sum(-1)
    assert apart[~np.eye(8, dtype=bool)].min() > 0.15


def test_longer_is_darker_in_every_direction():
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    lengths = np.array([0, 1, 10, 100.0])[:, None]
    colours = plots._hue(lengths * np.sin(turn), lengths * np.cos(turn), REACH)
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance, axis=0) < 0).all()


def test_displacements_count_from_the_mapped_place():
    index = np.array([[0, 5], [8, -1]])
    down, right = plots._displacement(index, (3, 3))
    # queries (0, 0), (0, 1), (1, 0) stand at keys (0, 0), (0, 2), (2, 0)
    assert down[0].tolist() == [0, 1]
    assert right[0].tolist() == [0, 0]
    assert (down[1, 0], right[1, 0]) == (0, 2)


@pytest.mark.parametrize("shape", [(20, 30), (1, 50), (60, 1)])
def test_a_field_is_drawn_with_its_wheel(shape: tuple[int, int]):
    index = np.random.default_rng(1).integers(-1, shape[0] * shape[1], shape)
    figure = plots.match_field(index, shape)
    shown = figure.axes[0].images[0].get_array()
    assert np.allclose(shown[index < 0], 0.6)
    assert any("from query to key" in axes.get_title() for axes in figure.axes)
    assert drawn(figure)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: plots.overlay(np.ones((3, 3, 1)), np.ones((1, 2, 3)), np.array([[0, 0]])),
            r"overlay: weights has shape \(1, 2, 3\), expected \(1, 3, 3\) from the pictures",
        ),
        (
            lambda: plots.overlay(np.ones((3, 3, 2)), np.ones((1, 3, 3)), np.array([[0, 0]])),
            r"overlay: image has shape \(3, 3, 2\), expected \(H, W, 1 or 3\)",
        ),
        (lambda: plots.match_field(np.ones(3, int), (1, 3)), "match_field: index has shape"),
    ],
)
def test_wrong_shapes_are_refused(call, text: str):
    with pytest.raises(ValueError, match=text):
        call()


def test_matplotlib_keeps_its_settings():
    code = (
        "import matplotlib, numpy as np, sys\n"
        "from nlattn import plots\n"
        "def settings(): return {k: matplotlib.rcParams[k] for k in names}\n"
        "names = sorted(set(matplotlib.rcParams) - {'backend'})\n"  # reading it loads pyplot
        "before = settings()\n"
        "plots.match_field(np.zeros((4, 4), int), (4, 4)).savefig('/dev/null', format='png')\n"
        "print(before == settings(), 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_mechanisms_side_by_side() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((12, 15, 3))
    peak = np.zeros((12, 15))
    peak[3, 4] = 1
    weights = {"one key": peak, "signed": rng.standard_normal((12, 15)), "none": 0 * peak}
    figure = plots.mechanisms(image, weights, (2, 7))
    assert [axes.get_title() for axes in figure.axes] == ["the query", *weights]
    figure.canvas.draw()
