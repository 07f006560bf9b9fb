"""Post-processing of a mask: one connected component, without holes.

The challenge scores the full Hausdorff distance, so a single stray voxel costs as much as a badly
placed border. A liver is one connected organ; other components are errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.volume import MaskZYX, bounding_box

TYPICAL_CENTRE: Final = (0.68, 0.46, 0.29)
_PRIOR_HALF_AXES: Final = (0.26, 0.29, 0.24)
"""A typical liver as shares of the box of the body, canonical axes (from foot, front, patient's
right): mean centre over the CHAOS T2 training volumes, and half axes of an ellipsoid of the same
spread, reduced by a fifth so that it covers mostly liver."""


def typical_liver(shape_zyx: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Return an ellipsoid at the typical place of the liver in a canonical abdominal scan.

    It is the guess for a file whose grid can be read and whose voxels cannot.
    """
    distance = np.zeros(shape_zyx, np.float32)
    for axis, (size, centre, half) in enumerate(
        zip(shape_zyx, TYPICAL_CENTRE, _PRIOR_HALF_AXES, strict=True)
    ):
        position = (np.arange(size, dtype=np.float32) + 0.5) / size
        along = [1, 1, 1]
        along[axis] = size
        distance += (((position - centre) / half) ** 2).reshape(along)
    # On a coarse grid too, the voxel nearest to the centre is included.
    return (distance <= max(1.0, float(distance.min()))).astype(np.uint8)


_SIDE_SPREAD: Final = 0.25
"""Distance from the typical place, as a share of the image's width, at which the weight of a
component is 0.6."""


_SMALLEST_LIVER_ML: Final = 150.0
"""Below the smallest adult livers after resection; the relaxed threshold stops at this volume."""

_RELAXATION: Final = (1.25, 1.6, 2.0, 2.5, 3.2, 4.0)
"""Multiples of that volume that the threshold may select, so that one component reaches it."""

_RELAXED_SIGMA_MM: Final = 5.0


@dataclass(frozen=True)
class Component:
    """The component that was kept.

    Attributes
    ----------
    n_components
        Number of components before.
    removed_share
        Size of the largest component that was removed, as a share of the kept one.
    """

    mask_zyx: MaskZYX
    n_components: int
    removed_share: float = 0.0


def keep_liver(mask_zyx: MaskZYX) -> Component:
    """Keep the component that is most likely the liver and fill the holes in it, slice by slice.

    The mask is canonical. The largest component is kept, where size is weighted by the distance
    from the typical place on the patient's right, because stomach or spleen may be segmented too,
    and be larger. Filling by slices also closes holes that are open at one end in 3-D; vessels that
    enter from the hilum are open within the slice and are not filled. An empty mask is returned
    unchanged.
    """
    from scipy import ndimage

    box = bounding_box(mask_zyx)
    if box is None:
        return Component(mask_zyx=mask_zyx, n_components=0)
    labels, sizes = components(mask_zyx[box])
    across = ndimage.center_of_mass(mask_zyx[box], labels, np.arange(1, len(sizes)))
    from_left = np.array([box[2].start + x for _, _, x in across]) / mask_zyx.shape[2]
    weights = np.exp(-0.5 * ((from_left - TYPICAL_CENTRE[2]) / _SIDE_SPREAD) ** 2)
    kept = 1 + int((sizes[1:] * weights).argmax())
    removed = int(np.delete(sizes, kept).max())
    cleaned = np.zeros_like(mask_zyx)
    cleaned[box] = _without_holes(labels == kept)
    return Component(cleaned, len(sizes) - 1, removed_share=removed / int(sizes[kept]))


def _without_holes(mask_zyx: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Fill holes in each slice: background that is not connected to the border by edges."""
    from scipy import ndimage

    within_slices = np.zeros((3, 3, 3), bool)
    within_slices[1] = ndimage.generate_binary_structure(2, 1)
    # The rim is one region of background in each slice.
    rimmed = np.pad(mask_zyx, ((0, 0), (1, 1), (1, 1)))
    regions, _ = ndimage.label(~rimmed, structure=within_slices)
    return (regions != regions[:, :1, :1])[:, 1:-1, 1:-1]


def component_at(foreground: MaskZYX, mask: MaskZYX) -> MaskZYX:
    """Return the 26-connected component that shares most voxels with a mask on the same grid.

    It is the largest one if none shares any.
    """
    labels, sizes = components(foreground)
    shared = np.bincount(labels[mask > 0], minlength=len(sizes))
    shared[0] = 0
    return (labels == (shared if shared.any() else sizes).argmax()).view(np.uint8)


def keep_largest(mask_zyx: MaskZYX) -> MaskZYX:
    """Return the largest 26-connected component alone; an empty mask stays empty."""
    cleaned = np.zeros_like(mask_zyx)
    box = bounding_box(mask_zyx)
    if box is not None:
        labels, sizes = components(mask_zyx[box])
        cleaned[box] = labels == sizes.argmax()
    return cleaned


def relaxed_margin(
    margin: npt.NDArray[np.float32], *, voxel_mm: tuple[float, float, float]
) -> npt.NDArray[np.float32]:
    """Return a margin that is positive in the likeliest region of the smallest plausible volume.

    Without a liver, a margin may be highest at scattered voxels. So it is smoothed, and the
    threshold is lowered until the largest component has the volume of a small liver.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(margin, [_RELAXED_SIGMA_MM / step for step in voxel_mm])
    wanted = _SMALLEST_LIVER_ML * 1000 / float(np.prod(voxel_mm))
    for multiple in _RELAXATION:
        place = max(0, margin.size - 1 - max(1, int(wanted * multiple)))
        threshold = np.partition(smooth, place, axis=None)[place]
        # By size alone: the axes are the model's, so left and right are not known.
        region = keep_largest((smooth > threshold).view(np.uint8))
        if region.sum() >= wanted:
            break
    return smooth - threshold


def components(mask_zyx: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Label the 26-connected components from 1 on and count their voxels; 0 is background."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask_zyx, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels, sizes
