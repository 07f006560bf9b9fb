"""Kinds of images by their values, CT windows, and histograms."""

from __future__ import annotations

import numpy as np
import pytest

from sslmedsam2.imaging.intensity import (
    ABDOMINAL_WINDOW_HU,
    clean_intensities,
    log_ratio,
    looks_like_hounsfield,
    looks_like_labels,
    window_if_hounsfield,
)


def _abdomen(background: float, tissue: float) -> np.ndarray:
    array = np.full((8, 64, 64), background, dtype=np.float32)
    array[:, 12:52, 8:56] = tissue
    return array


def test_air_makes_a_ct() -> None:
    assert looks_like_hounsfield(_abdomen(-1000, 60))
    assert not looks_like_hounsfield(_abdomen(0, 600))
    assert not looks_like_hounsfield(_abdomen(-2, 3))


def test_window_clips_air_and_bone_and_keeps_tissue() -> None:
    array = _abdomen(-1000, 60)
    array[0, 20, 20] = 1500
    windowed, clipped = window_if_hounsfield(array)
    assert clipped
    assert (windowed.min(), windowed.max()) == ABDOMINAL_WINDOW_HU
    assert windowed[4, 30, 30] == 60


def test_mr_is_left_as_it_is() -> None:
    array = _abdomen(0, 600)
    same, clipped = window_if_hounsfield(array)
    assert same is array
    assert not clipped


def _mr(seed: int = 0) -> np.ndarray:
    """Return a bright body in dark air, as magnitudes with noise."""
    noise = np.random.default_rng(seed).normal(0, 15, (8, 64, 64))
    return np.abs(_abdomen(0, 600) + noise).astype(np.float32)


@pytest.mark.parametrize("value", [-1000, -1024, -2000, -32768, -300])
def test_padding_of_an_mr_becomes_background_and_makes_no_ct(value) -> None:
    padded = _mr()
    padded[:, :6] = value

    notes = clean_intensities(padded)

    assert [note.partition(":")[0] for note in notes] == ["padding"]
    assert (padded[:, :6] == 0).all()
    assert np.array_equal(padded[:, 6:], _mr()[:, 6:])
    assert not window_if_hounsfield(padded)[1]


def test_a_sound_image_is_left_as_it_is() -> None:
    for image in (_mr(), _abdomen(-1000, 60) + _mr() / 100):
        cleaned = image.copy()
        assert clean_intensities(cleaned) == ()
        assert np.array_equal(cleaned, image)


@pytest.mark.parametrize("value", [1e30, 1e5, -1e6])
def test_outliers_are_clipped_with_a_note(value) -> None:
    image = _mr()
    image[3, 30, 30] = value

    [note] = clean_intensities(image)

    assert note.startswith("outliers: ")
    assert np.abs(image).max() < 4000
    others = np.ones(image.shape, bool)
    others[3, 30, 30] = False
    assert np.array_equal(image[others], _mr()[others])


def test_a_slice_of_outliers_is_clipped() -> None:
    image = _mr()
    image[3] *= 1e6

    assert clean_intensities(image)[0].startswith("outliers: ")
    assert image.max() < 10000


def test_the_modality_of_the_header_beats_the_values() -> None:
    assert not window_if_hounsfield(_abdomen(-1000, 60), modality="MR")[1]
    assert window_if_hounsfield(_abdomen(-900, 60) + 100, modality="CT")[1]


def test_masks_and_label_maps_are_told_from_images() -> None:
    labels = np.zeros((8, 64, 64), np.float32)
    labels[2:6, 10:40, 10:40] = 1
    assert looks_like_labels(labels)
    labels[2:6, 40:50, 10:40] = 7
    labels[1:3, 5:9, 20:60] = 12
    assert looks_like_labels(labels)
    assert looks_like_labels(labels * 17 - 3)
    assert not looks_like_labels(np.floor(_mr() / 20))


def test_what_is_more_frequent_inside_has_a_positive_log_ratio() -> None:
    inside, outside = np.zeros(48), np.zeros(48)
    inside[30:34], outside[10:14] = 100, 300
    ratio = log_ratio(inside, outside)
    assert ratio[31] > 2
    assert ratio[11] < -2
    assert abs(ratio[45]) < 0.1
    np.testing.assert_allclose(log_ratio(3 * inside, outside), ratio, atol=1e-5)


def test_empty_histograms_say_nothing() -> None:
    assert not log_ratio(np.zeros(48), np.zeros(48)).any()
