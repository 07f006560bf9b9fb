"""nnU-Net's resampling as matrix products: the same results, in less time and memory.

nnU-Net resamples with skimage's spline ``resize``, slice by slice if a volume is anisotropic. A
spline of any order is linear in the voxels and separable in the axes, so each axis has one fixed
matrix: the identity, resized with the function that skimage calls. Results agree with nnU-Net's to
rounding (see ``tests/inference/test_inference_resampling.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.volume import bounding_box
from sslmedsam2.inference.model_folder import Resampling

_ANISOTROPY_THRESHOLD = 3.0
"""nnU-Net resamples the thick axis separately above this ratio of spacings."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Resampler:
    """One matrix for each axis, ``(new, old)``; None if the length of the axis does not change.

    ``thick_axis`` is the axis that nnU-Net treats separately, or None if it resizes the volume as a
    whole. After splines that can overshoot (order above 1), values are clipped to the range of each
    slice, or of the volume.
    """

    matrices: tuple[Matrix | None, Matrix | None, Matrix | None]
    thick_axis: int | None
    order: int
    new_shape: tuple[int, int, int]


def resampled_shape(
    shape: tuple[int, int, int],
    *,
    spacing_mm: tuple[float, float, float],
    new_spacing_mm: tuple[float, float, float],
) -> tuple[int, int, int]:
    """Return the shape nnU-Net gives a volume at a new spacing."""
    a, b, c = (
        # At least one voxel, even for a slab thinner than half of the new spacing.
        max(1, round(old / new * n))
        for old, new, n in zip(spacing_mm, new_spacing_mm, shape, strict=True)
    )
    return a, b, c


def make_resampler(
    shape: tuple[int, int, int],
    new_shape: tuple[int, int, int],
    *,
    spacing_mm: tuple[float, float, float],
    new_spacing_mm: tuple[float, float, float],
    rule: Resampling,
) -> Resampler:
    """Return nnU-Net's resampling between two grids of the same extent."""
    thick = _thick_axis(spacing_mm, new_spacing_mm, rule.force_separate_z)
    matrices: list[Matrix | None] = []
    for axis, (old, new) in enumerate(zip(shape, new_shape, strict=True)):
        if old == new:
            matrices.append(None)
        elif axis == thick:
            matrices.append(_map_coordinates_matrix(old, new, rule.order_z))
        else:
            matrices.append(_resize_matrix(old, new, rule.order))
    first, second, third = matrices
    return Resampler((first, second, third), thick, rule.order, new_shape)


def resample(volume: npt.NDArray[np.float32], resampler: Resampler) -> npt.NDArray[np.float32]:
    """Resample a whole float32 volume."""
    if resampler.order <= 1:
        return _apply(volume, resampler.matrices)
    if resampler.thick_axis is None:
        out = _apply(volume, resampler.matrices)
        return np.clip(out, volume.min(), volume.max(), out=out)
    thick = resampler.thick_axis
    in_plane = [m if axis != thick else None for axis, m in enumerate(resampler.matrices)]
    others = tuple(axis for axis in range(3) if axis != thick)
    out = _apply(volume, in_plane)
    np.clip(
        out,
        volume.min(axis=others, keepdims=True),
        volume.max(axis=others, keepdims=True),
        out=out,
    )
    along = [m if axis == thick else None for axis, m in enumerate(resampler.matrices)]
    return _apply(out, along)


def resample_above_zero(
    margin: npt.NDArray[np.float32], resampler: Resampler
) -> npt.NDArray[np.uint8]:
    """Return where the resampled ``margin`` is positive, without storing it as a whole.

    For linear resampling only (nnU-Net's for logits). It needs no clipping, and is not positive
    between values that are not positive, so only the surroundings of positive ones are computed.
    """
    out = np.zeros(resampler.new_shape, np.uint8)
    positive = bounding_box(margin > 0)
    if positive is None:
        return out
    matrices = list(resampler.matrices)
    inner: list[slice] = []
    for axis, (matrix, side) in enumerate(zip(resampler.matrices, positive, strict=True)):
        if matrix is None:
            inner.append(side)
            margin = margin[(slice(None),) * axis + (side,)]
        else:
            reached = np.flatnonzero(matrix[:, side].any(axis=1))
            inner.append(slice(int(reached[0]), int(reached[-1]) + 1) if reached.size else slice(0))
            matrices[axis] = matrix[inner[axis]]
    for plane, above in zip(_planes(margin, matrices), out[tuple(inner)], strict=True):
        np.greater(plane, 0, out=above, casting="unsafe")
    return out


def resample_margin(
    margin: npt.NDArray[np.float32], resampler: Resampler
) -> npt.NDArray[np.float32]:
    """Return the resampled ``margin``; positive exactly where :func:`resample_above_zero` is 1."""
    out = np.empty(resampler.new_shape, np.float32)
    for plane, resampled in zip(_planes(margin, resampler.matrices), out, strict=True):
        resampled[:] = plane
    return out


def _planes(
    margin: npt.NDArray[np.float32], matrices: Sequence[Matrix | None]
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the planes of the resampled margin along the first axis, one in memory at a time."""
    first, second, third = matrices
    for index in range(len(margin if first is None else first)):
        if first is None:
            plane = margin[index]
        else:
            used = np.flatnonzero(first[index])
            plane = np.tensordot(first[index, used], margin[used], axes=1)
        if second is not None:
            plane = second @ plane
        if third is not None:
            plane = plane @ third.T
        yield plane


def _apply(
    volume: npt.NDArray[np.float32],
    matrices: Sequence[Matrix | None],
) -> npt.NDArray[np.float32]:
    """Apply the matrices, those that shrink most first, to keep intermediate arrays small."""
    order = sorted(
        (axis for axis, matrix in enumerate(matrices) if matrix is not None),
        key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1],  # type: ignore[union-attr]
    )
    for axis in order:
        matrix = matrices[axis]
        assert matrix is not None
        if axis == 2:
            volume = volume @ matrix.T
        elif axis == 1:
            volume = matrix @ volume
        else:
            flat = volume.reshape(volume.shape[0], -1)
            volume = (matrix @ flat).reshape(-1, *volume.shape[1:])
    return volume.astype(np.float32, copy=False)


@lru_cache(maxsize=64)
def _resize_matrix(old: int, new: int, order: int) -> Matrix:
    from scipy import ndimage

    return ndimage.zoom(
        np.eye(old), (new / old, 1), order=order, mode="nearest", grid_mode=True
    ).astype(np.float32)


@lru_cache(maxsize=64)
def _map_coordinates_matrix(old: int, new: int, order: int) -> Matrix:
    from scipy import ndimage

    position = old / new * (np.arange(new) + 0.5) - 0.5
    columns = [
        ndimage.map_coordinates(unit, [position], order=order, mode="nearest")
        for unit in np.eye(old)
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _thick_axis(
    spacing_mm: tuple[float, ...], new_spacing_mm: tuple[float, ...], force: bool | None
) -> int | None:
    """Return the axis that nnU-Net resamples separately, by its own rules; None without one."""
    if force is False:
        return None
    if force:
        candidates = [spacing_mm]
    else:
        candidates = [
            spacing
            for spacing in (spacing_mm, new_spacing_mm)
            if max(spacing) / min(spacing) > _ANISOTROPY_THRESHOLD
        ]
    if not candidates:
        return None
    coarsest = [axis for axis, s in enumerate(candidates[0]) if s == max(candidates[0])]
    return coarsest[0] if len(coarsest) == 1 else None
