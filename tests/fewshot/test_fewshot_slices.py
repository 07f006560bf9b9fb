import numpy as np
import pytest
from tiny_sam2 import canonical, make_support
from tiny_scans import centred_grid, render

from sslmedsam2.fewshot.slices import (
    Crop,
    body_crop,
    cut,
    cut_slices,
    paste,
    unit_intensities,
    whole_slice,
)
from sslmedsam2.imaging.volume import mask_dice

SIZE = 128
GRIDS = {
    "square pixels": centred_grid(),
    "oblong pixels": centred_grid((6, 40, 120), spacing_zyx_mm=(30.0, 7.0, 3.0)),
    "finer than the slices": centred_grid((5, 190, 260), spacing_zyx_mm=(30.0, 1.4, 1.4)),
    "body in a corner": centred_grid((6, 90, 110), centre_xyz_mm=(100.0, 90.0, 0.0)),
    "body cut by the edge": centred_grid((6, 36, 50), centre_xyz_mm=(-40.0, 30.0, 0.0)),
}


@pytest.mark.parametrize("geometry", GRIDS.values(), ids=GRIDS)
def test_a_mask_that_is_cut_and_pasted_is_the_mask(geometry):
    support = make_support("a", seed=1, geometry=geometry)
    stack = cut_slices(support.image, size=SIZE)
    slices = cut(support.mask_zyx, stack.crop, size=SIZE)
    back = paste((slices > 0.5).astype(np.float32), stack) > 0.5
    assert mask_dice(back, support.mask_zyx > 0) > 0.97


def test_a_mask_comes_back_from_a_squashed_slice():
    support = make_support("a", seed=1, geometry=GRIDS["oblong pixels"])
    crop = whole_slice(support.mask_zyx.shape)
    stack = cut_slices(support.image, size=SIZE, crop=crop)
    back = paste(cut(support.mask_zyx, crop, size=SIZE), stack) > 0.5
    assert mask_dice(back, support.mask_zyx > 0) > 0.97


def test_coarser_pictures_bring_probabilities_back_to_the_right_place():
    """The decoder's maps have a quarter of the slices' side."""
    support = make_support("a", seed=1)
    stack = cut_slices(support.image, size=SIZE)
    slices = cut(support.mask_zyx, stack.crop, size=SIZE)
    quarter = slices.reshape(len(slices), 32, 4, 32, 4).mean((2, 4))
    assert mask_dice(paste(quarter, stack) > 0.5, support.mask_zyx > 0) > 0.9


@pytest.mark.parametrize("geometry", GRIDS.values(), ids=GRIDS)
def test_pictures_are_in_the_unit_range(geometry):
    slices = cut_slices(make_support("a", seed=1, geometry=geometry).image, size=SIZE).slices
    assert slices.shape == (geometry.shape_zyx[0], SIZE, SIZE)
    assert slices.dtype == np.float32
    assert slices.min() >= 0
    assert 0.5 < slices.max() <= 1 + 1e-5


@pytest.mark.parametrize("side", [64, 100, 128, 190, 256, 384])
def test_what_is_even_stays_even(side):
    even = np.full((1, side, side), 0.7, np.float32)
    slice_image = cut(even, Crop((0.0, 0.0), (float(side), float(side))), size=128)
    assert np.allclose(slice_image[0, 4:-4, 4:-4], 0.7, atol=0.02)


def test_beyond_the_volume_there_is_nothing():
    ones = np.ones((1, 20, 20), np.float32)
    slice_image = cut(ones, Crop((-20.0, 0.0), (40.0, 20.0)), size=40)[0]
    assert not slice_image[:18].any()
    assert np.allclose(slice_image[22:-2, 2:-2], 1)


def test_the_crop_is_square_in_millimetres_and_centred_on_the_body():
    geometry = centred_grid((6, 60, 150), spacing_zyx_mm=(30, 7, 3), centre_xyz_mm=(50, 60, 0))
    volume = canonical(render(geometry)[0], geometry)
    crop = body_crop(unit_intensities(volume.array_zyx), volume.spacing_zyx_mm)
    height_mm, width_mm = crop.size_yx[0] * 7, crop.size_yx[1] * 3
    assert height_mm == pytest.approx(width_mm)
    assert 300 < width_mm < 360
    bodies = cut_slices(volume, size=SIZE).slices > 0
    rows, columns = np.nonzero(bodies.any(0))
    assert abs((rows.min() + rows.max()) / 2 - SIZE / 2) < 4
    assert abs((columns.min() + columns.max()) / 2 - SIZE / 2) < 4


def test_a_wider_field_of_view_changes_the_picture_little():
    near = centred_grid((5, 60, 80), spacing_zyx_mm=(30.0, 4.0, 4.0))
    wide = centred_grid((5, 90, 120), spacing_zyx_mm=(30.0, 4.0, 4.0), centre_xyz_mm=(30, -40, 0))
    one, other = (
        cut_slices(make_support("a", seed=4, geometry=g).image, size=64) for g in (near, wide)
    )
    assert np.abs(one.slices - other.slices).mean() < 0.03


def test_slices_run_from_front_to_back_and_right_to_left():
    """The phantom's liver is on the patient's right: in the left half of a slice_image."""
    support = make_support("a", seed=1)
    stack = cut_slices(support.image, size=SIZE)
    liver = cut(support.mask_zyx, stack.crop, size=SIZE).sum((0, 1))
    assert liver[: SIZE // 2].sum() > 0.9 * liver.sum()


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0])
def test_an_image_of_one_value_becomes_nothing(value):
    array = np.full((3, 20, 30), value, np.float32)
    assert not unit_intensities(array).any()
    geometry = centred_grid((3, 20, 30))
    stack = cut_slices(canonical(array, geometry), size=32)
    assert stack.slices.shape == (3, 32, 32)
    assert not stack.slices.any()


def test_ct_is_shown_in_the_abdominal_window():
    array = np.full((4, 40, 40), -1000, np.float32)
    array[:, 5:35, 5:35] = 40
    array[:, 10:20, 10:20] = 120
    array[:, 25:30, 25:30] = 1200
    unit = unit_intensities(array)
    air, tissue, liver, bone = unit[0, 0, 0], unit[0, 7, 7], unit[0, 15, 15], unit[0, 27, 27]
    assert air == 0
    assert tissue == pytest.approx(0.5, abs=0.02)
    assert liver == pytest.approx(0.7, abs=0.02)
    assert bone == pytest.approx(1.0, abs=0.02)


def test_a_few_very_bright_voxels_do_not_darken_the_rest():
    array = make_support("a", seed=1).image.array_zyx
    spotted = array.copy()
    spotted[0, :2, :2] = 1e6
    assert np.abs(unit_intensities(array)[2:] - unit_intensities(spotted)[2:]).max() < 0.05


def test_scale_of_intensities_does_not_matter():
    array = make_support("a", seed=1).image.array_zyx
    assert np.allclose(unit_intensities(array), unit_intensities(array * 37), atol=1e-4)
