"""Where the patient is in the picture, and where in the patient a liver usually lies."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Box = tuple[slice, slice, slice]

_AIR_SHARE: Final = 0.12
"""Air is darker than this share of the way from the darkest to the (nearly) brightest voxel."""


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
