"""The page in a real Chromium: opened from a file, clicked, and its pixels looked at."""

import io
import re
import shutil

import numpy as np
import pytest
from headless_chromium import (
    ARROW_DOWN,
    ARROW_RIGHT,
    ARROW_UP,
    ENTER,
    ESCAPE,
    Browser,
    skip_without_chromium,
)
from PIL import Image
from qc_runs import HOSTILE_CASE, HOSTILE_TEXT, QcRun
from result_page import CASES, IS_SHOWN, coloured, open_case, stage

from sslmedsam2.predict.page import ReportOptions, report

# A browser that draws in software takes minutes on two cores.
pytestmark = pytest.mark.slow

WORST_FIRST = ["0009-A", "0001-A", HOSTILE_CASE, "0002-A"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    skip_without_chromium()
    qc = QcRun(tmp_path_factory.mktemp("qc"))
    qc.add("0001-A", shift=4, mean_foreground_confidence=0.9)
    qc.add("0002-A", "T1")
    qc.add(HOSTILE_CASE, vendor=HOSTILE_TEXT, warnings=(f"low_confidence: {HOSTILE_TEXT}",))
    lost = qc.add("0009-A", preview=True)
    (qc.run / lost.output_path).unlink()
    qc.leave_out("0008-A", reason=HOSTILE_TEXT)
    for case, sequence in (("0001-A", "GED4"), ("0002-A", "T1"), (HOSTILE_CASE, "GED4")):
        qc.add_reference(case, sequence)
    return report(ReportOptions(qc.run, qc.input, qc.references)).index_path


@pytest.fixture(scope="module")
def window(page, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(page)
        yield browser


@pytest.fixture
def browser(window, page):
    """The page, freshly opened; afterwards the console must hold no complaint."""
    window.open(page.parent / "assets" / "page.css")
    window.open(page)
    window.complaints()
    yield window
    assert window.complaints() == []
    assert window.run("return window.hacked") is None


def wait_for_redraw(browser):
    browser.run("return new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")


def slide(browser, name, value):
    browser.run(
        "const slider = document.getElementById(arguments[0]); slider.value = arguments[1];"
        "slider.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )
    wait_for_redraw(browser)


def test_the_table_lists_all_series_worst_first(browser):
    assert browser.run(CASES) == WORST_FIRST
    assert browser.run("return document.getElementById('shown-count').textContent") == (
        "4 of 4 scans"
    )


def test_hostile_names_are_shown_as_text(browser):
    foreign = "document.querySelectorAll('#rows img:not(.thumbnail), #rows b')"
    assert browser.run(f"return {foreign}.length") == 0
    open_case(browser, HOSTILE_CASE)
    browser.wait_for(IS_SHOWN)
    title = browser.run("return document.getElementById('case-title').textContent")
    assert title == f"{HOSTILE_CASE} · GED4"
    assert (
        browser.run("return document.getElementById('findings').textContent").count(HOSTILE_TEXT)
        == 2
    )


def test_what_was_not_segmented_unfolds_with_its_reason(browser):
    assert not browser.run("return document.getElementById('left-out').open")
    browser.click("#left-out-line")
    assert browser.run("return document.getElementById('left-out').open")
    cells = "return [...document.querySelectorAll('#left-out td')].map((c) => c.textContent)"
    assert browser.run(cells) == [
        "0008-A", "0008-A/T1.nii.gz", "T1", "", "left out", HOSTILE_TEXT,
    ]  # fmt: skip


def test_a_click_on_a_heading_sorts_and_a_filter_narrows(browser):
    browser.click("th[data-name='Dice'] button")
    assert browser.run(CASES)[0] == "0001-A"
    browser.click("th[data-name='Dice'] button")
    assert browser.run(CASES)[-2:] == ["0001-A", "0009-A"]
    browser.run(
        "const filter = document.getElementById('filter-sequence'); filter.value = 'T1';"
        "filter.dispatchEvent(new Event('change'))"
    )
    assert browser.run(CASES) == ["0002-A"]
    browser.click("#filters button[type=reset]")
    browser.click("#worst-first")
    browser.wait_for("document.querySelectorAll('#rows tr:not([hidden])').length === 4")
    assert browser.run(CASES) == WORST_FIRST


def test_a_click_opens_a_case_and_its_mask_is_drawn(browser):
    open_case(browser, "0001-A")
    browser.wait_for(IS_SHOWN)
    browser.wait_for("qcVolumes.state().viewer.volumes.length === 2")
    pixels = stage(browser)
    assert coloured(pixels) > 2000
    assert np.count_nonzero(pixels.max(axis=2) > 60) > 20_000
    assert "Dice" in browser.run("return document.getElementById('findings').textContent")


def test_a_case_that_is_opened_after_another_was_closed_is_drawn(browser):
    open_case(browser, "0001-A")
    browser.wait_for(IS_SHOWN)
    browser.press(ESCAPE)
    browser.wait_for("!document.getElementById('case').open")
    wait_for_redraw(browser)
    open_case(browser, "0002-A")
    browser.wait_for(IS_SHOWN)
    browser.wait_for("qcVolumes.state().viewer.volumes.length === 2")
    wait_for_redraw(browser)
    assert coloured(stage(browser)) > 2000


def test_the_opacity_slider_fades_the_mask(browser):
    open_case(browser, "0002-A")
    browser.wait_for(IS_SHOWN)
    slide(browser, "opacity", 80)
    strong = coloured(stage(browser))
    slide(browser, "opacity", 0)
    assert coloured(stage(browser)) < strong / 4


def test_a_key_hides_the_mask_and_another_draws_its_outline(browser):
    open_case(browser, "0002-A")
    browser.wait_for(IS_SHOWN)
    slide(browser, "opacity", 80)
    filled = coloured(stage(browser))
    browser.press("o")
    wait_for_redraw(browser)
    outlined = coloured(stage(browser))
    browser.press("m")
    wait_for_redraw(browser)
    hidden = coloured(stage(browser))
    assert hidden < outlined < filled
    browser.press("m")
    wait_for_redraw(browser)
    assert coloured(stage(browser)) == pytest.approx(outlined, rel=0.05)


def test_the_readout_names_slices_millimetres_value_and_label(browser):
    open_case(browser, "0002-A")
    browser.wait_for(IS_SHOWN)
    location = "return document.getElementById('location').textContent"
    before = browser.run(location)
    found = re.fullmatch(
        r"axial (\d+) of 26, coronal \d+ of 70, sagittal \d+ of 80 · "
        r"[LR] \d+, [PA] \d+, [IS] \d+ mm · value \d+ · Both agree",
        before,
    )
    assert found, before
    browser.press(ARROW_UP)
    browser.wait_for(f"document.getElementById('location').textContent !== {before!r}")
    assert f"axial {int(found[1]) + 1} of 26" in browser.run(location)


def test_a_case_opens_where_the_masks_differ_most(browser):
    open_case(browser, "0001-A")
    browser.wait_for(IS_SHOWN)
    location = browser.run("return document.getElementById('location').textContent")
    assert location.endswith("Prediction only") or location.endswith("Reference only")


def test_arrows_work_before_a_row_has_the_focus(browser):
    browser.press(ARROW_DOWN)
    assert browser.run("return document.activeElement.textContent") == WORST_FIRST[0]


def test_columns_that_do_not_fit_are_announced(page, tmp_path):
    announced = "return !document.getElementById('more-columns').hidden"
    with Browser(tmp_path, width=600) as narrow:
        narrow.open(page)
        assert narrow.run(announced)
        first = "return document.querySelector('#rows td').getBoundingClientRect().left"
        left = narrow.run(first)
        narrow.run("document.querySelector('#rows').closest('.table-frame').scrollLeft = 300")
        assert narrow.run(first) == left


def test_the_contrast_sliders_change_the_image_and_black_stays_below_white(browser):
    open_case(browser, "0002-A")
    browser.wait_for(IS_SHOWN)
    before = stage(browser).mean()
    slide(browser, "high", 60)
    assert stage(browser).mean() > before + 5
    slide(browser, "low", 200)
    low, high = browser.run("return ['low', 'high'].map((id) => document.getElementById(id).value)")
    assert (low, high) == ("200", "201")


def test_masks_can_be_shown_alone(browser):
    open_case(browser, "0001-A")
    browser.wait_for(IS_SHOWN)
    legends = []
    for choice in ("prediction", "reference", "both"):
        browser.click(f"input[name=compare][value={choice}]")
        wait_for_redraw(browser)
        legends.append(browser.run("return document.getElementById('legend').textContent"))
    assert legends == ["Prediction", "Reference", "Both agreePrediction onlyReference only"]


def test_a_case_that_cannot_be_shown_says_why_and_shows_its_preview(browser):
    open_case(browser, "0009-A")
    browser.wait_for("document.getElementById('preview').naturalWidth > 0")
    message = browser.run("return document.getElementById('stage-message').textContent")
    assert "the file does not exist" in message


def test_the_keyboard_is_enough(browser):
    focused = "return document.activeElement.textContent"
    title = "return document.getElementById('case-title').textContent"
    browser.run("document.querySelector('#rows a').focus()")
    browser.press(ARROW_DOWN, ARROW_DOWN)
    assert browser.run(focused) == WORST_FIRST[2]
    browser.press(ENTER)
    browser.wait_for(IS_SHOWN)
    assert browser.run(title) == f"{HOSTILE_CASE} · GED4"
    browser.press(ARROW_RIGHT)
    browser.wait_for("document.getElementById('case-title').textContent.startsWith('0002-A')")
    browser.wait_for(IS_SHOWN)
    browser.press(ESCAPE)
    browser.wait_for("!document.getElementById('case').open")
    # The browser tells the page a moment later.
    browser.wait_for("document.activeElement.textContent === '0002-A'")


def test_a_case_has_an_address_and_back_leads_to_the_table(browser):
    browser.run("location.hash = 'series-0001'")
    browser.wait_for("document.getElementById('case').open")
    browser.run("history.back()")
    browser.wait_for("!document.getElementById('case').open")


def test_only_files_beside_the_page_are_asked_for(browser, page):
    browser.requests()
    browser.open(page, address="#series-0001")
    browser.wait_for(IS_SHOWN)
    asked = [address for address in browser.requests() if not address.startswith("data:")]
    beside = page.parent.resolve().as_uri()
    assert asked
    assert [address for address in asked if not address.startswith(beside)] == []
    # Previews in sight are asked for as well; of the volumes only the one that is shown.
    cases = [address for address in asked if "/cases/" in address]
    assert [address for address in cases if not address.endswith(".png")] == [
        f"{beside}/cases/0001.js"
    ]


def test_a_script_that_was_left_behind_is_said_to_be_missing(browser, page, tmp_path):
    copy = tmp_path / "index.html"
    shutil.copytree(page.parent / "assets", tmp_path / "assets")
    copy.write_bytes(page.read_bytes())
    browser.open(copy, address="#series-0001")
    browser.wait_for("document.getElementById('stage-message').textContent.includes('missing')")
    assert all("ERR_FILE_NOT_FOUND" in complaint for complaint in browser.complaints())


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_follows_the_colour_scheme(page, tmp_path, dark):
    with Browser(tmp_path, dark=dark) as other:
        other.open(page)
        picture = Image.open(io.BytesIO(other.screenshot())).convert("L")
    assert (np.median(np.asarray(picture)) < 60) == dark
