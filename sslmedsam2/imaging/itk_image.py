"""SimpleITK images in memory; no file is read by ITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from sslmedsam2.imaging.geometry import geometry_from_axes
from sslmedsam2.imaging.stored import (
    StoredImage,
    check_voxel_type,
    multi_channel,
    spatial_shape_zyx,
)
from sslmedsam2.imaging.volume import Source


def stored_from_itk(image: sitk.Image, *, name: Path) -> StoredImage:
    """Take a SimpleITK image over as if it had been read from a file called ``name``.

    Raises
    ------
    InputError
        Of a kind of ``stored.py`` or ``geometry.py``.
    """
    native_shape = tuple(int(length) for length in image.GetSize())
    axes = len(native_shape)
    geometry, repairs = geometry_from_axes(
        name,
        shape_zyx=spatial_shape_zyx(name, native_shape),
        spacing_xyz=image.GetSpacing(),
        origin_xyz=image.GetOrigin(),
        direction=np.array(image.GetDirection(), dtype=np.float64).reshape(axes, axes),
    )
    view = sitk.GetArrayViewFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1 and view.dtype.kind != "c":
        raise multi_channel(name, image.GetNumberOfComponentsPerPixel())
    check_voxel_type(name, view.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        voxels = np.array(view, dtype=np.float32).reshape(geometry.shape_zyx)
    source = Source(name, native_shape, view.dtype, nifti_header=None)
    return StoredImage(voxels, geometry, source, repairs)
