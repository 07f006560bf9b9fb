"""A volume as a stack of small square slices, cropped to the patient's body.

SAM2 compares positions within slices, so slices of two patients must show the body at the same
position and size: the crop follows the outline of the body, and its sides are equal in mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.intensity import window_if_hounsfield
from sslmedsam2.imaging.volume import ArrayZYX, CanonicalVolume, MaskZYX

AIR_BELOW: Final = 0.02
"""A slice's pixels up to this are taken for air."""

_MARGIN: Final = 1.04
"""Side of the crop over the longer side of the body."""
_PERCENTILES: Final = (0.5, 99.5)
_BRIGHTEST: Final = 4.2
"""Times the body's median: all that is brighter looks alike. The 99.5 percentile is 2.9 to 4.8
times it in usual T2 scans, but more where a stomach is full of fluid, which would leave all else
dark."""
_SAMPLE: Final = 500_000


@dataclass(frozen=True)
class Crop:
    """The rectangle that slices are cut from, in voxels of the canonical volume.

    A slice's pixel centres are spread evenly from ``start`` over ``size``; the rectangle may
    reach beyond the volume.
    """

    start_yx: tuple[float, float]
    size_yx: tuple[float, float]


@dataclass(frozen=True)
class SliceStack:
    """``n`` slices of a volume, foot to head.

    Attributes
    ----------
    slices
        float32 ``(n, size, size)`` in [0, 1]; rows go from front to back, columns from the
        patient's right to left.
    crop
        Where they were cut.
    spacing_zyx_mm, shape_zyx
        Of the canonical volume.
    """

    slices: npt.NDArray[np.float32]
    crop: Crop
    spacing_zyx_mm: tuple[float, float, float]
    shape_zyx: tuple[int, int, int]


def unit_intensities(array_zyx: ArrayZYX) -> ArrayZYX:
    """Scale the 0.5 to 99.5 percentiles of the voxels above zero to [0, 1] and clip the rest.

    A CT is clipped to the abdominal window first. A constant image becomes 0.
    """
    windowed, is_ct = window_if_hounsfield(array_zyx)
    if is_ct:
        windowed = windowed - windowed.min()
    inside = windowed[windowed > 0]
    if inside.size == 0:
        return np.zeros_like(array_zyx)
    step = max(1, inside.size // _SAMPLE)
    low, high = np.percentile(inside[::step], _PERCENTILES)
    if is_ct:
        low = 0.0
    else:
        high = min(high, _BRIGHTEST * _body_median(inside[::step]))
    if high <= low:
        return np.zeros_like(array_zyx)
    unit = np.clip((windowed - low) / (high - low), 0, 1, dtype=np.float32)
    return np.where(windowed > 0, unit, 0)


def _body_median(inside: npt.NDArray[np.float32]) -> float:
    """Return the median of values above zero that are not those of air."""
    return float(np.median(inside[inside > 0.25 * np.percentile(inside, 90)]))


def body_crop(unit_zyx: ArrayZYX, spacing_zyx_mm: tuple[float, float, float]) -> Crop:
    """Return the square, in millimetres, around the body in all slices."""
    outline = _outline(unit_zyx)
    rows, columns = np.flatnonzero(outline.any(1)), np.flatnonzero(outline.any(0))
    spacing_yx = np.array(spacing_zyx_mm[1:])
    low = np.array([rows[0], columns[0]], float)
    high = np.array([rows[-1] + 1, columns[-1] + 1], float)
    side_mm = _MARGIN * float(((high - low) * spacing_yx).max())
    size = side_mm / spacing_yx
    start = (low + high) / 2 - size / 2
    return Crop((start[0], start[1]), (size[0], size[1]))


def whole_slice(shape_zyx: tuple[int, int, int]) -> Crop:
    """Return the whole slice as the crop; it is resized to a square."""
    return Crop((0.0, 0.0), (float(shape_zyx[1]), float(shape_zyx[2])))


def _outline(unit_zyx: ArrayZYX) -> npt.NDArray[np.bool_]:
    """Return the outline of the body over all slices; the whole slice if it is not found."""
    inside = unit_zyx[unit_zyx > 0]
    # Compressed, so that very bright tissue does not hide the rest of the body.
    flat = unit_zyx if inside.size == 0 else np.minimum(unit_zyx, _body_median(inside))
    mean = flat.mean(0)
    smooth = ndimage.gaussian_filter(mean, 2.0)
    inside = smooth > 0.25 * np.percentile(smooth, 90)
    labels, n = ndimage.label(inside)
    if n == 0:
        return np.ones_like(inside)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def cut_slices(volume: CanonicalVolume, *, size: int, crop: Crop | None = None) -> SliceStack:
    """Cut all slices of a volume; ``crop`` None is the body."""
    unit = unit_intensities(volume.array_zyx)
    if crop is None:
        crop = body_crop(unit, volume.spacing_zyx_mm)
    z, y, x = unit.shape
    return SliceStack(
        slices=cut(unit, crop, size=size),
        crop=crop,
        spacing_zyx_mm=volume.spacing_zyx_mm,
        shape_zyx=(z, y, x),
    )


def cut_masks(mask_zyx: MaskZYX, crop: Crop, *, size: int) -> npt.NDArray[np.float32]:
    """Cut a mask as its volume's slices are cut; 0 or 1, ``(n, size, size)``."""
    return (cut(mask_zyx, crop, size=size) > 0.5).astype(np.float32)


def cut(array_zyx: npt.NDArray, crop: Crop, *, size: int) -> npt.NDArray[np.float32]:
    """Sample ``(n, size, size)`` from a canonical array; averaging where it is finer.

    Beyond the volume there is 0.
    """
    rows = _weights(crop.start_yx[0], crop.size_yx[0], array_zyx.shape[1], size)
    columns = _weights(crop.start_yx[1], crop.size_yx[1], array_zyx.shape[2], size)
    return np.einsum(
        "py,zyx,qx->zpq", rows, array_zyx.astype(np.float32, copy=False), columns, optimize=True
    ).astype(np.float32)


def paste(slices: npt.NDArray[np.float32], stack: SliceStack) -> npt.NDArray[np.float32]:
    """Bring values of slices ``(n, size, size)`` back to the canonical grid; 0 beyond."""
    size = slices.shape[-1]
    _, height, width = stack.shape_zyx
    crop = stack.crop
    rows = _back_weights(crop.start_yx[0], crop.size_yx[0], height, size)
    columns = _back_weights(crop.start_yx[1], crop.size_yx[1], width, size)
    return np.einsum("yp,zpq,xq->zyx", rows, slices, columns, optimize=True).astype(np.float32)


def _weights(start: float, extent: float, n_in: int, n_out: int) -> npt.NDArray[np.float32]:
    """Return ``(n_out, n_in)`` triangle weights: linear when enlarging, averaging when reducing.

    A pixel's weights sum to 1 over an endless volume; at its border a slice fades to 0.
    """
    step = extent / n_out
    reach = max(1.0, step)
    centres = start + (np.arange(n_out) + 0.5) * step - 0.5
    beyond = int(np.ceil(reach + max(0.0, -centres[0], centres[-1] - n_in)))
    voxels = np.arange(-beyond, n_in + beyond)
    weights = np.clip(1 - np.abs(voxels[None] - centres[:, None]) / reach, 0, None)
    weights /= weights.sum(1, keepdims=True)
    return weights[:, beyond : beyond + n_in].astype(np.float32)


def _back_weights(start: float, extent: float, n_in: int, n_out: int) -> npt.NDArray[np.float32]:
    """Return ``(n_in, n_out)`` linear weights from a slice's pixels to voxels."""
    step = extent / n_out
    places = (np.arange(n_in) + 0.5 - start) / step - 0.5
    distance = np.abs(np.arange(n_out)[None] - places[:, None])
    return np.clip(1 - distance, 0, 1).astype(np.float32)


def check_image(stack: SliceStack, *, name: str) -> None:
    """Raise InputError (``empty_image``) for a query whose slices are all 0."""
    if not stack.slices.any():
        raise InputError(
            name,
            kind="empty_image",
            reason="all its voxels have the same value",
            remedy="Check the export of this volume",
        )


def check_masks(masks: npt.NDArray[np.float32], *, name: str) -> None:
    """Raise InputError (``empty_mask``) for a support whose mask is empty."""
    if not masks.any():
        raise InputError(
            name,
            kind="empty_mask",
            reason="its mask holds no liver, or less than a pixel of the network's slices",
            remedy="Remove the case from the labelled folder, or correct its mask",
        )
