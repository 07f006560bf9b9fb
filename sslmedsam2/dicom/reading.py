"""Read the voxels of a DICOM volume, in the units that its headers define."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset

from sslmedsam2.dicom.headers import find, scopes_of
from sslmedsam2.dicom.model import DicomVolume, Frame
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.stored import MAX_VOXELS
from sslmedsam2.imaging.volume import ArrayZYX, MaskVolume, Source, Volume

_Pixels = npt.NDArray[np.float32]


def read_dicom(volume: DicomVolume) -> Volume:
    """Read the pixels, sorted and rescaled (RescaleSlope, RescaleIntercept) image by image.

    Raises
    ------
    InputError
        Of kind ``unreadable_pixels``, ``too_large`` or ``constant``; its subject is the volume's
        neutral name.
    """
    if np.prod(volume.geometry.shape_zyx, dtype=np.int64) > MAX_VOXELS:
        raise InputError(
            volume.name,
            kind="too_large",
            reason=f"its images hold more than {MAX_VOXELS} voxels",
            remedy="Crop or resample the volume",
        )
    voxels = _read_voxels(volume)
    voxels[~np.isfinite(voxels)] = 0
    if voxels.min() == voxels.max():
        raise InputError(
            volume.name,
            kind="constant",
            reason=f"all voxels have the same value ({voxels.flat[0]:g})",
            remedy="Export the series again",
        )
    return Volume(voxels, volume.geometry, _source(volume), volume.repairs)


def dicom_grid(volume: DicomVolume) -> MaskVolume:
    """Return an empty mask on the volume's grid, which the headers alone define."""
    empty = np.zeros(volume.geometry.shape_zyx, np.uint8)
    return MaskVolume(empty, volume.geometry, _source(volume), volume.repairs)


def _source(volume: DicomVolume) -> Source:
    """Describe the volume as a file would be: no reader has to know that it is many."""
    return Source(
        path=Path(volume.name),
        native_shape=volume.geometry.shape_zyx[::-1],
        native_dtype=volume.frames[0].dtype,
        nifti_header=None,
    )


def _read_voxels(volume: DicomVolume) -> ArrayZYX:
    voxels = np.empty(volume.geometry.shape_zyx, np.float32)
    numbered = sorted(enumerate(volume.frames), key=lambda item: str(item[1].path))
    for path, items in groupby(numbered, key=lambda item: item[1].path):
        # A damaged file can raise anything, and the message may quote what it held.
        try:
            wanted = list(items)
            for (place, _), pixels in zip(
                wanted, _read_file(path, [frame for _, frame in wanted]), strict=True
            ):
                voxels[place] = pixels
        except Exception as error:
            raise InputError(
                volume.name,
                kind="unreadable_pixels",
                reason=f"the pixels of an image cannot be read ({type(error).__name__})",
                remedy="Copy or export the series again, uncompressed if it is not damaged",
            ) from None
    return voxels


def _read_file(path: Path, frames: list[Frame]) -> list[_Pixels]:
    """Return the rescaled pixels of some frames of a file."""
    dataset = pydicom.dcmread(path)
    try:
        stored = dataset.pixel_array
    except (NotImplementedError, RuntimeError):
        # No plug-in for this compression. ITK brings its own decoders, and rescales by itself.
        if frames[0].index is not None:
            raise
        # It would warn on stderr, and name the file.
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        return [sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0].astype(np.float32)]
    if stored.ndim == 2:
        stored = stored[None]
    return [_rescaled(stored[frame.index or 0], dataset, frame.index) for frame in frames]


def _rescaled(stored: npt.NDArray, dataset: Dataset, index: int | None) -> _Pixels:
    scopes = scopes_of(dataset, index)
    slope, intercept = find(scopes, "RescaleSlope"), find(scopes, "RescaleIntercept")
    pixels = stored.astype(np.float64)
    pixels = pixels * (1.0 if slope is None else float(slope))
    pixels += 0.0 if intercept is None else float(intercept)
    return pixels.astype(np.float32)
