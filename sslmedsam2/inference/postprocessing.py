"""What happens to a mask after the network: one liver, without holes.

The challenge scores the full Hausdorff distance, so a single stray voxel costs as much as a badly
placed border. A liver is one connected organ; whatever lies apart from it is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MaskZYX = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Component:
    """The liver as kept, and how much was dropped.

    ``n_components`` counts what the network gave before cleaning.
    """

    mask_zyx: MaskZYX
    n_components: int


def keep_liver(mask_zyx: MaskZYX) -> Component:
    """Keep the largest component and fill the holes in it, slice by slice.

    Slice-wise filling also closes holes that are open at one end in 3-D; vessels that enter from
    the hilum are open within the slice and stay as they are. An empty mask is returned unchanged.
    """
    from scipy import ndimage

    box = bounding_box(mask_zyx)
    if box is None:
        return Component(mask_zyx=mask_zyx, n_components=0)
    kept, count = _largest(mask_zyx[box])
    for plane in kept:
        ndimage.binary_fill_holes(plane, output=plane)
    cleaned = np.zeros_like(mask_zyx)
    cleaned[box] = kept
    return Component(mask_zyx=cleaned, n_components=count)


def keep_largest(mask_zyx: MaskZYX) -> MaskZYX:
    """Return the largest 26-connected component alone; an empty mask stays empty."""
    cleaned = np.zeros_like(mask_zyx)
    box = bounding_box(mask_zyx)
    if box is not None:
        cleaned[box], _ = _largest(mask_zyx[box])
    return cleaned


def _largest(mask_zyx: MaskZYX) -> tuple[npt.NDArray[np.bool_], int]:
    """Return the largest 26-connected component of a mask, and how many there are."""
    from scipy import ndimage

    labels, count = ndimage.label(mask_zyx, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax(), int(count)


def bounding_box(mask_zyx: MaskZYX) -> tuple[slice, slice, slice] | None:
    """Return the smallest box around the mask, or None if it is empty."""
    slices = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(mask_zyx.any(axis=others))
        if occupied.size == 0:
            return None
        slices.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    z, y, x = slices
    return z, y, x
