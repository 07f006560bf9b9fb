"""Checks and changes of intensities before a network is applied."""

from __future__ import annotations

from typing import Final

import numpy as np

from sslmedsam2.imaging.volume import ArrayZYX

ABDOMINAL_WINDOW_HU: Final = (-160.0, 240.0)
"""The usual soft-tissue display window; a CT outside it is air, bone or metal."""

_AIR_HU: Final = -900.0


def looks_like_hounsfield(array_zyx: ArrayZYX) -> bool:
    """Tell CT from MR by its values: air near -1000 fills at least a fiftieth of any CT."""
    return bool(np.quantile(array_zyx[::2, ::4, ::4], 0.02) <= _AIR_HU)


def window_if_hounsfield(array_zyx: ArrayZYX) -> tuple[ArrayZYX, bool]:
    """Clip a CT to the abdominal window and leave an MR as it is; say whether it was clipped.

    Air at -1000 HU and bone would otherwise dominate the z-score and flatten the soft tissue to
    one grey.
    """
    if not looks_like_hounsfield(array_zyx):
        return array_zyx, False
    return np.clip(array_zyx, *ABDOMINAL_WINDOW_HU), True
