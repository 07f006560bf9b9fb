"""A CT is told from an MR by its values, and windowed."""

from __future__ import annotations

import numpy as np

from sslmedsam2.imaging.intensity import (
    ABDOMINAL_WINDOW_HU,
    looks_like_hounsfield,
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
