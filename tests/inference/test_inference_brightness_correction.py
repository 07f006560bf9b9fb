"""The margin of a scan of which a network is unsure is corrected by the scan's own brightness."""

import numpy as np
import pytest
from scipy import ndimage

from sslmedsam2.imaging.volume import mask_dice
from sslmedsam2.inference.brightness_correction import corrected

SHAPE = (20, 48, 48)


@pytest.fixture
def organ():
    organ = np.zeros(SHAPE, bool)
    organ[5:15, 10:34, 10:34] = True
    return organ


def scan_of(organ, *, inside, outside=0.5):
    scan = np.full(SHAPE, -2.0, np.float32)
    scan[2:18, 4:44, 4:44] = outside
    scan[organ] = inside
    return scan + np.random.default_rng(0).normal(0, 0.03, SHAPE).astype(np.float32)


def unsure_margin(mask):
    """Return a margin that is weak near the border of the mask."""
    inside, outside = (ndimage.distance_transform_edt(one) for one in (mask, ~mask))
    return (0.6 * (inside - outside)).clip(-8, 8).astype(np.float32)


@pytest.mark.parametrize("inside", [1.2, -0.2], ids=["bright", "dark"])
def test_a_border_that_is_off_moves_towards_the_organ(organ, inside):
    margin = unsure_margin(np.roll(organ, (1, 1), (1, 2)))
    moved = corrected(margin, scan_of(organ, inside=inside))
    assert moved.shape == SHAPE
    assert moved.dtype == np.float32
    assert mask_dice(moved > 0, organ) > mask_dice(margin > 0, organ) + 0.01


def test_a_scan_without_contrast_changes_no_decision(organ):
    margin = unsure_margin(organ)
    moved = corrected(margin, scan_of(organ, inside=0.5))
    assert mask_dice(moved > 0, organ) > 0.99


def test_where_the_volume_would_change_much_the_margin_stays(organ):
    """A neighbour of the same brightness, about which the network is not sure either."""
    neighbour = np.zeros(SHAPE, bool)
    neighbour[5:15, 10:34, 34:42] = True
    margin = np.where(neighbour, -0.3, unsure_margin(organ)).astype(np.float32)
    assert corrected(margin, scan_of(organ | neighbour, inside=1.2)) is margin


def test_another_piece_of_the_same_brightness_is_not_joined_to_the_liver(organ):
    stomach = np.zeros(SHAPE, bool)
    stomach[5:15, 10:34, 36:42] = True
    gap = np.zeros(SHAPE, bool)
    gap[5:15, 10:34, 34:36] = True
    margin = np.where(stomach, 1, np.where(gap, -0.3, unsure_margin(organ))).astype(np.float32)
    moved = corrected(margin, scan_of(organ | stomach | gap, inside=1.2))
    assert moved is not margin
    assert not (moved > 0)[gap].any()


def test_a_margin_without_liver_stays(organ):
    margin = np.full(SHAPE, -3.0, np.float32)
    assert corrected(margin, scan_of(organ, inside=1.2)) is margin
