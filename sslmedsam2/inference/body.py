"""Where the patient is in the picture, and where in the patient a liver usually lies."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Box = tuple[slice, slice, slice]

_AIR_SHARE: Final = 0.12
"""Air is darker than this share of the way from the darkest to the (nearly) brightest voxel."""

_PRIOR_CENTRE: Final = (0.68, 0.46, 0.29)
_PRIOR_HALF_AXES: Final = (0.26, 0.29, 0.24)
"""A typical liver as shares of the body's box, canonical axes (from foot, front, patient's right):
mean centre over the CHAOS T2 training volumes, and an ellipsoid of the same spread, less a fifth
so that what it covers is mostly liver."""


def body_mask(array_zyx: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return the largest connected region that is brighter than air; all True if there is none."""
    from scipy import ndimage

    low, high = np.quantile(array_zyx[:, ::2, ::2], [0.01, 0.99])
    bright = array_zyx > low + _AIR_SHARE * (high - low)
    # An opening cuts the thin bridges of noise and of coils to the body.
    bright = ndimage.binary_opening(bright, structure=np.ones((1, 3, 3)))
    labels, count = ndimage.label(bright)
    if count == 0:
        return np.ones_like(bright)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def in_plane_box(mask_zyx: npt.NDArray[np.bool_], *, margin: int) -> Box:
    """Return the mask's box in y and x, widened by ``margin`` voxels; all slices along z."""
    y = np.flatnonzero(mask_zyx.any(axis=(0, 2)))
    x = np.flatnonzero(mask_zyx.any(axis=(0, 1)))
    return (
        slice(0, mask_zyx.shape[0]),
        slice(max(0, int(y[0]) - margin), int(y[-1]) + 1 + margin),
        slice(max(0, int(x[0]) - margin), int(x[-1]) + 1 + margin),
    )


def typical_liver(shape_zyx: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Return an ellipsoid where a liver usually lies in a canonical abdominal scan.

    The guess of last resort, for a file whose grid is known and whose voxels are not.
    """
    distance = np.zeros(shape_zyx, np.float32)
    for axis, (size, centre, half) in enumerate(
        zip(shape_zyx, _PRIOR_CENTRE, _PRIOR_HALF_AXES, strict=True)
    ):
        position = (np.arange(size, dtype=np.float32) + 0.5) / size
        along = [1, 1, 1]
        along[axis] = size
        distance += (((position - centre) / half) ** 2).reshape(along)
    # The voxel nearest to the centre is always in, however coarse the grid.
    return (distance <= max(1.0, float(distance.min()))).astype(np.uint8)
