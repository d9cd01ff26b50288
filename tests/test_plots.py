"""Pictures say the truth: colours, dots and numbers are read back from the figures."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest

from nlattn import plots
from nlattn.plots import base, field

pytestmark = pytest.mark.plain

pytest.importorskip("matplotlib")

REACH = 100.0


def drawn(axes) -> bytes:
    to = io.BytesIO()
    axes.figure.savefig(to, format="png", dpi=40)
    return to.getvalue()


def some_weights() -> np.ndarray:
    weights = np.zeros((3, 20, 30))
    weights[0, 5, 7], weights[0, 15, 25] = 0.75, 0.25
    weights[1, 0, 0] = 1
    return weights


def test_an_overlay_shows_each_query_and_its_numbers():
    image = np.random.default_rng(0).random((20, 30, 3))
    main = plots.overlay(image, some_weights(), np.array([[1, 2], [3, 4], [5, 6]]), title="T")
    titles = [axes.get_title() for axes in main.figure.axes]
    assert titles[:4] == [
        "T", "1: (1, 2)\n2 keys\ntop 0.75", "2: (3, 4)\n1 keys\ntop 1", "3: (5, 6)\n0 keys\ntop 0"
    ]  # fmt: skip
    assert main.figure.axes[-1].get_xlabel().startswith("attention weight\nwhite frame")
    assert drawn(main).startswith(b"\x89PNG")


def test_panels_stand_in_reading_order():
    queries = np.array([[i, i] for i in range(7)])
    weights = np.random.default_rng(0).random((7, 12, 12))
    main = plots.overlay(np.zeros((12, 12, 1)), weights, queries)
    main.figure.canvas.draw()
    panels = main.figure.axes[1:8]
    places = [(-round(a.get_position().y0, 2), a.get_position().x0) for a in panels]
    assert places == sorted(places)


@pytest.mark.parametrize("size", [1.0, 1e-5, 1e-30])
def test_colours_span_the_weights_there_are(size: float):
    weights = size * np.random.default_rng(0).uniform(0.2, 1, (2, 9, 9))
    main = plots.overlay(np.zeros((9, 9, 1)), weights, np.array([[1, 2], [3, 4]]))
    shown = main.figure.axes[1].images[1]
    assert shown.norm.vmin <= weights.min() * 1.001
    assert shown.norm.vmax == weights.max()
    assert not np.ma.getmaskarray(shown.get_array()).any()


def test_captured_mass_and_exact_weights_stand_beside_renormalised_ones():
    queries, mass, exact = np.array([[1, 2], [3, 4], [5, 6]]), [0.5, 0.2, 0], [0.4, 0.1, 0]
    main = plots.overlay(
        np.zeros((20, 30, 1)), some_weights(), queries, mass=np.array(mass), exact=np.array(exact)
    )
    assert main.figure.axes[1].get_title() == "1: (1, 2)\n2 keys hold 0.5\ntop 0.75, truly 0.4"
    assert main.figure.axes[-1].get_xlabel().startswith("weight among the keys kept")


def test_a_point_that_sees_itself_has_a_ring():
    weights = np.zeros((2, 6, 7))
    weights[0, 3, 4] = weights[1, 0, 0] = 1
    main = plots.overlay(np.zeros((6, 7, 1)), weights, np.array([[3, 4], [2, 2]]))
    assert [a.get_title().split("\n")[0] for a in main.figure.axes[1:3]] == [
        "1: (3, 4), sees itself", "2: (2, 2)"
    ]  # fmt: skip
    rings = [line for line in main.lines if line.get_marker() == "o"]
    assert {(line.get_xdata()[0], line.get_ydata()[0]) for line in rings} == {(4, 3)}


def test_whole_numbers_are_colours_too():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    main = plots.overlay(image, np.ones((1, 5, 6)), np.array([[0, 0]]))
    assert np.allclose(main.images[0].get_array(), image / 255)
    panels = plots.mechanisms(image, {"a": np.ones((5, 6))}, (0, 0))
    assert np.allclose(panels[0].images[0].get_array(), image / 255)


def test_pictures_are_drawn_where_told():
    from matplotlib.figure import Figure

    one, two, three = Figure().subplots(1, 3)
    assert plots.overlay(np.ones((4, 5, 1)), np.ones((1, 4, 5)), [[0, 0]], ax=one) is one
    assert plots.match_field(np.zeros((4, 5), int), (4, 5), ax=two) is two
    assert plots.heat(np.ones((4, 5)), "ones", ax=three, log=True) is three


def test_a_logarithm_spans_four_decades():
    x = np.geomspace(1e-20, 1, 100).reshape(10, 10)
    ax = plots.heat(x, "x", title="T", log=True)
    assert 1e-4 * 0.5 < ax.images[0].norm.vmin < 1e-4 * 1.1
    assert drawn(ax)
    with pytest.raises(ValueError, match="heat: values has shape"):
        plots.heat(np.ones(3), "x")


def test_one_query_and_grey_keys_of_another_picture():
    image, keys = np.ones((4, 5, 1)), np.zeros((20, 30, 1))
    assert drawn(plots.overlay(image, some_weights()[:1], np.array([[0, 0]]), keys=keys))


def test_a_single_key_is_drawn_as_a_dot_of_its_weight():
    weights = np.zeros((9, 9))
    weights[4, 4], weights[4, 5] = 0.5, 0.25
    spread = base.dots(weights, 2)
    assert spread[4, 2] == spread[2, 4] == 0.5
    assert spread[4, 7] == 0.25
    assert spread[0, 0] == spread[4, 8] == 0
    assert spread.max() == 0.5


def test_no_displacement_is_the_palest_colour_and_directions_differ():
    zero = field._hue(np.zeros(1), np.zeros(1), REACH)
    assert np.allclose(zero, zero[0, 0], atol=1e-3)
    assert zero.min() > 0.9
    turn = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    ring = field._hue(50 * np.sin(turn), 50 * np.cos(turn), REACH)
    apart = np.abs(ring[:, None] - ring[None]).sum(-1)
    assert apart[~np.eye(8, dtype=bool)].min() > 0.15


def test_longer_is_darker_in_every_direction():
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    lengths = np.array([0, 1, 10, 100.0])[:, None]
    colours = field._hue(lengths * np.sin(turn), lengths * np.cos(turn), REACH)
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance, axis=0) < 0).all()


def test_displacements_count_from_the_mapped_place():
    index = np.array([[0, 5], [8, -1]])
    down, right = field._displacement(index, (3, 3))
    # queries (0, 0), (0, 1), (1, 0) stand at keys (0, 0), (0, 2), (2, 0)
    assert down[0].tolist() == [0, 1]
    assert right[0].tolist() == [0, 0]
    assert (down[1, 0], right[1, 0]) == (0, 2)


@pytest.mark.parametrize("shape", [(20, 30), (1, 50), (60, 1)])
def test_a_field_is_drawn_with_its_wheel(shape: tuple[int, int]):
    index = np.random.default_rng(1).integers(-1, shape[0] * shape[1], shape)
    main = plots.match_field(index, shape)
    shown = main.images[0].get_array()
    assert np.allclose(shown[index < 0], 0.6)
    assert any("from query to key" in axes.get_title() for axes in main.figure.axes)
    assert drawn(main)


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
        "ax = plots.match_field(np.zeros((4, 4), int), (4, 4))\n"
        "ax.figure.savefig('/dev/null', format='png')\n"
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
    panels = plots.mechanisms(image, weights, (2, 7))
    assert [axes.get_title() for axes in panels] == ["the query", *weights]
    panels[0].figure.canvas.draw()
