"""Real DICOM series written into a folder, as a scanner or a PACS would leave them."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

PATIENT_NAME = "Tellingly^Johanna"
PATIENT_ID = "PID-4711-SECRET"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SPACING_ZYX_MM = (7.0, 4.0, 4.0)
ORIGIN_XYZ_MM = (-150.0, -130.0, -90.0)


def write_series(
    folder: Path,
    array_zyx: np.ndarray,
    *,
    study: str = "1",
    number: int = 3,
    description: str = "t2_haste_tra",
    modality: str = "MR",
    spacing_zyx_mm: tuple[float, float, float] = SPACING_ZYX_MM,
    origin_xyz_mm: tuple[float, float, float] = ORIGIN_XYZ_MM,
    orientation: tuple[float, ...] = AXIAL,
    slope: float = 1.0,
    intercept: float = 0.0,
    dtype: type = np.int16,
    skipped: tuple[int, ...] = (),
    series_uid: str | None = None,
    first_instance: int = 1,
    **tags: object,
) -> list[Path]:
    """Write one file a slice, shuffled names and all; returns the paths in order of the slices.

    ``array_zyx`` holds values as they are to be read; ``tags`` are further attributes, of which a
    callable is given the slice's number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    uid = series_uid or generate_uid(entropy_srcs=[study, str(number), description])
    paths = []
    for index, pixels in enumerate(array_zyx):
        if index in skipped:
            continue
        dataset = _dataset(study, modality)
        dataset.SeriesInstanceUID = uid
        dataset.SeriesNumber = number
        dataset.SeriesDescription = description
        dataset.InstanceNumber = first_instance + index
        position = np.array(origin_xyz_mm) + index * spacing_zyx_mm[0] * normal
        dataset.ImagePositionPatient = [float(f"{value:.6f}") for value in position]
        dataset.ImageOrientationPatient = [float(value) for value in orientation]
        dataset.PixelSpacing = [spacing_zyx_mm[1], spacing_zyx_mm[2]]
        dataset.SliceThickness = spacing_zyx_mm[0]
        if modality == "CT" or (slope, intercept) != (1.0, 0.0):
            dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        set_pixels(dataset, np.rint((pixels - intercept) / slope).astype(dtype))
        for keyword, value in tags.items():
            setattr(dataset, keyword, value(index) if callable(value) else value)
        # Names in an order that is not that of the slices.
        path = folder / f"IM{(index * 7919) % 10007:05d}"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_enhanced(
    path: Path,
    volumes: dict[float, np.ndarray],
    *,
    spacing_zyx_mm: tuple[float, float, float] = SPACING_ZYX_MM,
    description: str = "dwi_tra",
) -> Path:
    """Write an enhanced MR file that holds one volume for each b-value, slices interleaved."""
    dataset = _dataset("9", "MR", EnhancedMRImageStorage)
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[str(path.name)])
    dataset.SeriesNumber = 12
    dataset.SeriesDescription = description
    dataset.InstanceNumber = 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"]
    dataset.ContentDate, dataset.ContentTime = "20260101", "120000"
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = list(spacing_zyx_mm[1:])
    shared.PixelMeasuresSequence[0].SliceThickness = spacing_zyx_mm[0]
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = list(AXIAL)
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames, groups = [], []
    x, y, z = ORIGIN_XYZ_MM
    for index in range(len(next(iter(volumes.values())))):
        for place, (b_value, array_zyx) in enumerate(volumes.items()):
            group = Dataset()
            group.PlanePositionSequence = [Dataset()]
            height = z + index * spacing_zyx_mm[0]
            group.PlanePositionSequence[0].ImagePositionPatient = [x, y, height]
            group.MRDiffusionSequence = [Dataset()]
            group.MRDiffusionSequence[0].DiffusionBValue = b_value
            group.FrameContentSequence = [Dataset()]
            group.FrameContentSequence[0].StackID = "1"
            group.FrameContentSequence[0].DimensionIndexValues = [index + 1, place + 1]
            group.PixelValueTransformationSequence = [Dataset()]
            group.PixelValueTransformationSequence[0].RescaleSlope = 1 + place
            group.PixelValueTransformationSequence[0].RescaleIntercept = 0
            groups.append(group)
            frames.append(np.rint(array_zyx[index] / (1 + place)).astype(np.uint16))
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.NumberOfFrames = len(frames)
    set_pixels(dataset, np.stack(frames))
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_report_object(path: Path, *, study: str = "1") -> Path:
    """Write an object without pixels, such as every PACS export holds."""
    dataset = _dataset(study, "SR", "1.2.840.10008.5.1.4.1.1.88.11")
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["report", study])
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def set_pixels(dataset: Dataset, stored: np.ndarray) -> None:
    """Put stored values into a data set, with everything that describes them."""
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = stored.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()


def edit(path: Path, **tags: object) -> None:
    """Change attributes of a file; None removes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


def _dataset(study: str, modality: str, sop_class: str | None = None) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class or (
        CTImageStorage if modality == "CT" else MRImageStorage
    )
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", study])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", study])
    dataset.PatientName, dataset.PatientID = f"{PATIENT_NAME}{study}", PATIENT_ID
    dataset.PatientBirthDate, dataset.PatientSex = "19520229", "F"
    dataset.StudyDate = datetime.date(2026, 1, 1).strftime("%Y%m%d")
    dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "120000", study, "ACC-77"
    dataset.ReferringPhysicianName = "Doctor^Nosy"
    dataset.Modality = modality
    dataset.Manufacturer = "Maker"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    return dataset
