import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sslmedsam2.imaging.volume import Geometry, Source, Volume
from sslmedsam2.reporting.page_volumes import (
    AGREED,
    PREDICTION_ONLY,
    REFERENCE_ONLY,
    THUMBNAIL_SIZE,
    next_block,
    reduce_for_view,
)

AMPLE = 10**7


def oblique_left_handed(shape_zyx):
    """Return a grid turned by 20 degrees about z, with x and z stored backwards."""
    cosine, sine = np.cos(np.radians(20)), np.sin(np.radians(20))
    turned = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    direction = turned @ np.diag([-1.0, 1.0, -1.0]) @ np.diag([1.0, -1.0, 1.0])
    return Geometry(shape_zyx, (5.0, 1.5, 2.0), (30.0, -20.0, 7.0), direction)


def volume(array_zyx, tmp_path, geometry=None):
    array_zyx = array_zyx.astype(np.float32)
    geometry = geometry or Geometry(array_zyx.shape, (4.0, 2.0, 2.0), (0.0, 0.0, 0.0), np.eye(3))
    source = Source(tmp_path / "a.nii.gz", array_zyx.shape[::-1], np.dtype(np.float32), None)
    return Volume(array_zyx, geometry, source)


def noise(shape, *, seed=1):
    return np.random.default_rng(seed).normal(100, 20, size=shape)


def opened(nifti):
    return nib.Nifti1Image.from_bytes(gzip.decompress(nifti))


def reduced(image, mask, *, reference=None, budget=AMPLE):
    return reduce_for_view(image, mask, reference_zyx=reference, budget_bytes=budget)


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((10, 10, 10), (4.0, 1.0, 1.0), (1, 2, 2)),
        ((10, 10, 10), (1.0, 2.0, 3.0), (2, 1, 1)),
        ((10, 1, 10), (4.0, 1.0, 1.5), (1, 1, 2)),
    ],
)
def test_next_block_grows_along_the_finest_axes_that_can_grow(shape, spacing, expected):
    grid = Geometry(shape, spacing, (0.0, 0.0, 0.0), np.eye(3))
    assert next_block((1, 1, 1), grid) == expected


def test_a_small_volume_is_kept_voxel_by_voxel(tmp_path):
    image = volume(noise((6, 8, 10)), tmp_path)
    view = reduced(image, np.zeros((6, 8, 10), np.uint8))
    assert opened(view.image_nifti).shape == (10, 8, 6)
    assert view.note.startswith("All 10 x 8 x 6 voxels are shown")


def test_a_large_volume_fits_the_budget_and_says_how(tmp_path):
    image = volume(noise((30, 120, 120)), tmp_path)
    view = reduced(image, np.zeros((30, 120, 120), np.uint8), budget=100_000)
    assert len(view.image_nifti) + len(view.labels_nifti) <= 100_000
    assert opened(view.image_nifti).shape == (60, 60, 30)
    assert "blocks of 2 x 2 x 1 voxels are averaged" in view.note
    assert "from 120 x 120 x 30 to 60 x 60 x 30 voxels of 4 x 4 x 4 mm" in view.note


def test_intensities_survive_to_a_grey_level(tmp_path):
    ramp = np.linspace(-50, 950, 2000).reshape(10, 10, 20)
    view = reduced(volume(ramp, tmp_path), np.zeros(ramp.shape, np.uint8))
    shown = opened(view.image_nifti).get_fdata().transpose(2, 1, 0)
    level = (view.grey_range[1] - view.grey_range[0]) / 255
    low, high = view.grey_range
    assert np.abs(shown - np.clip(ramp, low, high)).max() <= level
    assert low <= view.window[0] < view.window[1] <= high


@pytest.mark.parametrize("budget", [AMPLE, 6_000])
def test_voxels_stay_where_they_are_in_the_patient(tmp_path, budget):
    shape = (12, 48, 48)
    grid = oblique_left_handed(shape)
    array, mask = noise(shape), np.zeros(shape, np.uint8)
    spot = (7, 31, 12)
    array[6:9, 29:34, 10:15] = 1000
    mask[6:9, 29:34, 10:15] = 1
    view = reduced(volume(array, tmp_path, grid), mask, budget=budget)
    native = grid.direction_xyz @ (np.array(spot[::-1]) * (2.0, 1.5, 5.0)) + (30.0, -20.0, 7.0)
    expected_ras = native * (-1, -1, 1)
    shown = opened(view.image_nifti)
    middle = np.argwhere(shown.get_fdata() > 500).mean(axis=0)
    found_ras = nib.affines.apply_affine(shown.affine, middle)
    assert np.linalg.norm(found_ras - expected_ras) < 3
    assert np.linalg.norm(view.focus_ras_mm - expected_ras) < 3


def test_the_view_opens_where_a_mask_is_farthest_from_its_reference(tmp_path):
    reference = np.zeros((6, 40, 40), np.uint8)
    reference[1:5, 10:20, 10:20] = 1
    mask = reference.copy()
    mask[1:5, 10:20, 20:22] = 1
    mask[3, 15, 20:35] = 1
    image = volume(noise(mask.shape), tmp_path)
    given = {"focus_lps_mm": (1.0, 2.0, 3.0), "budget_bytes": AMPLE}
    view = reduce_for_view(image, mask, reference_zyx=reference, **given)
    assert view.focus_ras_mm == pytest.approx((-34 * 2.0, -15 * 2.0, 3 * 4.0))


def test_the_view_opens_at_the_given_place_without_a_reference(tmp_path):
    mask = np.ones((2, 3, 4), np.uint8)
    image = volume(noise(mask.shape), tmp_path)
    given = {"focus_lps_mm": (1.0, 2.0, 3.0), "budget_bytes": AMPLE}
    view = reduce_for_view(image, mask, reference_zyx=None, **given)
    assert view.focus_ras_mm == (-1.0, -2.0, 3.0)
    agreeing = reduce_for_view(image, mask, reference_zyx=mask, **given)
    assert agreeing.focus_ras_mm == (-1.0, -2.0, 3.0)


def test_the_thumbnail_is_a_small_picture_with_the_outline(tmp_path):
    mask = np.zeros((6, 40, 50), np.uint8)
    mask[2:4, 10:30, 10:30] = 1
    view = reduced(volume(noise(mask.shape), tmp_path), mask)
    picture = Image.open(io.BytesIO(view.thumbnail_png)).convert("RGB")
    assert picture.size == THUMBNAIL_SIZE
    assert (np.asarray(picture) == (60, 255, 60)).all(axis=-1).sum() > 40
    assert len(view.thumbnail_png) < 10_000


def test_labels_tell_agreement_from_what_only_one_mask_has(tmp_path):
    mask, reference = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    mask[1, 1, 1:3], reference[1, 1, 2:4] = 1, 1
    view = reduced(volume(noise((2, 3, 4)), tmp_path), mask, reference=reference)
    labels = np.asarray(opened(view.labels_nifti).dataobj)
    assert labels[:, 1, 1].tolist() == [0, PREDICTION_ONLY, AGREED, REFERENCE_ONLY]
    assert np.count_nonzero(labels) == 3


def test_without_a_reference_the_whole_mask_has_one_label(tmp_path):
    mask = np.ones((2, 3, 4), np.uint8)
    view = reduced(volume(noise((2, 3, 4)), tmp_path), mask)
    assert np.unique(np.asarray(opened(view.labels_nifti).dataobj)).tolist() == [AGREED]


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    image, mask = volume(noise((4, 5, 6)), tmp_path), np.ones((4, 5, 6), np.uint8)
    assert reduced(image, mask) == reduced(image, mask)
