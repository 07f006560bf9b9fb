"""nnU-Net's preprocessing, step for step: permute, crop to non-zero, normalise, resample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.volume import Box, MaskZYX, bounding_box
from sslmedsam2.inference.model_folder import ModelSpec
from sslmedsam2.inference.resampling import (
    Resampler,
    make_resampler,
    resample,
    resample_above_zero,
    resample_margin,
    resampled_shape,
)
from sslmedsam2.inference.sliding_window import Array

_EPSILON = 1e-8
_Voxel = TypeVar("_Voxel", bound=np.generic)


@dataclass(frozen=True)
class Prepared:
    """A volume ready for the network, and what is needed to reverse the preprocessing.

    Attributes
    ----------
    patchable
        float32 voxels, axes in the model's order; at the model's spacing if ``forward`` is None.
    forward
        Resampling to the model's grid, if it is left to the GPU.
    crop
        The non-zero box within the permuted volume.
    back
        Resampling from the model's grid to the cropped permuted volume.
    permuted_shape
        Shape before cropping.
    """

    patchable: npt.NDArray[np.float32]
    forward: Resampler | None
    crop: Box
    back: Resampler
    permuted_shape: tuple[int, int, int]
    transpose_forward: tuple[int, int, int]


def prepare(
    array_zyx: npt.NDArray[np.float32],
    *,
    spacing_zyx_mm: tuple[float, float, float],
    spec: ModelSpec,
    resampled: bool = True,
) -> Prepared:
    """Preprocess a volume as for training; with ``resampled=False`` it keeps its grid."""
    permuted = array_zyx.transpose(spec.transpose_forward)
    a, b, c = (spacing_zyx_mm[axis] for axis in spec.transpose_forward)
    spacing_mm = (a, b, c)
    crop, inside = _non_zero(permuted)
    cropped = np.ascontiguousarray(permuted[crop])
    if np.shares_memory(cropped, array_zyx):
        cropped = cropped.copy()
    _normalise_in_place(cropped, inside=inside, spec=spec)
    shape = _shape3(cropped.shape)
    new_shape = resampled_shape(shape, spacing_mm=spacing_mm, new_spacing_mm=spec.spacing_mm)
    forward = make_resampler(
        shape,
        new_shape,
        spacing_mm=spacing_mm,
        new_spacing_mm=spec.spacing_mm,
        rule=spec.image_resampling,
    )
    back = make_resampler(
        new_shape,
        shape,
        spacing_mm=spec.spacing_mm,
        new_spacing_mm=spacing_mm,
        rule=spec.logit_resampling,
    )
    return Prepared(
        patchable=resample(cropped, forward) if resampled else cropped,
        forward=None if resampled else forward,
        crop=crop,
        back=back,
        permuted_shape=_shape3(permuted.shape),
        transpose_forward=spec.transpose_forward,
    )


def on_model_grid(prepared: Prepared, *, device: str) -> Array:
    """Return the voxels on the model's grid: an array for ``cpu``, else a tensor on the device."""
    if device == "cpu":
        forward = prepared.forward
        return prepared.patchable if forward is None else resample(prepared.patchable, forward)
    from sslmedsam2.inference import on_gpu

    return on_gpu.resample(prepared.patchable, prepared.forward, device=device)


def mask_from_margin(margin: npt.NDArray[np.float32], prepared: Prepared) -> npt.NDArray[np.uint8]:
    """Resample a margin to the original grid and return where it is positive, as 0 and 1."""
    return _uncropped(resample_above_zero(margin, prepared.back), prepared)


def probability_from_margin(
    margin: npt.NDArray[np.float32], prepared: Prepared
) -> npt.NDArray[np.float32]:
    """Resample a margin to the original grid as a probability; 0 where the image was cropped."""
    from scipy import special

    resampled = resample_margin(margin, prepared.back)
    return _uncropped(special.expit(resampled, out=resampled), prepared)


def canonical_place(
    shares: tuple[float, float, float], prepared: Prepared
) -> tuple[float, float, float]:
    """Return the voxel of the original ``[z, y, x]`` grid at these shares of the model's axes."""
    places = [
        side.start + share * (side.stop - side.start) - 0.5
        for side, share in zip(prepared.crop, shares, strict=True)
    ]
    z, y, x = (places[axis] for axis in np.argsort(prepared.transpose_forward))
    return z, y, x


def mask_on_model_grid(mask_zyx: MaskZYX, prepared: Prepared, *, shape: tuple[int, ...]) -> MaskZYX:
    """Return a mask at the nearest voxels of the model's grid, whose shape is given."""
    cropped = mask_zyx.transpose(prepared.transpose_forward)[prepared.crop]
    nearest = (
        ((np.arange(n) + 0.5) * (length / n)).astype(np.intp)
        for n, length in zip(shape, cropped.shape, strict=True)
    )
    return cropped[np.ix_(*nearest)]


def _uncropped(array: npt.NDArray[_Voxel], prepared: Prepared) -> npt.NDArray[_Voxel]:
    """Undo cropping, with zeros, and permutation of an array."""
    permuted = np.zeros(prepared.permuted_shape, array.dtype)
    permuted[prepared.crop] = array
    backward = np.argsort(prepared.transpose_forward)
    return np.ascontiguousarray(permuted.transpose(backward))


def _shape3(shape: tuple[int, ...]) -> tuple[int, int, int]:
    a, b, c = shape
    return a, b, c


def _non_zero(volume: npt.NDArray[np.float32]) -> tuple[Box, npt.NDArray[np.bool_]]:
    """Return the bounding box of the non-zero voxels, and their mask within it.

    nnU-Net fills holes before it takes the box; holes cannot widen it.
    """
    non_zero = volume != 0
    a, b, c = volume.shape
    box = bounding_box(non_zero) or (slice(0, a), slice(0, b), slice(0, c))
    return box, non_zero[box]


def _normalise_in_place(
    volume: npt.NDArray[np.float32], *, inside: npt.NDArray[np.bool_], spec: ModelSpec
) -> None:
    scheme = spec.normalization
    if scheme == "ZScoreNormalization":
        if spec.use_mask_for_norm:
            _z_score_inside(volume, inside)
        else:
            volume -= volume.mean()
            volume /= max(volume.std(), _EPSILON)
    elif scheme == "CTNormalization":
        bounds = spec.intensity["percentile_00_5"], spec.intensity["percentile_99_5"]
        np.clip(volume, *bounds, out=volume)
        volume -= np.float32(spec.intensity["mean"])
        volume /= np.float32(max(spec.intensity["std"], _EPSILON))
    elif scheme == "RescaleTo01Normalization":
        volume -= volume.min()
        volume /= max(volume.max(), _EPSILON)


def _z_score_inside(volume: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]) -> None:
    from scipy import ndimage

    filled = ndimage.binary_fill_holes(inside)
    voxels = volume[filled]
    volume[filled] = (voxels - voxels.mean()) / max(voxels.std(), _EPSILON)
