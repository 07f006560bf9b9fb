"""Using the page of a run in a browser, as a person does."""

from __future__ import annotations

import io

import numpy as np
from headless_chromium import Browser
from PIL import Image

IS_SHOWN = (
    "document.getElementById('case').open && "
    "document.getElementById('stage-message').textContent === ''"
)
CASES = (
    "const rows = document.querySelectorAll('#rows tr:not([hidden]) a');"
    "return [...rows].map((link) => link.textContent)"
)


def open_case(browser: Browser, case: str) -> None:
    """Click the first row of a case, beside its link."""
    place = browser.run(CASES).index(case) + 1
    browser.click(f"#rows tr:nth-child({place}) td:nth-child(2)")


def stage(browser: Browser) -> np.ndarray:
    """Return the viewer's pixels."""
    box = browser.run(
        "const b = document.getElementById('viewer').getBoundingClientRect();"
        "return [b.left, b.top, b.right, b.bottom].map(Math.round)"
    )
    picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    return np.asarray(picture.crop(box)).astype(int)


def coloured(pixels: np.ndarray) -> int:
    """Count the pixels that are not grey."""
    return int(((pixels.max(axis=2) - pixels.min(axis=2)) > 40).sum())
