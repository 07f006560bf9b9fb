"""Makes the pictures of results for the guide: `python scripts/make_pictures.py`.

Segments the phantoms of test_inputs with the shipped weights, so no picture is of a patient.
`docs/images/pictures.json` says which weights the pictures are of; a test compares them with the
shipped ones. Needs Chromium.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sslmedsam2.predict.page import ReportOptions, report
from sslmedsam2.predict.pipeline import PredictOptions, predict
from sslmedsam2.weights.manifest import MANIFEST_NAME, read_manifest

REPOSITORY = Path(__file__).parents[1]
IMAGES = REPOSITORY / "docs" / "images"
RECORD = IMAGES / "pictures.json"
INPUTS = REPOSITORY / "test_inputs"
PREVIEWS = ("0001-A_GED4.png", "0003-B2_T1.png", "0002-B1_T2.png")
_FIRST_CASE = "0001-A"


def main() -> None:
    """Segment, make the page, and take pictures of the table, of a case and of previews."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "results"
        predict(PredictOptions(INPUTS / "images", run, REPOSITORY / "weights", device="cpu"))
        options = ReportOptions(run, INPUTS / "images", INPUTS / "references")
        take_pictures(report(options).index_path, profile=Path(folder) / "profile")
        save_previews(run / "previews")
    shipped = read_manifest(REPOSITORY / "weights" / MANIFEST_NAME).entry("liver")
    assert shipped is not None
    RECORD.write_text(json.dumps({"checkpoints": shipped.checkpoints}, indent=1) + "\n")


def take_pictures(page: Path, *, profile: Path) -> None:
    """Take a picture of the table and one of a case, as a browser shows them."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from headless_chromium import Browser
    from result_page import IS_SHOWN, open_case

    with Browser(profile, height=760) as browser:
        browser.open(page)
        save(browser.screenshot(), "report_table.png")
        open_case(browser, _FIRST_CASE)
        browser.wait_for(IS_SHOWN)
        browser.wait_for("qcVolumes.state().viewer.volumes.length === 2")
        browser.run("return new Promise((done) => setTimeout(done, 1000))")
        save(browser.screenshot(), "report_case.png")


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
