import numpy as np
import pytest
import torch
from tiny_sam2 import canonical
from tiny_scans import centred_grid, render

from sslmedsam2.fewshot.harmonise import (
    AS_IS,
    INVERTED,
    MATCHED,
    appearances,
    body_quantiles,
    contrast_distance,
    refine_by_intensity,
)
from sslmedsam2.fewshot.slices import cut_slices
from sslmedsam2.imaging.volume import mask_dice

SHAPE = (8, 64, 64)


def _slices(*, seed, inverted=False):
    geometry = centred_grid()
    image, _ = render(geometry, seed=seed, inverted=inverted)
    return cut_slices(canonical(image, geometry), size=64).slices.clip(0, 1)


@pytest.fixture(scope="module")
def reference():
    return body_quantiles(_slices(seed=1))


def test_another_patient_of_the_same_contrast_is_left_as_it_is(reference):
    query = _slices(seed=2)
    shown = appearances(query, reference)
    assert list(shown) == [AS_IS]
    assert shown[AS_IS] is query


def test_an_inverted_query_is_offered_close_to_how_it_was(reference):
    original, query = _slices(seed=2), _slices(seed=2, inverted=True)
    shown = appearances(query, reference)
    assert set(shown) == {AS_IS, MATCHED, INVERTED}
    np.testing.assert_array_equal(shown[AS_IS], query)
    off = np.abs(shown[INVERTED] - original).mean()
    assert off < 0.3 * np.abs(query - original).mean()
    assert off < np.abs(shown[MATCHED] - original).mean()


def test_a_query_of_other_gamma_is_offered_close_to_how_it_was(reference):
    original = _slices(seed=2)
    query = original**2
    shown = appearances(query, reference)
    off = np.abs(shown[MATCHED] - original).mean()
    assert off < 0.6 * np.abs(query - original).mean()


@pytest.mark.parametrize("name", [MATCHED, INVERTED])
def test_offers_have_the_supports_contrast(reference, name):
    query = _slices(seed=2, inverted=True)
    before = contrast_distance(body_quantiles(query), reference)
    after = contrast_distance(body_quantiles(appearances(query, reference)[name]), reference)
    assert after < 0.2 * before


def test_offers_stay_slices(reference):
    query = _slices(seed=2, inverted=True)
    for shown in appearances(query, reference).values():
        assert shown.shape == query.shape
        assert shown.dtype == np.float32
        assert shown.min() >= 0
        assert shown.max() <= 1
        assert not shown[query == 0].any(), "air stays air"


def test_nothing_but_air_has_quantiles():
    assert not body_quantiles(np.zeros((2, 8, 8), np.float32)).any()


def refined_by(probability, slices):
    return refine_by_intensity(torch.from_numpy(probability), torch.from_numpy(slices)).numpy()


@pytest.fixture
def organ():
    organ = np.zeros(SHAPE, bool)
    organ[2:6, 16:40, 12:40] = True
    return organ


def _slices_with(organ, *, inside, outside):
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
    refined = refined_by(propagated, _slices_with(organ, inside=inside, outside=outside))
    assert refined.shape == SHAPE
    assert refined.dtype == np.float32
    assert refined.min() >= 0
    assert refined.max() <= 1
    assert mask_dice(refined > 0.5, organ) > mask_dice(propagated > 0.5, organ) + 0.05


def test_tissue_of_the_same_brightness_far_away_stays_outside(organ, propagated):
    slices = _slices_with(organ, inside=0.8, outside=0.4)
    slices[:, 48:56, 48:56] = 0.8
    propagated[:, 44:, 44:] = 0.001
    refined = refined_by(propagated, slices)
    assert not (refined[:, 50:54, 50:54] > 0.5).any()


def test_slices_without_contrast_change_no_decision(organ):
    sure = np.where(organ, 0.95, 0.02).astype(np.float32)
    refined = refined_by(sure, np.full(SHAPE, 0.5, np.float32))
    assert mask_dice(refined > 0.5, organ) > 0.9


def test_where_nothing_is_near_nothing_appears(organ):
    nothing = np.full(SHAPE, 0.01, np.float32)
    refined = refined_by(nothing, _slices_with(organ, inside=0.8, outside=0.4))
    assert refined.max() < 0.1


def test_where_nothing_is_probably_inside_nothing_appears(organ):
    """As its docstring says: then the probabilities are smoothed and otherwise unchanged."""
    unsure = np.full(SHAPE, 0.3, np.float32)
    refined = refined_by(unsure, _slices_with(organ, inside=0.8, outside=0.4))
    assert np.allclose(refined, unsure, atol=0.02)


def test_organ_whose_brightness_drifts_into_that_of_its_surroundings_is_found(organ, propagated):
    slices = _slices_with(organ, inside=0.7, outside=0.5)
    drift = np.linspace(-0.15, 0.15, SHAPE[2], dtype=np.float32)
    drifting = np.where(slices > 0, slices + drift, 0).clip(0, 1).astype(np.float32)
    found = refined_by(propagated, drifting) > 0.5
    assert mask_dice(found, organ) > 0.9


def test_organ_in_a_single_slice_is_refined(organ):
    """Then nothing is known of a drift along z."""
    sure = np.where(organ, 0.95, 0.02).astype(np.float32)[3:4]
    refined = refined_by(sure, _slices_with(organ, inside=0.8, outside=0.4)[3:4])
    assert mask_dice(refined > 0.5, organ[3:4]) > 0.95
