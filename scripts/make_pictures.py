"""Takes the guide's pictures of a result page: `python scripts/make_pictures.py PAGE`.

PAGE is an index.html made from phantoms, such as the demo's, never from patients. Needs Chromium.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
IMAGES = REPOSITORY / "docs" / "images"
PREVIEWS = ("0001-A_GED4.png", "0003-B2_T1.png", "0002-B1_T2.png")
_FIRST_CASE = "0001-A"


def main() -> None:
    """Take a picture of the table and one of a case, and put previews one below the other."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from headless_chromium import Browser
    from result_page import IS_SHOWN, open_case

    page = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile), height=760) as browser:
        browser.open(page)
        save(browser.screenshot(), "report_table.png")
        open_case(browser, _FIRST_CASE)
        browser.wait_for(IS_SHOWN)
        browser.wait_for("qcVolumes.state().viewer.volumes.length === 2")
        browser.run("return new Promise((done) => setTimeout(done, 1000))")
        save(browser.screenshot(), "report_case.png")
    save_previews(page.parents[1] / "previews")


def save(png: bytes, name: str) -> None:
    """Write a picture with 256 colours, which is a third of the size."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(palette=palette_of(picture), dither=Image.Dither.NONE).save(
        IMAGES / name, optimize=True
    )


def save_previews(folder: Path) -> None:
    """Stack a few of the run's previews, which are of one size."""
    pictures = [np.asarray(Image.open(folder / name).convert("RGB")) for name in PREVIEWS]
    Image.fromarray(np.concatenate(pictures)).save(IMAGES / "result.png", optimize=True)


def palette_of(picture: Image.Image) -> Image.Image:
    """Choose 96 greys, and 160 colours from what is not grey, which is little and matters."""
    pixels = np.asarray(picture).reshape(-1, 3)
    coloured = pixels[np.ptp(pixels, axis=1) > 12]
    colours = Image.fromarray(coloured[np.newaxis]).quantize(160).getpalette()
    greys = np.linspace(0, 255, 96).round().astype(int).repeat(3).tolist()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*greys, *(colours or [])][: 3 * 256])
    return palette


if __name__ == "__main__":
    main()
