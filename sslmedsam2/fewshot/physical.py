"""One patient's other sequence on the query's grid, by where it lies in the scanner."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from sslmedsam2.fewshot.strategy import Query, Support
from sslmedsam2.imaging.orientation import apply_reorientation, to_native
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, MaskZYX, Reorientation


def on_query_grid(support: Support, query: Query) -> tuple[ArrayZYX, MaskZYX]:
    """Resample a support's image and mask to the query's canonical grid; 0 where it has nothing.

    Both files must be of one patient in one position, as the sequences of one examination are.
    """
    turn = query.image.reorientation
    own = support.image.reorientation
    image = _resampled(support.image.array_zyx, own, support.geometry, query.geometry)
    share = _resampled(support.mask_zyx.astype(np.float32), own, support.geometry, query.geometry)
    mask = (share > 0.5).astype(np.uint8)
    return apply_reorientation(image, turn), apply_reorientation(mask, turn)


def _resampled(
    canonical_zyx: npt.NDArray,
    reorientation: Reorientation,
    geometry: Geometry,
    target: Geometry,
) -> npt.NDArray[np.float32]:
    moving = sitk.GetImageFromArray(to_native(canonical_zyx, reorientation))
    _place(moving, geometry)
    grid = sitk.Image([int(n) for n in target.shape_zyx[::-1]], sitk.sitkUInt8)
    _place(grid, target)
    return sitk.GetArrayFromImage(
        sitk.Resample(moving, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    )


def _place(image: sitk.Image, geometry: Geometry) -> None:
    image.SetSpacing([float(step) for step in geometry.spacing_zyx_mm[::-1]])
    image.SetOrigin([float(value) for value in geometry.origin_xyz_mm])
    image.SetDirection(geometry.direction_xyz.ravel().tolist())
