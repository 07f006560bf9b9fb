"""Takes the guide's pictures of a result page: `python scripts/make_pictures.py PAGE`.

PAGE is an index.html made from phantoms, such as the demo's, never from patients. Needs Chromium.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).parents[1]
IMAGES = REPOSITORY / "docs" / "images"
_FIRST_CASE = "0001-A"


def main() -> None:
    """Take a picture of the table and one of a case."""
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


def save(png: bytes, name: str) -> None:
    """Write a picture with 256 colours, rare ones included, which is a third of the size."""
    colours = Image.open(io.BytesIO(png)).convert("RGB")
    picture = colours.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    picture.save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main()
