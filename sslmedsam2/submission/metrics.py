"""Overlap, surface distances and volume of one mask against its reference.

Definitions
-----------
Surface
    The voxels of a mask with at least one of their six face neighbours outside it; beyond the
    array's edge is outside. Distances run between voxel centres, in millimetres.
Hausdorff distance
    The largest distance from any surface voxel of either mask to the other mask's surface: the
    full maximum, as in the challenge.
HD95
    The larger of the two directed 95th percentiles (linear interpolation).
Average symmetric surface distance
    The mean over the surface voxels of both masks together.

Empty masks
-----------
Both empty: they agree, Dice 1 and all distances 0. One empty: Dice 0, the distances are not
defined and are NaN; tables say how they count such a case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sslmedsam2.imaging.volume import bounding_box

BoolZYX = npt.NDArray[np.bool_]
SpacingZYX = tuple[float, float, float]


@dataclass(frozen=True)
class MaskMetrics:
    """The figures of one mask; see the module for their definitions.

    ``volume_error_ml`` is predicted less reference; ``volume_error_percent`` relates it to the
    reference and is NaN where that is empty.
    """

    dice: float
    hausdorff_mm: float
    hausdorff95_mm: float
    surface_distance_mm: float
    volume_ml: float
    reference_volume_ml: float
    volume_error_ml: float
    volume_error_percent: float


def measure(
    prediction_zyx: npt.NDArray[Any], reference_zyx: npt.NDArray[Any], *, spacing_zyx_mm: SpacingZYX
) -> MaskMetrics:
    """Compare two masks on one grid; every voxel that is not 0 belongs to the mask.

    Raises
    ------
    ValueError
        The arrays differ in shape or are not three-dimensional.
    """
    if prediction_zyx.shape != reference_zyx.shape or prediction_zyx.ndim != 3:
        raise ValueError(f"shapes {prediction_zyx.shape} and {reference_zyx.shape} do not match")
    prediction, reference = _crop_to_both(prediction_zyx != 0, reference_zyx != 0)
    predicted, expected = int(prediction.sum()), int(reference.sum())
    common = int((prediction & reference).sum())
    forth, back = _surface_distances(prediction, reference, spacing_zyx_mm)
    voxel_ml = float(np.prod(spacing_zyx_mm)) / 1000
    error_ml = (predicted - expected) * voxel_ml
    return MaskMetrics(
        dice=2 * common / (predicted + expected) if predicted + expected else 1.0,
        hausdorff_mm=float(max(forth.max(), back.max())),
        hausdorff95_mm=float(max(np.percentile(forth, 95), np.percentile(back, 95))),
        surface_distance_mm=float(np.concatenate([forth, back]).mean()),
        volume_ml=predicted * voxel_ml,
        reference_volume_ml=expected * voxel_ml,
        volume_error_ml=error_ml,
        volume_error_percent=100 * (predicted - expected) / expected if expected else float("nan"),
    )


def diagonal_mm(shape_zyx: tuple[int, int, int], *, spacing_zyx_mm: SpacingZYX) -> float:
    """Return the distance between the centres of two opposite corner voxels.

    No distance between masks of this grid exceeds it.
    """
    return float(np.linalg.norm((np.array(shape_zyx) - 1) * np.array(spacing_zyx_mm)))


def surface(mask: BoolZYX) -> BoolZYX:
    """Return the voxels of a mask that have a face neighbour outside it."""
    interior = mask.copy()
    for axis in range(mask.ndim):
        inner, whole = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        inner[1:] &= whole[:-1]
        inner[:-1] &= whole[1:]
        inner[[0, -1]] = False
    return mask & ~interior


def _crop_to_both(one: BoolZYX, other: BoolZYX) -> tuple[BoolZYX, BoolZYX]:
    """Cut both masks to the smallest box that holds both (a full scan is mostly background)."""
    box = bounding_box(one | other) or (slice(0, 0),) * 3
    return one[box], other[box]


def _surface_distances(
    one: BoolZYX, other: BoolZYX, spacing_zyx_mm: SpacingZYX
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the distances from each surface voxel of one mask to the other's, both ways."""
    if not one.any() or not other.any():
        undefined = np.array([0.0 if one.any() == other.any() else np.nan])
        return undefined, undefined
    surface_one, surface_other = surface(one), surface(other)
    return (
        _directed_distances(surface_one, surface_other, spacing_zyx_mm),
        _directed_distances(surface_other, surface_one, spacing_zyx_mm),
    )


def _directed_distances(
    start: BoolZYX, goal: BoolZYX, spacing_zyx_mm: SpacingZYX
) -> npt.NDArray[np.float64]:
    """Return the distance of each ``start`` voxel to the nearest ``goal`` voxel.

    The exact distance transform takes the same time for all masks. A search tree is
    quicker for good masks and takes minutes where two large surfaces lie far apart.
    """
    nearest = ndimage.distance_transform_edt(
        ~goal, sampling=spacing_zyx_mm, return_distances=False, return_indices=True
    )
    # Only the start voxels' distances are made, which saves memory on large scans.
    steps = (nearest[:, start].T - np.argwhere(start)) * spacing_zyx_mm
    return np.linalg.norm(steps, axis=1)
