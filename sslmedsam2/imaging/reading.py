"""Read an image as a ``Volume``, or raise an ``InputError`` with the reason."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.formats import (
    IMAGE_EXTENSIONS,
    METAIMAGE_EXTENSIONS,
    NIBABEL_EXTENSIONS,
    NIFTI_EXTENSIONS,
    image_extension,
)
from sslmedsam2.imaging.geometry import geometry_from_axes
from sslmedsam2.imaging.intensity import clean_intensities, looks_like_labels
from sslmedsam2.imaging.metaimage_reading import read_metaimage
from sslmedsam2.imaging.nifti_reading import read_nifti, read_nifti_grid
from sslmedsam2.imaging.nrrd_reading import read_nrrd
from sslmedsam2.imaging.stored import (
    check_one_channel,
    check_voxel_type,
    image_error,
    repair,
    spatial_shape_zyx,
)
from sslmedsam2.imaging.volume import ArrayZYX, MaskVolume, Source, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813


def read_volume(path: Path) -> Volume:
    """Read an intensity image: NIfTI, MetaImage, NRRD and others, see ``formats.py``.

    Corrections are listed in the volume's ``repairs``, each as ``name: sentence``:
    ``misnamed``, ``non_finite_voxels``, ``tiny_shear``, ``no_spacing``, ``no_orientation``,
    ``unusable_form``, ``forms_disagree``, ``bad_scaling``, ``units``, ``trailing_bytes``,
    ``outliers``, ``padding``.

    Raises
    ------
    InputError
        With a stable ``kind``. About the file: ``missing_file``, ``broken_symlink``,
        ``not_a_file``, ``permission_denied``, ``unreadable_file``, ``unsupported_extension``,
        ``empty_file``. About the voxels: ``no_finite_voxels``, ``constant``, ``label_map``.
        Others: see ``nifti_reading.py``, ``metaimage_reading.py``, ``nrrd_reading.py``,
        ``stored.py`` and ``geometry.py``.
    """
    return _checked_volume(read_stored(path))


def volume_from_itk(image: sitk.Image) -> Volume:
    """Convert a SimpleITK image; corrects and raises as :func:`read_volume` does."""
    return _checked_volume(stored_from_itk(image, name=Path("image in memory")))


def stored_from_itk(image: sitk.Image, *, name: Path) -> Volume:
    """Convert a SimpleITK image; raises as :func:`read_stored` does for a file ``name``."""
    import SimpleITK as sitk  # noqa: N813

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
    if view.dtype.kind != "c":
        check_one_channel(name, image.GetNumberOfComponentsPerPixel())
    check_voxel_type(name, view.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        voxels = np.array(view, dtype=np.float32).reshape(geometry.shape_zyx)
    return Volume(voxels, geometry, Source(name, native_shape, view.dtype), repairs)


def _checked_volume(stored: Volume) -> Volume:
    repairs = correct_voxels(stored.source.path, stored.array_zyx)
    return replace(stored, repairs=stored.repairs + repairs)


def correct_voxels(path: Path, voxels: ArrayZYX) -> tuple[str, ...]:
    """Correct the intensities of an image ``[z, y, x]`` in place; return notes.

    Voxels that are not finite become the lowest finite value, outliers are clipped, and padding
    becomes background, see ``intensity.py``.

    Raises
    ------
    InputError
        Of kind ``no_finite_voxels``, ``constant`` or ``label_map``.
    """
    repairs = _make_finite(path, voxels)
    if voxels.min() == voxels.max():
        reason = f"all voxels have the same value ({voxels.flat[0]:g})"
        raise image_error(path, "constant", reason)
    if looks_like_labels(voxels):
        reason = f"it holds {np.unique(voxels).size} values in flat areas, as a mask does"
        raise image_error(path, "label_map", reason)
    return (*repairs, *clean_intensities(voxels))


def read_mask(path: Path) -> MaskVolume:
    """Read a mask: every voxel above 0 becomes 1. An empty or full mask is legal.

    Raises
    ------
    InputError
        As :func:`read_volume`, but not for the values of voxels.
    """
    stored = read_stored(path)
    return stored.with_mask((stored.array_zyx > 0).view(np.uint8))


def read_grid(path: Path) -> MaskVolume:
    """Return an empty mask on the grid of an image; for NIfTI, even if its voxels are damaged.

    For NIfTI only the header is read, for other formats the whole file.

    Raises
    ------
    InputError
        As :func:`read_stored`; for NIfTI only what concerns the header.
    """
    if _check_file(path) in NIFTI_EXTENSIONS:
        return read_nifti_grid(path)
    stored = read_stored(path)
    return stored.with_mask(np.zeros(stored.geometry.shape_zyx, np.uint8))


def read_stored(path: Path) -> Volume:
    """Read any image as stored: its voxels may be NaN or infinite. Raises InputError."""
    extension = _check_file(path)
    try:
        if extension in NIFTI_EXTENSIONS:
            return read_nifti(path, extension=extension)
        if extension in NIBABEL_EXTENSIONS:
            from sslmedsam2.imaging.nibabel_reading import read_by_nibabel

            return read_by_nibabel(path)
        if extension in METAIMAGE_EXTENSIONS:
            return read_metaimage(path)
        return read_nrrd(path)
    except PermissionError as error:
        raise _permission_denied(path) from error
    except OSError as error:
        raise _unreadable_file(path, error) from error


def _check_file(path: Path) -> str:
    """Return the extension of an image file; refuse anything else, and empty files."""
    try:
        status = path.stat()
    except PermissionError as error:
        raise _permission_denied(path) from error
    except OSError as error:
        if path.is_symlink():
            reason = "the link points to a file that is not there"
            raise image_error(path, "broken_symlink", reason) from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise image_error(path, "missing_file", "the file does not exist") from error
        raise _unreadable_file(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise image_error(path, "not_a_file", "this is a folder or a device, not a file")
    extension = image_extension(path)
    if extension is None:
        raise InputError(
            path,
            kind="unsupported_extension",
            reason="the name does not end as an image's does",
            remedy=f"Supported are {', '.join(IMAGE_EXTENSIONS)}",
        )
    if status.st_size == 0:
        raise image_error(path, "empty_file", "the file is empty (0 bytes)")
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise _permission_denied(path)
    return extension


def _make_finite(path: Path, voxels: ArrayZYX) -> tuple[str, ...]:
    """Replace NaN and infinite voxels in place by the lowest finite value; return notes.

    Such voxels come from masking and from divisions in the background. The lowest value is the
    background in MR (about 0) and in CT (air).
    """
    # Minimum and maximum show a NaN or infinity, without an array of flags for sound volumes.
    if np.isfinite(voxels.min()) and np.isfinite(voxels.max()):
        return ()
    bad = ~np.isfinite(voxels)
    if bad.all():
        raise image_error(path, "no_finite_voxels", "every voxel is NaN or infinite")
    lowest = voxels.min(where=~bad, initial=np.inf)
    voxels[bad] = lowest
    count = int(np.count_nonzero(bad))
    note = f"{count} NaN or infinite voxels were set to the lowest finite value, {lowest:g}"
    return (repair("non_finite_voxels", note),)


def _permission_denied(path: Path) -> InputError:
    return image_error(path, "permission_denied", "the file may not be read by this user")


def _unreadable_file(path: Path, error: OSError) -> InputError:
    reason = f"the system cannot read the file ({error.strerror or error})"
    return image_error(path, "unreadable_file", reason)
