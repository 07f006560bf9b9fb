import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.reporting.previews import draw_preview

TILE = 250
HEADER = 26
OUTLINE = (60, 255, 60)


def draw(tmp_path, image, mask, *, spacing=(5.0, 1.0, 1.0), **more):
    path = tmp_path / "p.png"
    more.setdefault("title", "0001-A GED4")
    canonical = CanonicalVolume(image, spacing, Reorientation((0, 1, 2), ()))
    assert draw_preview(canonical, mask, path=path, **more) == ()
    return np.asarray(Image.open(path).convert("RGB")), path


def outline(pixels, tile=None):
    found = (pixels == OUTLINE).all(axis=-1)
    return found if tile is None else found[:, tile * TILE : (tile + 1) * TILE]


def reddish(pixels):
    red, green, blue = (pixels[..., channel].astype(int) for channel in range(3))
    return (red > 150) & (green < 100) & (blue < 100)


def box_mask(shape, z, y, x):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[z, y, x] = 1
    return mask


@pytest.fixture
def image():
    return np.random.default_rng(0).uniform(0, 100, (20, 60, 80)).astype(np.float32)


def test_outline_surrounds_the_mask_in_every_tile(tmp_path, image):
    mask = box_mask(image.shape, slice(4, 16), slice(15, 45), slice(20, 60))
    pixels, _ = draw(tmp_path, image, mask)
    for tile in range(3):
        rows, columns = np.nonzero(outline(pixels, tile))
        # 80 mm fill the 250 pixel wide tile: 3.125 pixels a millimetre.
        assert np.ptp(columns) == pytest.approx(40 * 3.125, abs=3)
        assert np.ptp(rows) == pytest.approx(30 * 3.125, abs=3)


def test_outline_is_thin(tmp_path, image):
    mask = box_mask(image.shape, slice(4, 16), slice(15, 45), slice(20, 60))
    pixels, _ = draw(tmp_path, image, mask)
    assert outline(pixels, 1).sum() < 2.2 * (40 + 30) * 3.125


def test_posterior_is_drawn_below_and_left_at_the_right(tmp_path, image):
    mask = box_mask(image.shape, slice(0, 20), slice(50, 60), slice(70, 80))
    pixels, _ = draw(tmp_path, image, mask)
    rows, columns = np.nonzero(outline(pixels, 0))
    assert rows.mean() > HEADER + 230 / 2
    assert columns.mean() > TILE / 2


def test_the_last_tile_is_a_coronal_slice_with_superior_at_the_top(tmp_path, image):
    # 12 of 20 slices of 5 mm, near the top of the stack.
    mask = box_mask(image.shape, slice(8, 20), slice(20, 40), slice(20, 60))
    pixels, _ = draw(tmp_path, image, mask)
    rows, columns = np.nonzero(outline(pixels, 3))
    # 100 mm fill the height of 230 pixels.
    assert np.ptp(rows) == pytest.approx(60 * 2.3, abs=3)
    assert np.ptp(columns) == pytest.approx(40 * 2.3, abs=3)
    assert rows.mean() < HEADER + 230 / 2


def test_warnings_are_printed_below_the_slices_in_amber(tmp_path, image):
    mask = box_mask(image.shape, slice(4, 16), slice(15, 45), slice(20, 60))
    plain, _ = draw(tmp_path, image, mask)
    warned, _ = draw(tmp_path, image, mask, warnings=("touches_border: cut off", "x" * 500))
    assert (warned[: len(plain)] == plain).all()
    lines = warned[len(plain) :].astype(int)
    assert len(lines) == 2 * 18
    for line in (lines[:18], lines[18:]):
        amber = (line[..., 0] > 180) & (line[..., 1] > 120) & (line[..., 2] < 90)
        assert amber.sum() > 30
    assert lines[:, -4:].max() == 0


def test_letters_beyond_ascii_are_drawn(tmp_path, image):
    mask = box_mask(image.shape, slice(4, 16), slice(15, 45), slice(20, 60))
    drawn = {title: draw(tmp_path, image, mask, title=title)[0] for title in ("ü", "é", "Ж")}
    assert not np.array_equal(drawn["ü"], drawn["é"])
    assert not np.array_equal(drawn["ü"], drawn["Ж"])


def test_millimetres_are_square_whatever_the_voxels(tmp_path, image):
    mask = box_mask(image.shape, slice(0, 20), slice(20, 40), slice(20, 60))
    pixels, _ = draw(tmp_path, image, mask, spacing=(5.0, 2.0, 1.0))
    rows, columns = np.nonzero(outline(pixels, 0))
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=3)


def test_slices_span_the_liver_not_the_stack(tmp_path):
    image = np.zeros((40, 30, 30), dtype=np.float32)
    image[25:, :, :] = np.arange(30) * 10.0
    mask = box_mask(image.shape, slice(28, 37), slice(5, 25), slice(5, 25))
    pixels, _ = draw(tmp_path, image, mask)
    for tile in range(3):
        assert outline(pixels, tile).any()


def test_flags_and_an_empty_mask_are_red(tmp_path, image):
    mask = box_mask(image.shape, slice(4, 16), slice(15, 45), slice(20, 60))
    plain, _ = draw(tmp_path, image, mask)
    flagged, _ = draw(tmp_path, image, mask, flags=("GUESS",))
    empty, _ = draw(tmp_path, image, np.zeros_like(mask))
    assert not reddish(plain).any()
    assert reddish(flagged[:HEADER]).sum() > 50
    assert reddish(empty[:HEADER]).sum() > 30
    assert not outline(empty).any()


@pytest.mark.parametrize(
    ("verdict", "strong", "weak"),
    [("ACCEPT", "g", "rb"), ("DOUBTFUL", "rg", "b"), ("REJECT", "r", "gb")],
)
def test_verdicts_are_green_amber_and_red(tmp_path, image, verdict, strong, weak):
    pixels, _ = draw(tmp_path, image, np.ones(image.shape), flags=(verdict,))
    header = pixels[:HEADER].reshape(-1, 3).astype(int)
    coloured = header[np.ptp(header, axis=1) > 100]
    channels = dict(zip("rgb", coloured.T, strict=True))
    assert len(coloured) > 50
    assert all(channels[s].min() > channels[w].max() for s in strong for w in weak)


def test_other_flags_are_grey(tmp_path, image):
    pixels, _ = draw(tmp_path, image, np.ones(image.shape), flags=("DICE TO LAST 0.9",))
    assert np.ptp(pixels[:HEADER].astype(int), axis=2).max() == 0


@pytest.mark.parametrize("value", [0.0, -5.0, 3e8])
def test_constant_image_is_drawn(tmp_path, value):
    image = np.full((3, 20, 20), value, dtype=np.float32)
    pixels, _ = draw(tmp_path, image, np.ones(image.shape, dtype=bool))
    assert outline(pixels).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 500, 3), (5, 3, 500)])
def test_odd_shapes_are_drawn(tmp_path, shape):
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    pixels, _ = draw(tmp_path, image, np.ones(shape, dtype=np.uint8))
    assert pixels.shape == (274, 1000, 3)


def test_large_noisy_slices_make_a_small_file(tmp_path):
    rng = np.random.default_rng(1)
    image = rng.standard_normal((4, 1024, 1024), dtype=np.float32)
    mask = rng.random((4, 1024, 1024)) > 0.999
    _, path = draw(tmp_path, image, mask, spacing=(5.0, 0.35, 0.4))
    assert path.stat().st_size < 150_000


def test_unwritable_place_is_a_warning(tmp_path, image):
    (tmp_path / "file").write_text("")
    canonical = CanonicalVolume(image, (5.0, 1.0, 1.0), Reorientation((0, 1, 2), ()))
    empty = np.zeros(image.shape, np.uint8)
    (warning,) = draw_preview(canonical, empty, path=tmp_path / "file" / "p.png", title="GED4")
    assert warning.startswith("no_preview: ")


def test_nothing_heavy_is_imported():
    heavy = ("matplotlib", "torch", "nibabel", "scipy")
    code = (
        "import sys, sslmedsam2.reporting.previews, sslmedsam2.reporting.run_report;"
        f"sys.exit(any(name in sys.modules for name in {heavy}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
