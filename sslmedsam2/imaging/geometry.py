"""Build a ``Geometry`` from the numbers of a header, compare geometries, and compute affines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.stored import image_error, repair
from sslmedsam2.imaging.volume import Geometry

Matrix = npt.NDArray[np.float64]

UNITS_MM = {
    "m": ("metres", 1000.0),
    "cm": ("centimetres", 10.0),
    "um": ("micrometres", 0.001),
    "µm": ("micrometres", 0.001),
}
"""Units of length in headers, other than mm: name, and length in mm."""

_PLAUSIBLE_SIZE_MM = (0.1, 50.0)

SPACING_RANGE_MM = (0.01, 100.0)
"""Voxel sizes outside this range come from a damaged header, or are not in mm."""

FARTHEST_ORIGIN_MM = 1e6
"""Beyond this, the single precision of NIfTI cannot distinguish neighbouring voxels."""

ROUNDING_SHEAR = 1e-4
"""Largest cosine between two axes that is taken for rounding in the header."""

TINY_SHEAR = 0.02
"""Largest cosine between two axes (about one degree off a right angle) that is repaired."""

SINGULAR_VOLUME = 1e-3
"""Below this volume of the parallelepiped of the unit axes, they do not span space."""

SAME_GRID_VOXELS = 0.1
"""Grids whose corners differ by less than this fraction of a voxel are the same grid."""

LPS_FROM_RAS = np.array([[-1.0], [-1.0], [1.0]])
"""Factors of the rows x, y, z of an affine that convert RAS to LPS, or back."""


def is_plausible_size(spacing_mm: npt.NDArray[np.float64]) -> bool:
    """Return whether these are plausible voxel sizes of a scan, to choose between two units."""
    low, high = _PLAUSIBLE_SIZE_MM
    return bool(((spacing_mm >= low) & (spacing_mm <= high)).all())


def check_spacing(path: Path, spacing_mm: Sequence[float]) -> None:
    """Refuse zero, negative, non-finite or absurd voxel sizes (kind ``bad_spacing``)."""
    low, high = SPACING_RANGE_MM
    if all(low <= length <= high for length in spacing_mm):
        return
    text = " x ".join(f"{length:g}" for length in spacing_mm)
    reason = f"the voxel size {text} mm is not within {low:g} to {high:g} mm"
    raise image_error(path, "bad_spacing", reason)


def geometry_from_steps(
    path: Path,
    *,
    shape_zyx: tuple[int, int, int],
    steps_xyz_mm: Matrix,
    origin_xyz_mm: npt.NDArray[np.float64],
) -> tuple[Geometry, tuple[str, ...]]:
    """Build a geometry from the LPS steps between neighbouring voxels.

    Parameters
    ----------
    steps_xyz_mm
        3 x 3; column *i* is the LPS vector from a voxel to its neighbour along array axis x, y, z.
    origin_xyz_mm
        LPS position of the first voxel's centre.

    Returns
    -------
    The geometry, its direction orthonormal, and notes on repairs.

    Raises InputError: of kind ``non_finite_affine``, ``singular_affine``, ``bad_spacing`` or
    ``sheared_affine``.
    """
    # False for NaN too.
    is_near = bool((np.abs(origin_xyz_mm) < FARTHEST_ORIGIN_MM).all())
    if not (np.isfinite(steps_xyz_mm).all() and is_near):
        reason = (
            "the position or orientation in the header is not finite, or far out of any scanner"
        )
        raise image_error(path, "non_finite_affine", reason)
    spacing_xyz = np.linalg.norm(steps_xyz_mm, axis=0)
    units = steps_xyz_mm / np.where(spacing_xyz > 0, spacing_xyz, 1.0)
    if abs(np.linalg.det(units)) < SINGULAR_VOLUME:
        reason = "the axes in the header do not span space (singular affine)"
        raise image_error(path, "singular_affine", reason)
    check_spacing(path, spacing_xyz.tolist())
    direction, repairs = _orthonormal(path, units)
    x, y, z = spacing_xyz.tolist()
    geometry = Geometry(
        shape_zyx=shape_zyx,
        spacing_zyx_mm=(z, y, x),
        origin_xyz_mm=tuple(origin_xyz_mm.tolist()),
        direction_xyz=direction,
    )
    return geometry, repairs


def geometry_from_axes(
    path: Path,
    *,
    shape_zyx: tuple[int, int, int],
    spacing_xyz: Sequence[float],
    origin_xyz: Sequence[float],
    direction: Matrix,
    unit: str = "mm",
) -> tuple[Geometry, tuple[str, ...]]:
    """Build a geometry from spacing, origin and direction, of which three axes are used.

    Parameters
    ----------
    spacing_xyz, origin_xyz
        One number for each axis, x first; LPS.
    direction
        One column for each axis: the LPS direction in which it grows.
    unit
        Unit of the lengths. It is ignored if it would give implausible voxel sizes.

    Raises InputError: as :func:`geometry_from_steps`.
    """
    spacing = np.array(spacing_xyz[:3], dtype=np.float64)
    named, factor = UNITS_MM.get(unit, ("mm", 1.0))
    is_converted = factor != 1 and is_plausible_size(spacing * factor)
    factor = factor if is_converted else 1.0
    check_spacing(path, (spacing * factor).tolist())
    geometry, repairs = geometry_from_steps(
        path,
        shape_zyx=shape_zyx,
        steps_xyz_mm=direction[:3, :3] * spacing * factor,
        origin_xyz_mm=np.array(origin_xyz[:3], dtype=np.float64) * factor,
    )
    if is_converted:
        repairs += (repair("units", f"lengths were converted from {named} to mm"),)
    return geometry, repairs


def _orthonormal(path: Path, units: Matrix) -> tuple[Matrix, tuple[str, ...]]:
    """Return the orthonormal matrix nearest to three unit columns (their polar factor)."""
    shear = float(np.abs(units.T @ units - np.eye(3)).max())
    degrees = float(np.degrees(np.arcsin(min(shear, 1.0))))
    if shear > TINY_SHEAR:
        reason = f"the axes are {degrees:.1f} degrees off a right angle (sheared affine)"
        raise image_error(path, "sheared_affine", reason)
    left, _, right = np.linalg.svd(units)
    direction = left @ right
    if shear <= ROUNDING_SHEAR:
        return direction, ()
    note = f"the axes were {degrees:.2f} degrees off a right angle; the nearest rotation is used"
    return direction, (repair("tiny_shear", note),)


def affine_lps(geometry: Geometry) -> Matrix:
    """Return the 4 x 4 matrix from voxel index (x, y, z) to LPS millimetres."""
    affine = np.eye(4)
    affine[:3, :3] = geometry.direction_xyz * np.array(geometry.spacing_zyx_mm[::-1])
    affine[:3, 3] = geometry.origin_xyz_mm
    return affine


def affine_ras(geometry: Geometry) -> Matrix:
    """Return the 4 x 4 matrix from voxel index (x, y, z) to RAS millimetres, as NIfTI has it."""
    affine = affine_lps(geometry)
    affine[:3] *= LPS_FROM_RAS
    return affine


def corners_xyz(geometry: Geometry) -> Matrix:
    """Return the indices of the eight corner voxels as rows ``(x, y, z, 1)``."""
    ends = [(0, length - 1) for length in reversed(geometry.shape_zyx)]
    return np.array([(*corner, 1) for corner in itertools.product(*ends)], dtype=np.float64)


def same_grid(first: Geometry, second: Geometry) -> bool:
    """Return whether two arrays of these geometries can be compared voxel by voxel."""
    if first.shape_zyx != second.shape_zyx:
        return False
    difference = affine_lps(first) - affine_lps(second)
    apart_mm = np.linalg.norm(corners_xyz(first) @ difference.T, axis=1).max()
    return bool(apart_mm <= SAME_GRID_VOXELS * min(first.spacing_zyx_mm + second.spacing_zyx_mm))
