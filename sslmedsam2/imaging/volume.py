"""``Volume`` (an image in its own geometry) and ``CanonicalVolume`` (canonically oriented).

World coordinates are LPS millimetres (x grows to the patient's left, y to posterior, z to
superior), as in DICOM and ITK. Arrays are always indexed ``[z, y, x]``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

ArrayZYX = npt.NDArray[np.float32]
MaskZYX = npt.NDArray[np.uint8]
Box = tuple[slice, slice, slice]

LEAST_LIVER_ML: Final = 400.0
LARGEST_LIVER_ML: Final = 5000.0
"""A liver outside this range is rare in adults; the reference masks have 1,013 to 2,556 ml."""


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an array lie in the patient.

    Attributes
    ----------
    shape_zyx
        Number of voxels along the array's axes.
    spacing_zyx_mm
        Distance between voxel centres along the array's axes; positive.
    origin_xyz_mm
        LPS position of the centre of voxel ``[0, 0, 0]``.
    direction_xyz
        3 x 3, orthonormal; column *i* is the LPS unit vector in which array axis x (0), y (1)
        or z (2) grows. Its determinant is -1 for a left-handed scan.
    """

    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    direction_xyz: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """The file of an image, with what is needed to write a mask that matches it.

    Attributes
    ----------
    path
        The file that was read.
    native_shape
        The shape as stored, in the file's own axis order, a trailing 1 included.
    native_dtype
        The stored voxel type, before any scaling.
    nifti_header
        The raw 348-byte (or NIfTI-2) header, or None for other formats.
    """

    path: Path
    native_shape: tuple[int, ...]
    native_dtype: np.dtype
    nifti_header: bytes | None = None


@dataclass(frozen=True)
class MaskVolume:
    """A mask or label map as read: uint8 ``[z, y, x]`` in the file's own orientation.

    0 is background; a mask may be empty.
    """

    array_zyx: MaskZYX
    geometry: Geometry
    source: Source
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Volume:
    """An image as read: float32 voxels ``[z, y, x]`` in the file's own orientation.

    The voxels are finite, unless read by ``read_stored``. ``repairs`` lists corrections (NaN
    voxels, a tiny shear), one sentence each. ``modality`` is DICOM's code, such as MR or CT; None
    if unknown.
    """

    array_zyx: ArrayZYX
    geometry: Geometry
    source: Source
    repairs: tuple[str, ...] = ()
    modality: str | None = None

    def with_mask(self, mask_zyx: MaskZYX, *notes: str) -> MaskVolume:
        """Return a mask on the grid of this image, with further notes on corrections."""
        return MaskVolume(mask_zyx, self.geometry, self.source, (*self.repairs, *notes))

    def sha256(self) -> str:
        """Return a hash of voxels and geometry, independent of the file."""
        digest = hashlib.sha256(np.ascontiguousarray(self.array_zyx).data)
        geometry = self.geometry
        for numbers in (
            geometry.shape_zyx,
            geometry.spacing_zyx_mm,
            geometry.origin_xyz_mm,
            geometry.direction_xyz,
        ):
            digest.update(np.asarray(numbers, dtype=np.float64).tobytes())
        return digest.hexdigest()


def mask_volume_ml(mask_zyx: npt.NDArray, *, spacing_zyx_mm: tuple[float, float, float]) -> float:
    """Return the volume of a mask of 0 and 1 in millilitres."""
    return float(mask_zyx.sum()) * float(np.prod(spacing_zyx_mm)) / 1000


def mask_dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Return the Dice overlap; 1 for two empty masks."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2.0 * int((a & b).sum()) / total


def faces(mask_zyx: npt.NDArray) -> Iterator[npt.NDArray]:
    """Yield the six outer faces of a volume."""
    return (np.take(mask_zyx, index, axis=axis) for axis in range(3) for index in (0, -1))


def bounding_box(mask_zyx: npt.NDArray) -> Box | None:
    """Return the smallest box around the voxels that are not 0, or None if there are none."""
    sides = []
    for others in ((1, 2), (0, 2), (0, 1)):
        occupied = np.flatnonzero(mask_zyx.any(axis=others))
        if occupied.size == 0:
            return None
        sides.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    z, y, x = sides
    return z, y, x


def block_means(array_zyx: npt.NDArray, block_zyx: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Average blocks of voxels; the last voxels are repeated where a block sticks out."""
    padding = [(0, -length % step) for length, step in zip(array_zyx.shape, block_zyx, strict=True)]
    padded = np.pad(array_zyx, padding, mode="edge")
    z, y, x = (length // step for length, step in zip(padded.shape, block_zyx, strict=True))
    blocks = padded.reshape(z, block_zyx[0], y, block_zyx[1], x, block_zyx[2])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


@dataclass(frozen=True)
class Reorientation:
    """Axis swaps and flips from a native ``[z, y, x]`` array to the canonical one.

    ``canonical = native.transpose(axes)`` followed by a flip of each canonical axis listed in
    ``flipped_axes``. Exact: no voxel is interpolated. The default leaves an array as it is.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flipped_axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class CanonicalVolume:
    """An image turned to the canonical orientation.

    Canonical means: array axis z grows to superior, y to posterior, x to the patient's left, as
    closely as flips and axis swaps allow (an oblique scan keeps its obliqueness).
    """

    array_zyx: ArrayZYX
    spacing_zyx_mm: tuple[float, float, float]
    reorientation: Reorientation = Reorientation()
