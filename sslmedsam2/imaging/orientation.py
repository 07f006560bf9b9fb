"""Between a file's own orientation and the canonical one, by transposing and flipping only."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.geometry import affine_lps
from sslmedsam2.imaging.volume import CanonicalVolume, Geometry, Reorientation, Volume

_TIE_BREAK_RADIANS = 1e-4


def to_canonical(volume: Volume) -> CanonicalVolume:
    """Turn a volume so that z grows to superior, y to posterior and x to the patient's left.

    Axes are swapped and flipped, never interpolated, so an oblique scan keeps its obliqueness and
    a left-handed scan gives the same array as its right-handed copy. The array is contiguous; it
    shares memory with ``volume`` where nothing has to be turned.
    """
    reorientation = reorientation_of(volume.geometry)
    z, y, x = (volume.geometry.spacing_zyx_mm[axis] for axis in reorientation.axes)
    return CanonicalVolume(
        array_zyx=apply_reorientation(volume.array_zyx, reorientation),
        spacing_zyx_mm=(z, y, x),
        reorientation=reorientation,
    )


def apply_reorientation(array_zyx: npt.NDArray, reorientation: Reorientation) -> npt.NDArray:
    """Turn a native array on a volume's grid (its labels) to the canonical orientation.

    For any voxel type; the result is contiguous and may share memory with the argument.
    """
    turned = array_zyx.transpose(reorientation.axes)
    return np.ascontiguousarray(np.flip(turned, reorientation.flipped_axes))


def to_native(array_zyx: npt.NDArray, reorientation: Reorientation) -> npt.NDArray:
    """Turn a canonical array (a mask, a probability map) back into the file's orientation.

    The exact inverse of :func:`apply_reorientation`, for any voxel type.
    """
    unflipped = np.flip(array_zyx, reorientation.flipped_axes)
    return np.ascontiguousarray(unflipped.transpose(np.argsort(reorientation.axes)))


def reorientation_of(geometry: Geometry) -> Reorientation:
    """Find the swaps and flips that bring an array closest to the canonical orientation.

    Of the six ways to match the axes of the array with those of the patient, the one with the
    largest sum of absolute cosines is chosen. At exactly 45 degrees the choice would depend on
    rounding and on the storage order of the axes, so a tiny rotation is applied first, which breaks
    such ties in the same way for every storage order.
    """
    cosines = _hair_breadth_rotation() @ geometry.direction_xyz
    best = max(
        itertools.permutations(range(3)),
        key=lambda columns: sum(abs(cosines[world, columns[world]]) for world in range(3)),
    )
    # World axes and matrix columns count x, y, z; array axes count z, y, x.
    z, y, x = (2 - best[world] for world in (2, 1, 0))
    flipped = tuple(2 - world for world in (2, 1, 0) if cosines[world, best[world]] < 0)
    return Reorientation(axes=(z, y, x), flipped_axes=flipped)


def canonical_geometry(geometry: Geometry, turn: Reorientation) -> Geometry:
    """Return where the voxels of an array lie once it is turned to the canonical orientation."""
    corner = np.array([0.0, 0.0, 0.0, 1.0])
    columns, shape, spacing = [], [], []
    for axis, native in enumerate(turn.axes):
        flipped = axis in turn.flipped_axes
        column = geometry.direction_xyz[:, 2 - native]
        columns.append(-column if flipped else column)
        shape.append(geometry.shape_zyx[native])
        spacing.append(geometry.spacing_zyx_mm[native])
        corner[2 - native] = shape[-1] - 1 if flipped else 0
    x, y, z = (affine_lps(geometry) @ corner)[:3].tolist()
    return Geometry(
        shape_zyx=(shape[0], shape[1], shape[2]),
        spacing_zyx_mm=(spacing[0], spacing[1], spacing[2]),
        origin_xyz_mm=(x, y, z),
        direction_xyz=np.stack(columns[::-1], axis=1),
    )


def _hair_breadth_rotation() -> npt.NDArray[np.float64]:
    """Return a tiny rotation about all three axes, by unequal angles."""
    about_x, about_y, about_z = _TIE_BREAK_RADIANS * np.array([1.0, 2.0, 3.0])
    return np.array(
        [
            [1.0, -about_z, about_y],
            [about_z, 1.0, -about_x],
            [-about_y, about_x, 1.0],
        ]
    )
