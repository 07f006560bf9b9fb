"""Checks that all readers share, and the errors of images that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from sslmedsam2.errors import InputError

MAX_VOXELS = 2**29
"""More voxels than this are refused: 2 GiB as float32, sixteen times a 1024 x 1024 x 32 scan."""

_MOST_CHANNELS = 4

_EXPORT_AGAIN = "Export the series again"
_COPY_AGAIN = "Copy or export the file again"
_FIX_AFFINE = "Correct the affine matrix in the header"
_REMEDIES = {
    "missing_file": "Check the path",
    "broken_symlink": "Mount the folder that the link points into, or copy the file itself",
    "not_a_file": "Give the path of an image file",
    "permission_denied": "Make it readable, or run as a user who may read it",
    "unreadable_file": "Check the disk or the mount",
    "empty_file": _COPY_AGAIN,
    "truncated_data": _COPY_AGAIN,
    "corrupt_data": _COPY_AGAIN,
    "unreadable_header": "Check that the file is a complete image of its format and copy or export"
    " it again",
    "data_file_elsewhere": "Put the data file beside the header and write its name alone into the"
    " header",
    "missing_data_file": "Put the data file beside the header",
    "nifti_pair": "Convert the pair to a single .nii.gz file",
    "zero_size": _EXPORT_AGAIN,
    "two_dimensional": "Give a whole volume in one file",
    "single_slice": "Give a volume of at least 2 slices",
    "multi_frame": "Split it into one file per volume",
    "channel_first": "Save one channel, with the axes x, y, z",
    "multi_channel": "Give an image with one number per voxel",
    "too_large": "Check the file's header, or crop or resample the volume",
    "complex": "Give the magnitude image",
    "unsupported_dtype": "Convert the voxels to an integer or floating-point type",
    "bad_spacing": "Correct the voxel size in the header",
    "bad_quaternion": "Correct the qform in the header",
    "non_finite_affine": _FIX_AFFINE,
    "singular_affine": _FIX_AFFINE,
    "sheared_affine": "Resample the volume to perpendicular axes",
    "no_finite_voxels": _EXPORT_AGAIN,
    "constant": _EXPORT_AGAIN,
    "label_map": "Give the scan; a mask beside it is called mask_<name> or <name>_mask",
    "shape_mismatch": "Export the mask on the grid of its image",
    "grid_mismatch": "Export the mask on the grid of its image",
    "empty_mask": "Remove the case, or correct its mask",
    "full_mask": "Remove the case, or correct its mask",
    "no_such_label": "Give the liver's value with --label, or remove the case",
    "not_labels": "Give a label map with these values, or remove the file",
}
"""What to do about each kind of error of an image."""


def image_error(path: Path, kind: str, reason: str) -> InputError:
    """Return the error of an image that cannot be used, with the remedy of its kind."""
    return InputError(path, kind=kind, reason=reason, remedy=_REMEDIES[kind])


def repair(name: str, sentence: str) -> str:
    """Return the note on a correction: a stable name, then a sentence."""
    return f"{name}: {sentence}"


NO_SPACING: Final = repair("no_spacing", "the header names no voxel size; 1 mm is assumed")
"""The note on an image without a voxel size."""


def spatial_shape_zyx(path: Path, native_shape: Sequence[int]) -> tuple[int, int, int]:
    """Check a stored shape (x first) and return its three spatial axes as z, y, x.

    Axes beyond the third are accepted while they hold one element. Called before any voxel is
    read, so that a header that lies about its size cannot exhaust the memory.

    Raises InputError: of kind ``zero_size``, ``two_dimensional``, ``multi_frame``,
    ``multi_channel``, ``single_slice``, ``channel_first`` or ``too_large``.
    """
    axes, text = len(native_shape), " x ".join(map(str, native_shape))
    if any(length < 1 for length in native_shape):
        raise image_error(path, "zero_size", f"the image has no voxels ({text})")
    if axes < 3:
        raise image_error(path, "two_dimensional", f"the image has {axes} axes ({text}), not 3")
    if axes == 4 and native_shape[0] <= _MOST_CHANNELS < min(native_shape[1:]):
        raise image_error(path, "channel_first", f"its first axis looks like channels ({text})")
    if axes > 3 and native_shape[3] > 1:
        raise image_error(path, "multi_frame", f"the file holds {native_shape[3]} volumes ({text})")
    if any(length > 1 for length in native_shape[4:]):
        raise image_error(path, "multi_channel", f"each voxel holds several values ({text})")
    if min(native_shape[:3]) == 1:
        raise image_error(path, "single_slice", f"the volume is a single slice ({text})")
    refuse_too_many(path, native_shape)
    x, y, z = native_shape[:3]
    return z, y, x


def refuse_too_many(path: Path, native_shape: Sequence[int]) -> None:
    """Refuse more than ``MAX_VOXELS`` voxels, or values of voxels (kind ``too_large``)."""
    if math.prod(native_shape) > MAX_VOXELS:
        text = " x ".join(map(str, native_shape))
        reason = f"the header claims {text} voxels, more than {MAX_VOXELS}"
        raise image_error(path, "too_large", reason)


def check_voxel_type(path: Path, dtype: np.dtype) -> None:
    """Refuse voxel types that are not one real number.

    Raises InputError: of kind ``multi_channel`` (RGB, RGBA), ``complex`` or ``unsupported_dtype``.
    """
    if dtype.fields is not None:
        reason = "the voxels are colours (RGB), not intensities"
        raise image_error(path, "multi_channel", reason)
    if dtype.kind == "c":
        raise image_error(path, "complex", "the voxels are complex numbers")
    if dtype.kind not in "iuf":
        reason = "the voxels are neither integers nor floating-point numbers"
        raise image_error(path, "unsupported_dtype", reason)


def check_one_channel(path: Path, channels: int) -> None:
    """Refuse voxels of several values each (kind ``multi_channel``)."""
    if channels != 1:
        raise image_error(path, "multi_channel", f"each voxel holds {channels} values")


def unreadable_header(path: Path, reason: str) -> InputError:
    """Return the error of a header that is damaged or uses unsupported options."""
    return image_error(path, "unreadable_header", reason)
