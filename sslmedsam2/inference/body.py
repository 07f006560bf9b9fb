"""Usual position of the liver in an abdominal scan."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

TYPICAL_CENTRE: Final = (0.68, 0.46, 0.29)
_PRIOR_HALF_AXES: Final = (0.26, 0.29, 0.24)
"""A typical liver as shares of the body's box, canonical axes (from foot, front, patient's right):
mean centre over the CHAOS T2 training volumes, and an ellipsoid of the same spread, less a fifth
so that what it covers is mostly liver."""


def typical_liver(shape_zyx: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Return an ellipsoid where a liver usually lies in a canonical abdominal scan.

    The guess of last resort, for a file whose grid is known and whose voxels are not.
    """
    distance = np.zeros(shape_zyx, np.float32)
    for axis, (size, centre, half) in enumerate(
        zip(shape_zyx, TYPICAL_CENTRE, _PRIOR_HALF_AXES, strict=True)
    ):
        position = (np.arange(size, dtype=np.float32) + 0.5) / size
        along = [1, 1, 1]
        along[axis] = size
        distance += (((position - centre) / half) ** 2).reshape(along)
    # The voxel nearest to the centre is always in, however coarse the grid.
    return (distance <= max(1.0, float(distance.min()))).astype(np.uint8)
