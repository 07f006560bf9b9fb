"""The page of a retraining in a real Chromium, opened from a file."""

import io

import numpy as np
import pytest
from headless_chromium import ENTER, TAB, Browser, skip_without_chromium
from PIL import Image
from qc_runs import HOSTILE_CASE
from result_page import coloured
from retrain_pages import example_page

from sslmedsam2.retrain.page import write_page_of

pytestmark = pytest.mark.slow

LABELS = "[...document.querySelectorAll('#round-2 table')].at(-1)"
CASES = f"return [...{LABELS}.tBodies[0].rows].map((row) => row.cells[0].textContent)"
AS_GIVEN = ["0010-B", "0002-B", HOSTILE_CASE]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    skip_without_chromium()
    return write_page_of(example_page(), tmp_path_factory.mktemp("run") / "index.html")


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    skip_without_chromium()
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(window, page):
    """The page, freshly opened; afterwards the console must hold no complaint."""
    window.open(page.parent)
    window.open(page)
    window.complaints()
    yield window
    assert window.complaints() == []
    assert window.run("return window.hacked") is None


def heading(name):
    return f"[...{LABELS}.tHead.rows[0].cells].find((cell) => cell.textContent === '{name}')"


def press_heading(browser, name):
    browser.run(f"{heading(name)}.querySelector('button').click()")


def test_the_page_loads_nothing_but_itself(browser, page):
    browser.requests()
    browser.open(page)
    asked = [address for address in browser.requests() if not address.startswith("data:")]
    assert asked == [page.resolve().as_uri()]


def test_a_click_on_a_heading_sorts_figures_with_empty_ones_last(browser):
    assert browser.run(CASES) == AS_GIVEN
    press_heading(browser, "Dice to the last")
    assert browser.run(CASES) == ["0010-B", HOSTILE_CASE, "0002-B"]
    assert browser.run(f"return {heading('Dice to the last')}.ariaSort") == "ascending"
    press_heading(browser, "Dice to the last")
    assert browser.run(CASES) == [HOSTILE_CASE, "0010-B", "0002-B"]
    assert browser.run(f"return {heading('Dice to the last')}.ariaSort") == "descending"


def test_names_are_sorted_by_the_numbers_in_them(browser):
    press_heading(browser, "Case")
    assert browser.run(CASES) == [HOSTILE_CASE, "0002-B", "0010-B"]
    assert browser.run(f"return {heading('Dice to the last')}.ariaSort") is None


def test_the_keyboard_sorts_and_unfolds(browser):
    browser.run(f"{heading('Case')}.querySelector('button').focus()")
    browser.press(TAB, ENTER)
    assert browser.run(f"return {heading('Sequence')}.ariaSort") == "ascending"
    assert not browser.run("return document.getElementById('round-1').open")
    browser.run("document.querySelector('#round-1 summary').focus()")
    browser.press(ENTER)
    assert browser.run("return document.getElementById('round-1').open")


def test_a_link_unfolds_its_round(browser):
    browser.click("a[href='#few-shot']")
    browser.wait_for("document.getElementById('few-shot').open")


def test_the_pictures_and_the_curves_are_drawn(browser):
    browser.wait_for("document.querySelector('#round-2 img').naturalWidth === 90")
    browser.run("document.querySelector('#round-2 .chart').scrollIntoView()")
    box = browser.run(
        "const b = document.querySelector('#round-2 .chart > svg').getBoundingClientRect();"
        "return [b.left, b.top, b.right, b.bottom].map(Math.round)"
    )
    picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB").crop(box)
    assert coloured(np.asarray(picture).astype(int)) > 300


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(page, tmp_path, dark):
    with Browser(tmp_path, dark=dark) as browser:
        browser.open(page)
        body = "getComputedStyle(document.body)"
        colours = browser.run(f"return [{body}.color, {body}.backgroundColor]")
    text, ground = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
    assert (text > ground + 400) if dark else (ground > text + 400)


def test_a_narrow_window_scrolls_only_inside_its_tables(page, tmp_path):
    with Browser(tmp_path, width=500) as browser:
        browser.open(page)
        width = "return [document.documentElement.scrollWidth, window.innerWidth]"
        content, window = browser.run(width)
    assert content <= window
