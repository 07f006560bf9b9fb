"""An image as a file stores it, and the checks that are the same for every format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, Source

MAX_VOXELS = 2**29
"""More voxels than this are refused: 2 GiB as float32, sixteen times a 1024 x 1024 x 32 scan."""


_MOST_CHANNELS = 4


@dataclass(frozen=True)
class StoredImage:
    """The result of a format reader. Unlike in a ``Volume``, its voxels may be NaN or infinite."""

    array_zyx: ArrayZYX
    geometry: Geometry
    source: Source
    repairs: tuple[str, ...]


def repair(name: str, sentence: str) -> str:
    """Return the note on a correction: a stable name, then a sentence."""
    return f"{name}: {sentence}"


def spatial_shape_zyx(path: Path, native_shape: Sequence[int]) -> tuple[int, int, int]:
    """Check a stored shape (x first) and return its three spatial axes as z, y, x.

    Axes beyond the third are accepted while they hold one element. Called before any voxel is
    read, so that a header that lies about its size cannot exhaust the memory.

    Raises
    ------
    InputError
        Of kind ``zero_size``, ``two_dimensional``, ``multi_frame``, ``multi_channel``,
        ``single_slice``, ``channel_first`` or ``too_large``.
    """
    text = " x ".join(str(length) for length in native_shape)
    if any(length < 1 for length in native_shape):
        raise InputError(
            path,
            kind="zero_size",
            reason=f"the image has no voxels ({text})",
            remedy="Export the series again",
        )
    if len(native_shape) < 3:
        raise InputError(
            path,
            kind="two_dimensional",
            reason=f"the image has {len(native_shape)} axes ({text}), not 3",
            remedy="Give a whole volume in one file",
        )
    _refuse_extra_axes(path, native_shape, text)
    x, y, z = native_shape[:3]
    if min(x, y, z) == 1:
        raise InputError(
            path,
            kind="single_slice",
            reason=f"the volume is a single slice ({text})",
            remedy="Give a volume of at least 2 slices",
        )
    if math.prod((x, y, z)) > MAX_VOXELS:
        raise too_large(path, native_shape)
    return z, y, x


def too_large(path: Path, native_shape: Sequence[int]) -> InputError:
    """Return the error for a shape of more than ``MAX_VOXELS`` voxels."""
    text = " x ".join(str(length) for length in native_shape)
    return InputError(
        path,
        kind="too_large",
        reason=f"the header claims {text} voxels, more than {MAX_VOXELS}",
        remedy="Check the file's header, or crop or resample the volume",
    )


def _refuse_extra_axes(path: Path, native_shape: Sequence[int], text: str) -> None:
    """Refuse a fourth axis (time, echo, b-value) or further ones of more than one element."""
    if len(native_shape) == 4 and native_shape[0] <= _MOST_CHANNELS < min(native_shape[1:]):
        raise InputError(
            path,
            kind="channel_first",
            reason=f"its first axis looks like channels ({text})",
            remedy="Save one channel, with the axes x, y, z",
        )
    if len(native_shape) > 3 and native_shape[3] > 1:
        raise InputError(
            path,
            kind="multi_frame",
            reason=f"the image holds {native_shape[3]} frames ({text})",
            remedy="Split it into one file per frame",
        )
    if any(length > 1 for length in native_shape[4:]):
        raise InputError(
            path,
            kind="multi_channel",
            reason=f"each voxel holds several values ({text})",
            remedy="Give an image with one number per voxel",
        )


def check_voxel_type(path: Path, dtype: np.dtype) -> None:
    """Refuse voxel types that are not one real number.

    Raises
    ------
    InputError
        Of kind ``multi_channel`` (RGB, RGBA), ``complex`` or ``unsupported_dtype``.
    """
    if dtype.fields is not None:
        raise InputError(
            path,
            kind="multi_channel",
            reason="the voxels are colours (RGB), not intensities",
            remedy="Give an image with one number per voxel",
        )
    if dtype.kind == "c":
        raise InputError(
            path,
            kind="complex",
            reason="the voxels are complex numbers",
            remedy="Give the magnitude image",
        )
    if dtype.kind not in "iuf":
        raise InputError(
            path,
            kind="unsupported_dtype",
            reason="the voxels are neither integers nor floating-point numbers",
            remedy="Convert the voxels to an integer or floating-point type",
        )


def unreadable_header(path: Path, reason: str) -> InputError:
    """Return the error for a header that is damaged or uses what is not read."""
    return InputError(
        path,
        kind="unreadable_header",
        reason=reason,
        remedy="Check that the file is a complete image of its format and copy or export it again",
    )


def missing_data_file(path: Path, name: str) -> InputError:
    """Return the error for a header whose voxels lie in another file that is not there."""
    return InputError(
        path,
        kind="missing_data_file",
        reason=f"the data file {name!r} of the header is not there",
        remedy="Put the data file beside the header",
    )


def truncated(path: Path) -> InputError:
    """Return the error for a file that ends before its last voxel."""
    return InputError(
        path,
        kind="truncated_data",
        reason="the file ends before the last voxel that its header announces",
        remedy="Copy or export the file again",
    )


def corrupt(path: Path, detail: object) -> InputError:
    """Return the error for compressed data that cannot be decompressed or fails its checksum."""
    return InputError(
        path,
        kind="corrupt_data",
        reason=f"the compressed data is damaged ({detail})",
        remedy="Copy or export the file again",
    )


def multi_channel(path: Path, count: int) -> InputError:
    """Return the error for voxels of ``count`` values each."""
    return InputError(
        path,
        kind="multi_channel",
        reason=f"each voxel holds {count} values",
        remedy="Give an image with one number per voxel",
    )
