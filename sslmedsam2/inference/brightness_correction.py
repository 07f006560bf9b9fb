"""Correct the margin of a scan of which the network is unsure by the scan's own brightness.

A network that does not know the contrast of a scan finds the place of the liver, but errs at its
border. What it takes for liver shows how bright the liver is in this very scan: a voxel near the
border counts as liver a little more if its brightness is more frequent inside than around it. Where
the network is sure there is nothing to gain (`benchmarks/brightness_correction.py`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sslmedsam2.imaging.intensity import log_ratio
from sslmedsam2.inference.confidence import probability_of
from sslmedsam2.inference.postprocessing import components
from sslmedsam2.inference.second_view import unit_brightness

_WEIGHT: Final = 0.5
"""Brightness and margin are not independent: the network has seen the brightness, too."""
_BINS: Final = 48
_NEAR_SIGMA: Final = (2.0, 4.0, 4.0)
"""How far around the liver (voxels along z, y, x) its surroundings reach."""
_NEAR: Final = 0.02
_MOST_GROWTH: Final = 0.1
"""A correction that changes the volume by a larger share has found something else than a border."""
_NEIGHBOURS: Final = np.ones((3, 3, 3), bool)
_GAP_VOXELS: Final = 2
_AIR_BELOW: Final = 0.06
"""Share of the range of brightness below which a voxel is air."""


def corrected(
    margin: npt.NDArray[np.float32], scan: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the margin moved towards the brightness of the liver, or as it is.

    Both are ``(z, y, x)`` on the grid of the model. The margin stays as it is without liver, and
    where the volume of its largest piece would change much. Other pieces do not grow.
    """
    inside = margin > 0
    if not inside.any():
        return margin
    unit = unit_brightness(scan)
    bins = (unit * (_BINS - 1)).round().astype(np.intp)
    probability = probability_of(margin)
    body = unit > _AIR_BELOW
    near = ndimage.gaussian_filter(probability, _NEAR_SIGMA) > _NEAR
    ratio = log_ratio(
        np.bincount(bins.ravel(), (probability * (inside & body)).ravel(), _BINS),
        np.bincount(bins.ravel(), ((1 - probability) * (near & body)).ravel(), _BINS),
    )
    moved = margin + np.float32(_WEIGHT) * ratio[bins]
    pieces, sizes = components(inside)
    others = inside & (pieces != sizes.argmax())
    # Stray pieces, such as a stomach of the same brightness, must not be joined to the liver.
    around = ndimage.binary_dilation(others, _NEIGHBOURS, iterations=_GAP_VOXELS)
    moved = np.where(around, np.minimum(margin, moved), moved)
    growth = components(moved > 0)[1].max() / sizes.max() - 1
    return moved if abs(growth) <= _MOST_GROWTH else margin
