"""Write a liver mask as a DICOM Segmentation object that references its source images."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DS

from sslmedsam2 import __version__
from sslmedsam2.dicom.headers import open_dataset
from sslmedsam2.dicom.model import Algorithm, DicomVolume
from sslmedsam2.errors import OutputError
from sslmedsam2.imaging.atomic import atomic_path
from sslmedsam2.imaging.volume import MaskZYX

LIVER = Code("10200004", "SCT", "Liver")
_ORGAN = Code("123037004", "SCT", "Anatomical structure")
_LIVER_RGB = (221, 130, 101)
"""Colour of the segment in viewers such as OHIF."""
_MAKER = "SSL-MedSAM2"
_TYPE_2_KEYWORDS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
_ROUNDED_COSINE = 1e-6
_SERIES_OFFSET = 9000
"""Added to the number of the source series, so that the object is sorted after scanned series."""


def write_dicom_seg(
    mask_zyx: MaskZYX, *, volume: DicomVolume, path: Path, algorithm: Algorithm
) -> None:
    """Write a mask as a binary DICOM-SEG, and compare every voxel after reading it back.

    Patient and study are copied from the images, as a PACS needs them to file the object. Missing
    ones (attributes of type 2) are left empty; a missing FrameOfReferenceUID is derived from the
    identifier of the series, and slightly different orientations are averaged.

    Parameters
    ----------
    mask_zyx
        0 and 1, on the grid of ``volume``; not empty.

    Raises OutputError: the object cannot be made, written or read back, and no file remains;
    ValueError: the mask has another shape than the volume.
    """
    if mask_zyx.shape != volume.geometry.shape_zyx:
        raise ValueError(f"shape {mask_zyx.shape} is not the volume's")
    if len({(frame.sop_uid, frame.index) for frame in volume.frames}) < len(volume.frames):
        raise OutputError(
            volume.name,
            reason="several of its images have one SOPInstanceUID, so no DICOM-SEG can name them",
            remedy="Use the NIfTI mask, or export the images with identifiers of their own",
        )
    # Messages of the library may quote attributes of the images.
    try:
        sources = _sources(volume)
        segmentation = _segmentation(mask_zyx, volume, sources, algorithm)
        _restore_frame_numbers(segmentation, volume)
        content = BytesIO()
        segmentation.save_as(content)
    except Exception as error:
        raise OutputError(
            path,
            reason=f"a DICOM-SEG cannot be made of these images ({type(error).__name__})",
            remedy="Use the NIfTI mask, or check the images with a DICOM validator",
        ) from None
    with atomic_path(path) as partial:
        partial.write_bytes(content.getvalue())
        if not _holds(partial, mask_zyx, volume):
            raise OutputError(
                path,
                reason="what was written reads back differently",
                remedy="Check the output disk, and report this if it happens again",
            )


def read_dicom_seg(path: Path, *, volume: DicomVolume) -> MaskZYX:
    """Read a DICOM-SEG on the grid of the volume that it refers to.

    Slices that are not stored are empty.
    """
    segmentation = hd.seg.segread(path)
    indices = _frame_indices(volume)
    if indices:
        found = segmentation.get_pixels_by_source_frame(
            volume.frames[0].sop_uid,
            [index + 1 for index in indices],
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )
    else:
        found = segmentation.get_pixels_by_source_instance(
            [frame.sop_uid for frame in volume.frames],
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )
    return found[..., 0].astype(np.uint8)


def _holds(path: Path, mask_zyx: MaskZYX, volume: DicomVolume) -> bool:
    """Return whether a file reads back as a mask."""
    try:
        return np.array_equal(read_dicom_seg(path, volume=volume), mask_zyx)
    except (ValueError, RuntimeError, KeyError, AttributeError):
        return False


def _sources(volume: DicomVolume) -> Sequence[Dataset]:
    """Read the headers of the images again, in the volume's order.

    A multi-frame file is reduced to the volume's frames: it may hold others at the same places,
    to which the mask does not refer.
    """
    paths = dict.fromkeys(frame.path for frame in volume.frames)
    sources = [open_dataset(path, stop_before_pixels=True) for path in paths]
    for source in sources:
        _complete(source, volume)
    indices = _frame_indices(volume)
    if indices:
        [source] = sources
        groups = source.PerFrameFunctionalGroupsSequence
        source.PerFrameFunctionalGroupsSequence = [groups[index] for index in indices]
        source.NumberOfFrames = len(indices)
    return sources


def _complete(source: Dataset, volume: DicomVolume) -> None:
    """Add missing attributes to a header, and set those that may differ slightly between images."""
    for keyword in _TYPE_2_KEYWORDS:
        if keyword not in source:
            setattr(source, keyword, "")
    if not source.get("FrameOfReferenceUID"):
        seed = f"frame of reference of {source.SeriesInstanceUID}"
        source.FrameOfReferenceUID = generate_uid(entropy_srcs=[seed])
    if "SharedFunctionalGroupsSequence" in source:
        return
    spacing_mm = volume.geometry.spacing_zyx_mm
    if not source.get("SliceThickness"):
        source.SliceThickness = DS(spacing_mm[0], auto_format=True)
    x, y = volume.geometry.direction_xyz[:, 0], volume.geometry.direction_xyz[:, 1]
    stored = np.array(source.ImageOrientationPatient, dtype=np.float64)
    if not np.allclose(stored, [*x, *y], rtol=0, atol=_ROUNDED_COSINE):
        source.ImageOrientationPatient = [DS(float(v), auto_format=True) for v in (*x, *y)]
    first = volume.frames[0]
    if first.spacing_yx_mm is not None:
        source.PixelSpacing = [DS(value, auto_format=True) for value in first.spacing_yx_mm]


def _frame_indices(volume: DicomVolume) -> list[int]:
    """Return which frames of a multi-frame file the slices are; empty for files of one image."""
    return [frame.index for frame in volume.frames if frame.index is not None]


def _restore_frame_numbers(segmentation: Dataset, volume: DicomVolume) -> None:
    """Change the frame numbers in references from those of the reduced header to the file's."""
    indices = _frame_indices(volume)
    for group in segmentation.PerFrameFunctionalGroupsSequence if indices else ():
        for derivation in group.DerivationImageSequence:
            for source in derivation.SourceImageSequence:
                source.ReferencedFrameNumber = indices[int(source.ReferencedFrameNumber) - 1] + 1


def _segmentation(
    mask_zyx: MaskZYX, volume: DicomVolume, sources: Sequence[Dataset], algorithm: Algorithm
) -> hd.seg.Segmentation:
    identification = hd.AlgorithmIdentificationSequence(
        name=f"{_MAKER} liver",
        family=codes.cid7162.ArtificialIntelligence,
        version=__version__,
        source=_MAKER,
        parameters={
            "model": algorithm.model,
            **{f"sha256 {name}": value for name, value in algorithm.sha256.items()},
        },
    )
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Liver",
        segmented_property_category=_ORGAN,
        segmented_property_type=LIVER,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
        tracking_uid=hd.UID(),
        tracking_id="Liver",
        display_color=hd.color.CIELabColor.from_rgb(*_LIVER_RGB),
    )
    number = volume.frames[0].series_number
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=mask_zyx,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        series_instance_uid=hd.UID(),
        series_number=_SERIES_OFFSET + max(number or 0, 0),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name="sslmedsam2",
        software_versions=__version__,
        device_serial_number="0",
        content_label="LIVER",
        content_description="Liver, segmented automatically",
        series_description="Liver segmentation (automatic)",
    )
