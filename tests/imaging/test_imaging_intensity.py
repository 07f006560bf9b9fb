"""A CT is told from an MR by its values, and windowed."""

from __future__ import annotations

import numpy as np

from sslmedsam2.imaging.intensity import (
    ABDOMINAL_WINDOW_HU,
    looks_like_hounsfield,
    window_hounsfield,
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
    windowed = window_hounsfield(array)
    assert (windowed.min(), windowed.max()) == ABDOMINAL_WINDOW_HU
    assert windowed[4, 30, 30] == 60
