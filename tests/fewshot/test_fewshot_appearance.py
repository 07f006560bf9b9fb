import numpy as np
import pytest

from sslmedsam2.fewshot.harmonise import refine_by_intensity
from sslmedsam2.fewshot.outcome import mask_dice

SHAPE = (8, 64, 64)


@pytest.fixture
def organ():
    organ = np.zeros(SHAPE, bool)
    organ[2:6, 16:40, 12:40] = True
    return organ


def _pictures(organ, *, inside, outside):
    slices = np.zeros(SHAPE, np.float32)
    slices[:, 6:58, 4:60] = outside
    slices[organ] = inside
    noise = np.random.default_rng(0).normal(0, 0.02, SHAPE)
    return np.where(slices > 0, slices + noise, 0).clip(0, 1).astype(np.float32)


@pytest.fixture
def propagated(organ):
    """The right place, but a few pixels off to the side."""
    return np.where(np.roll(organ, (3, 4), (1, 2)), 0.75, 0.1).astype(np.float32)


@pytest.mark.parametrize(("inside", "outside"), [(0.8, 0.4), (0.3, 0.7)], ids=["bright", "dark"])
def test_a_shifted_mask_moves_onto_the_organ(organ, propagated, inside, outside):
    refined = refine_by_intensity(propagated, _pictures(organ, inside=inside, outside=outside))
    assert refined.shape == SHAPE
    assert refined.dtype == np.float32
    assert refined.min() >= 0
    assert refined.max() <= 1
    assert mask_dice(refined > 0.5, organ) > mask_dice(propagated > 0.5, organ) + 0.05


def test_tissue_of_the_same_brightness_far_away_stays_outside(organ, propagated):
    slices = _pictures(organ, inside=0.8, outside=0.4)
    slices[:, 48:56, 48:56] = 0.8
    propagated[:, 44:, 44:] = 0.001
    refined = refine_by_intensity(propagated, slices)
    assert not (refined[:, 50:54, 50:54] > 0.5).any()


def test_a_picture_without_contrast_changes_no_decision(organ):
    sure = np.where(organ, 0.95, 0.02).astype(np.float32)
    refined = refine_by_intensity(sure, np.full(SHAPE, 0.5, np.float32))
    assert mask_dice(refined > 0.5, organ) > 0.9


def test_where_nothing_is_near_nothing_appears(organ):
    nothing = np.full(SHAPE, 0.01, np.float32)
    refined = refine_by_intensity(nothing, _pictures(organ, inside=0.8, outside=0.4))
    assert refined.max() < 0.1


def test_where_nothing_is_probably_inside_nothing_appears(organ):
    """As its docstring says: then the probabilities are smoothed and otherwise unchanged."""
    unsure = np.full(SHAPE, 0.3, np.float32)
    refined = refine_by_intensity(unsure, _pictures(organ, inside=0.8, outside=0.4))
    assert np.allclose(refined, unsure, atol=0.02)
