import numpy as np
import pytest
from tiny_sam2 import canonical, centred_grid, render

from sslmedsam2.fewshot.harmonise import (
    AS_IS,
    INVERTED,
    MATCHED,
    appearances,
    body_quantiles,
    contrast_distance,
)
from sslmedsam2.fewshot.slices import cut_slices


def _pictures(*, seed, inverted=False):
    geometry = centred_grid()
    image, _ = render(geometry, seed=seed, inverted=inverted)
    return cut_slices(canonical(image, geometry), size=64).slices.clip(0, 1)


@pytest.fixture(scope="module")
def reference():
    return body_quantiles(_pictures(seed=1))


def test_another_patient_of_the_same_contrast_is_left_as_it_is(reference):
    query = _pictures(seed=2)
    shown = appearances(query, reference)
    assert list(shown) == [AS_IS]
    assert shown[AS_IS] is query


def test_an_inverted_query_is_offered_close_to_how_it_was(reference):
    original, query = _pictures(seed=2), _pictures(seed=2, inverted=True)
    shown = appearances(query, reference)
    assert set(shown) == {AS_IS, MATCHED, INVERTED}
    np.testing.assert_array_equal(shown[AS_IS], query)
    off = np.abs(shown[INVERTED] - original).mean()
    assert off < 0.3 * np.abs(query - original).mean()
    assert off < np.abs(shown[MATCHED] - original).mean()


def test_a_query_of_other_gamma_is_offered_close_to_how_it_was(reference):
    original = _pictures(seed=2)
    query = original**2
    shown = appearances(query, reference)
    off = np.abs(shown[MATCHED] - original).mean()
    assert off < 0.6 * np.abs(query - original).mean()


@pytest.mark.parametrize("name", [MATCHED, INVERTED])
def test_offers_have_the_supports_contrast(reference, name):
    query = _pictures(seed=2, inverted=True)
    before = contrast_distance(body_quantiles(query), reference)
    after = contrast_distance(body_quantiles(appearances(query, reference)[name]), reference)
    assert after < 0.2 * before


def test_offers_stay_pictures(reference):
    query = _pictures(seed=2, inverted=True)
    for shown in appearances(query, reference).values():
        assert shown.shape == query.shape
        assert shown.dtype == np.float32
        assert shown.min() >= 0
        assert shown.max() <= 1
        assert not shown[query == 0].any(), "air stays air"


def test_nothing_but_air_has_quantiles():
    assert not body_quantiles(np.zeros((2, 8, 8), np.float32)).any()
