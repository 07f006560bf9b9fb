"""One liver without holes; where the body is; where a liver usually lies."""

import numpy as np
import pytest
from scipy import ndimage

from sslmedsam2.inference.postprocessing import (
    bounding_box,
    component_at,
    keep_largest,
    keep_liver,
    typical_liver,
)


def ball(shape=(20, 24, 28), centre=(10, 12, 14), radius=6.0):
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    distance = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
    return (distance <= radius**2).astype(np.uint8)


def test_the_largest_component_is_kept_and_the_count_is_of_all():
    liver = ball()
    mask = liver.copy()
    mask[1, 1, 1] = 1
    mask[17:19, 20:22, 3:6] = 1

    kept = keep_liver(mask)

    assert kept.n_components == 3
    assert kept.removed_share == 12 / liver.sum()
    np.testing.assert_array_equal(kept.mask_zyx, liver)
    assert kept.mask_zyx.dtype == np.uint8


def test_voxels_that_touch_at_a_corner_are_one_component():
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1, 1, 1] = mask[2, 2, 2] = 1

    kept = keep_liver(mask)

    assert kept.n_components == 1
    assert kept.mask_zyx.sum() == 2


def test_holes_are_filled_also_where_they_are_open_above():
    liver = np.zeros((20, 24, 28), np.uint8)
    liver[4:16, 5:20, 6:22] = 1
    mask = liver.copy()
    mask[10:16, 12, 14] = 0

    np.testing.assert_array_equal(keep_liver(mask).mask_zyx, liver)


def test_holes_in_a_porous_liver_are_those_that_scipy_fills_in_each_slice():
    porous = (np.random.default_rng(1).random((6, 30, 40)) < 0.6).astype(np.uint8)

    kept = keep_liver(porous)

    liver = keep_largest(porous)
    filled = [ndimage.binary_fill_holes(plane) for plane in liver]
    np.testing.assert_array_equal(kept.mask_zyx, filled)
    assert kept.mask_zyx.sum() > liver.sum()


def test_a_notch_that_is_open_in_the_slice_stays():
    mask = ball()
    mask[:, 12, 14:] = 0

    np.testing.assert_array_equal(keep_liver(mask).mask_zyx, mask)


def test_an_empty_mask_stays_empty():
    kept = keep_liver(np.zeros((5, 6, 7), np.uint8))

    assert kept.n_components == 0
    assert kept.removed_share == 0
    assert not kept.mask_zyx.any()


def test_the_component_of_a_mask_is_the_one_that_shares_most_voxels_with_it():
    larger, smaller = ball(), ball(centre=(10, 12, 25), radius=2.0)
    both = larger | smaller

    np.testing.assert_array_equal(
        component_at(both, ball(centre=(10, 12, 25), radius=3.0)), smaller
    )
    np.testing.assert_array_equal(component_at(both, larger), larger)
    np.testing.assert_array_equal(component_at(both, np.zeros_like(both)), larger)


def test_a_liver_at_the_border_is_kept_whole():
    mask = np.zeros((5, 6, 7), np.uint8)
    mask[0:2, 0:3, 4:7] = 1

    np.testing.assert_array_equal(keep_liver(mask).mask_zyx, mask)


def test_the_bounding_box_is_tight():
    assert bounding_box(ball()) == (slice(4, 17), slice(6, 19), slice(8, 21))
    assert bounding_box(np.zeros((3, 3, 3), np.uint8)) is None


def test_of_two_large_components_the_one_on_the_patients_right_is_the_liver():
    mask = np.zeros((10, 40, 60), np.uint8)
    mask[2:8, 5:30, 3:20] = 1
    mask[2:9, 5:30, 40:58] = 1

    kept = keep_liver(mask)

    assert kept.n_components == 2
    assert kept.mask_zyx[..., :20].sum() == mask[..., :20].sum()
    assert not kept.mask_zyx[..., 40:].any()


def test_a_liver_alone_is_kept_wherever_it_lies():
    mask = np.zeros((10, 40, 60), np.uint8)
    mask[2:9, 5:30, 40:58] = 1

    np.testing.assert_array_equal(keep_liver(mask).mask_zyx, mask)


def test_only_the_largest_component_is_kept_and_an_empty_mask_stays_empty():
    mask = ball()
    mask[0, 0, 0] = 1

    np.testing.assert_array_equal(keep_largest(mask), ball())
    assert not keep_largest(np.zeros((3, 3, 3), np.uint8)).any()


def test_the_typical_liver_lies_right_and_above_the_middle():
    liver = typical_liver((40, 100, 120))

    z, _, x = (axis.mean() for axis in np.nonzero(liver))
    # Canonical axes grow to superior and to the patient's left.
    assert z > 22
    assert x < 45
    assert keep_liver(liver).n_components == 1
    # 40 slices of 7 mm, 3 x 3 mm in plane: an upper abdomen.
    assert 800 < liver.sum() * 7 * 9 / 1000 < 3000


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 300, 2), (3, 4, 5), (1, 1, 1)])
def test_the_typical_liver_is_never_empty(shape):
    assert typical_liver(shape).any()
