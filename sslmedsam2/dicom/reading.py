"""Read the voxels of a DICOM volume, in the units that its headers define."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from sslmedsam2.dicom.decoding import decode
from sslmedsam2.dicom.headers import find, open_dataset, scopes_of
from sslmedsam2.dicom.model import DicomVolume, Frame
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.intensity import set_padding_apart
from sslmedsam2.imaging.reading import correct_voxels
from sslmedsam2.imaging.stored import MAX_VOXELS, repair
from sslmedsam2.imaging.volume import ArrayZYX, MaskVolume, Source, Volume

_Pixels = npt.NDArray[np.float32]
_PIXEL_ATTRIBUTES = (
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
)
_BITS_OF_A_NUMBER = 16


class _UnusableError(Exception):
    """Pixels cannot be used; the message contains no patient data."""


def read_dicom(volume: DicomVolume) -> Volume:
    """Read the pixels, sorted and rescaled (RescaleSlope, RescaleIntercept) image by image.

    PixelPaddingValue becomes the lowest other value, an MR stored with white as 0 (MONOCHROME1)
    is inverted, and the directions of a diffusion series are averaged.

    Raises InputError: of kind ``unreadable_pixels``, ``too_large`` or ``constant``; its subject is
    the volume's neutral name.
    """
    if np.prod(volume.geometry.shape_zyx, dtype=np.int64) > MAX_VOXELS:
        raise InputError(
            volume.name,
            kind="too_large",
            reason=f"its images hold more than {MAX_VOXELS} voxels",
            remedy="Crop or resample the volume",
        )
    voxels, notes = _read_voxels(volume.name, volume.frames, volume.geometry.shape_zyx)
    for stack in volume.averaged:
        more, _ = _read_voxels(volume.name, stack, volume.geometry.shape_zyx)
        voxels += more
    if volume.averaged:
        count = 1 + len(volume.averaged)
        voxels /= count
        notes += (repair("averaged", f"the mean of {count} diffusion directions is segmented"),)
    repairs = correct_voxels(Path(volume.name), voxels)
    return Volume(
        voxels,
        volume.geometry,
        _source(volume),
        (*volume.repairs, *notes, *repairs),
        modality=volume.frames[0].modality,
    )


def pixel_digests(frames: Sequence[Frame]) -> list[str | None]:
    """Return a hash of the rescaled pixels of each frame; None where they cannot be read."""
    digests: dict[Frame, str] = {}
    for path, items in groupby(sorted(frames, key=_path_key), key=_path_key):
        wanted = list(items)
        # A damaged file can raise anything; its volume is refused when it is read.
        with contextlib.suppress(Exception):
            for frame, pixels in zip(wanted, _read_file(Path(path), wanted)[0], strict=True):
                digests[frame] = hashlib.sha256(pixels.tobytes()).hexdigest()
    return [digests.get(frame) for frame in frames]


def _path_key(frame: Frame) -> str:
    return str(frame.path)


def dicom_grid(volume: DicomVolume) -> MaskVolume:
    """Return an empty mask on the volume's grid, which the headers alone define."""
    empty = np.zeros(volume.geometry.shape_zyx, np.uint8)
    return MaskVolume(empty, volume.geometry, _source(volume), volume.repairs)


def _source(volume: DicomVolume) -> Source:
    """Describe the volume as if it were one file."""
    return Source(Path(volume.name), volume.geometry.shape_zyx[::-1], volume.frames[0].dtype)


def _read_voxels(
    name: str, frames: Sequence[Frame], shape_zyx: tuple[int, int, int]
) -> tuple[ArrayZYX, tuple[str, ...]]:
    """Return the voxels of a stack, and notes on corrections."""
    voxels = np.empty(shape_zyx, np.float32)
    is_padding = np.zeros(shape_zyx, np.bool_)
    inverted: list[int] = []
    numbered = sorted(enumerate(frames), key=lambda item: str(item[1].path))
    for path, items in groupby(numbered, key=lambda item: item[1].path):
        # A damaged file can raise any error, and its message may contain patient data.
        try:
            wanted = list(items)
            images, paddings, is_inverted = _read_file(path, [frame for _, frame in wanted])
            for (place, _), pixels, padding in zip(wanted, images, paddings, strict=True):
                voxels[place] = pixels
                is_padding[place] = padding
                if is_inverted:
                    inverted.append(place)
        except Exception as error:
            why = str(error) if isinstance(error, _UnusableError) else type(error).__name__
            raise InputError(
                name,
                kind="unreadable_pixels",
                reason=f"the pixels of an image cannot be read ({why})",
                remedy="Copy or export the series again, uncompressed if it is not damaged",
            ) from None
    notes: tuple[str, ...] = ()
    if inverted:
        # Not for a CT, whose values are Hounsfield units: only its display is inverted.
        slices = voxels[inverted]
        highest = slices.max(where=~is_padding[inverted], initial=slices.min())
        voxels[inverted] = highest - slices
        notes += (repair("inverted", "white was stored as 0 (MONOCHROME1) and is turned round"),)
    return voxels, (*notes, *set_padding_apart(voxels, is_padding))


def _read_file(
    path: Path, frames: Sequence[Frame]
) -> tuple[list[_Pixels], list[npt.NDArray[np.bool_]], bool]:
    """Return rescaled pixels and a mask of padding for each frame, and whether white is 0."""
    dataset = open_dataset(path)
    is_inverted = (
        str(dataset.get("PhotometricInterpretation") or "").strip() == "MONOCHROME1"
        and frames[0].modality == "MR"
    )
    is_rescaled = False
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        decoded = decode(path)
        stored, is_rescaled = decoded.frames, decoded.is_rescaled
    else:
        if "PixelData" in dataset:
            _check_pixel_attributes(dataset)
        stored = dataset.pixel_array
        if stored.ndim == 2:
            stored = stored[None]
    images = [stored[frame.index or 0] for frame in frames]
    if is_rescaled:
        # The decoder does not report padding.
        return images, [np.zeros(image.shape, np.bool_) for image in images], is_inverted
    rescaled = [
        _rescaled(image, dataset, frame.index) for image, frame in zip(images, frames, strict=True)
    ]
    return rescaled, [_is_padding(image, dataset) for image in images], is_inverted


def _is_padding(stored: npt.NDArray, dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Find the pixels that hold PixelPaddingValue, or lie between it and PixelPaddingRangeLimit."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return np.zeros(stored.shape, np.bool_)
    if stored.dtype.kind == "i" and value >= 2**15:
        # Some makers write the number as if the pixels were unsigned.
        value -= 2**16
    ends = (value, limit if isinstance(limit, int) else value)
    return (stored >= min(ends)) & (stored <= max(ends))


def _rescaled(stored: npt.NDArray, dataset: Dataset, index: int | None) -> _Pixels:
    scopes = scopes_of(dataset, index)
    slope, intercept = find(scopes, "RescaleSlope"), find(scopes, "RescaleIntercept")
    factor = 1.0 if slope is None else float(slope)
    offset = 0.0 if intercept is None else float(intercept)
    # A factor of 0 would make all pixels equal.
    if factor == 0 or not math.isfinite(factor + offset):
        raise _UnusableError("RescaleSlope or RescaleIntercept is no usable number")
    return (stored.astype(np.float64) * factor + offset).astype(np.float32)


def _check_pixel_attributes(dataset: Dataset) -> None:
    """Refuse pixels that the header does not describe, or describes in a way that is not read."""
    missing = [keyword for keyword in _PIXEL_ATTRIBUTES if keyword not in dataset]
    if missing:
        raise _UnusableError(f"the header lacks {' and '.join(missing)}")
    unused = int(dataset.HighBit) + 1 - int(dataset.BitsStored) if "HighBit" in dataset else 0
    # pydicom uses the low bits of each number and ignores HighBit.
    if unused > 0 and int(dataset.BitsAllocated) == _BITS_OF_A_NUMBER:
        is_little = dataset.file_meta.TransferSyntaxUID.is_little_endian
        words = np.frombuffer(dataset.PixelData, "<u2" if is_little else ">u2")
        if (words >> int(dataset.BitsStored)).any():
            raise _UnusableError("HighBit says that the lowest bits are unused: not read")
