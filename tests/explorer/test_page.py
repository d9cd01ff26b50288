"""The page in a real browser: the pointer, the keyboard, a link, a phone, the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn.explorer import Layer, page
from tests import browser

pytestmark = pytest.mark.skipif(browser.FOUND is None, reason="no Chromium is installed")
H, W = 12, 16
PLACE = "document.getElementById('place').textContent"
READY = f"{PLACE}.startsWith('Pixel')"


def ring(step: int) -> nlattn.AttentionMap:
    """Every pixel looks at the one `step` further, more, and at itself, less."""
    here = np.arange(H * W)
    support = nlattn.support_from_index(np.stack([here, (here + step) % (H * W)], 1), H * W)
    q = np.eye(H * W)
    k = 2.0 * np.roll(q, step, 0) + q
    return nlattn.sparse_attention_map(q, k, support, scale=1.0)


@pytest.fixture(scope="module")
def window() -> Iterator[browser.Browser]:
    with browser.Browser() as one:
        yield one


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("pages")
    image = np.random.default_rng(0).random((H, W, 3))
    height = Layer(np.arange(H * W, dtype=float).reshape(H, W), "the height")
    (to / "one.html").write_text(page(image, ring(3), layers={"height": height}))
    (to / "two.html").write_text(page(image, {"three": ring(3), "five": ring(5)}))
    small = np.random.default_rng(1).random((3, 4, 1))
    q, k = np.random.default_rng(2).random((H * W, 2)), np.random.default_rng(3).random((12, 2))
    across = nlattn.attention_map(q, k)
    (to / "across.html").write_text(page(image, across, keys=small))
    return to


@pytest.fixture
def opened(window: browser.Browser, folder: Path):
    def open_page(name: str, place: str = "", **size) -> browser.Browser:
        window.window(**{"width": 1200, "height": 800, **size})
        window.open(folder / name, place)
        window.until(READY)
        return window

    return open_page


def centre(page: browser.Browser, row: int, column: int) -> tuple[float, float]:
    """Where a pixel stands in the window."""
    box = page.run(
        "(b => [b.left, b.top, Math.min(b.width / 16, b.height / 12)])"
        "(document.querySelector('#stage canvas').getBoundingClientRect())"
    )
    return box[0] + (column + 0.5) * box[2], box[1] + (row + 0.5) * box[2]


def test_a_link_names_the_pixel_and_the_layer(opened):
    page = opened("one.html", "#2,3,matches")
    # It looks at key 2 * 16 + 3 + 3 = 38 with weight e^2 / (e^2 + e) = 0.73.
    page.until(f"{PLACE} === 'Pixel (2, 3): looks at (2, 6), weight 0.73'")
    assert page.run("document.querySelector('[aria-pressed=true]').textContent") == "matches"
    assert page.run("document.querySelectorAll('.patches canvas').length") == 3
    assert page.run("document.querySelector('.map p').textContent").startswith(
        "2 keys shown hold 1"
    )


def test_the_pointer_asks_and_a_click_holds(opened):
    page = opened("one.html")
    page.mouse("mouseMoved", *centre(page, 4, 5))
    page.until(f"{PLACE}.startsWith('Pixel (4, 5): looks at (4, 8)')")
    page.mouse("mousePressed", *centre(page, 4, 5))
    page.mouse("mouseReleased", *centre(page, 4, 5))
    page.mouse("mouseMoved", *centre(page, 9, 9))
    page.until("location.hash === '#4,5,photograph'")
    assert page.run(PLACE).startswith("Pixel (4, 5)")


def test_the_keyboard_moves_and_chooses(opened):
    page = opened("one.html", "#4,5")
    page.press("ArrowRight")
    page.press("ArrowDown", shift=True)
    page.until(f"{PLACE}.startsWith('Pixel (11, 6)')")  # ten further would be outside
    page.press("ArrowUp")
    page.press("g")
    page.until(f"{PLACE}.startsWith('Pixel (10, 9)')")
    for _ in range(3):
        page.press("l")
    page.until("location.hash.endsWith('height')")
    # Levels of 0.5 to 99.5 percent of 0 to 191 are 0.74 apart: 169 within half of it.
    page.until(f"{PLACE}.endsWith('height 170')")
    assert page.run("document.querySelectorAll('#legend canvas').length") == 1


def test_two_maps_stand_side_by_side_with_their_difference(opened):
    page = opened("two.html", "#0,0,difference")
    # Half of |0.73 - 0| + |0.27 - 0.27| + |0 - 0.73|: 0.73.
    page.until(f"{PLACE}.endsWith('difference 0.73')")
    assert page.run("document.querySelectorAll('#stage canvas').length") == 2
    words = page.run(PLACE)
    assert "three: looks at (0, 3)" in words
    assert "five: looks at (0, 5)" in words


def test_keys_on_another_picture_have_their_own(opened):
    page = opened("across.html", "#1,1")
    labels = page.run("[...document.querySelectorAll('#stage canvas')].map(c => c.ariaLabel)")
    assert labels == [
        "Picture, 12 by 16 pixels queries", "Picture, 3 by 4 pixels keys: attention"
    ]  # fmt: skip


def test_colours_of_the_picture_are_those_drawn(opened):
    page = opened("one.html", "#11,15")
    drawn = page.run(
        "(c => [...c.getContext('2d').getImageData(c.width / 32, c.height / 24, 1, 1).data])"
        "(document.querySelector('#stage canvas'))"
    )
    image = np.random.default_rng(0).random((H, W, 3))
    assert drawn == [*np.rint(image[0, 0] * 255), 255]


def test_a_phone_shows_all_of_it(opened):
    page = opened("one.html", "#4,5", width=390, height=800, phone=True)
    assert page.run("document.documentElement.scrollWidth <= 390")
    assert page.run("document.querySelector('#stage canvas').getBoundingClientRect().width > 340")
    assert page.run("[...document.querySelectorAll('button')].every(b => b.offsetHeight >= 40)")


def test_the_dark_is_dark(opened):
    page = opened("one.html")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.run(colour)
    page.ask(
        "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    assert (light, page.run(colour)) == ("rgb(255, 255, 255)", "rgb(22, 24, 28)")


def test_it_asks_nothing_of_a_network_and_says_no_error(opened):
    page = opened("one.html")
    asked = [
        e["params"]["request"]["url"]
        for e in page.events
        if e["method"] == "Network.requestWillBeSent"
    ]
    assert all(url.startswith(("file:", "about:")) for url in asked), asked
    wrong = ("Runtime.exceptionThrown", "Log.entryAdded")
    assert not [e for e in page.events if e["method"] in wrong]
