"""DICOM headers to frames, the same for single-image files and enhanced multi-frame files.

An attribute is looked up in a list of data sets, from the most specific to the most general: for a
frame of an enhanced file its own functional groups, the shared ones, then the file's top level.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from sslmedsam2.dicom.model import IMAGE_MODALITIES, TRACE, Frame
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import TINY_SHEAR

_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_CAPTURE_CLASSES = "1.2.840.10008.5.1.4.1.1.7"
_TEXT_KEYWORDS = (
    "SeriesDescription",
    "ProtocolName",
    "SequenceName",
    "PulseSequenceName",
)
# Where makers kept the b-value before the standard had a place for it: group, creator, element.
# GE adds a multiple of 10**9 to it. All may write 0 into images that are no diffusion images.
_PRIVATE_B_VALUES = (
    (0x0019, "SIEMENS MR HEADER", (0x0C,)),
    (0x0043, "GEMS_PARM_01", (0x39,)),
    (0x2001, "Philips Imaging DD 001", (0x03,)),
)
_GE_B_OFFSET = 1e9
_PRIVATE_DIRECTIONS = (
    (0x0019, "SIEMENS MR HEADER", (0x0E,)),
    (0x0019, "GEMS_ACQU_01", (0xBB, 0xBC, 0xBD)),
    (0x2005, "Philips MR Imaging DD 001", (0xB0, 0xB1, 0xB2)),
)
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_SMALLEST_ITEM = 8
_MOST_ITEMS = 2**18
_MOST_FRAMES = 2**14
_MOST_INFLATED_BYTES = 2**28
_PART_BYTES = 2**20
_TRACE_TYPES = {"ISOTROPIC", "TRACE", "TRACEW"}
_TRACE_IN_SEQUENCE_NAME = re.compile(r"_b\d+t$")
_B_IN_SEQUENCE_NAME = re.compile(r"(?:^|[\s_*])(?:ep|re|qd)_b(\d+)")


def read_frames(path: Path, *, name: str) -> tuple[Frame, ...]:
    """Read the header of a file; the pixels stay on disk.

    A file that is no MR or CT image gives one frame that describes it. A ``DICOMDIR`` gives
    none.

    Parameters
    ----------
    name
        The name of the file in errors.

    Raises InputError: of kind ``corrupt_dicom`` if the header cannot be read or does not say to
    which study and series the file belongs.
    """
    # A damaged header can raise any error, and its message may contain patient data.
    try:
        with path.open("rb") as file:
            dataset = open_dataset(file, stop_before_pixels=True)
            remaining = path.stat().st_size - file.tell()
        media = dataset.file_meta.get("MediaStorageSOPClassUID", "")
        if _DIRECTORY_CLASS in (str(dataset.get("SOPClassUID", "")), str(media)):
            return ()
        return tuple(_frames(path, dataset, pixel_bytes=remaining))
    except Exception:
        raise InputError(
            name,
            kind="corrupt_dicom",
            reason="the DICOM header cannot be read, or names no study",
            remedy="Export the file again, or remove it",
        ) from None


def open_dataset(file: Path | BinaryIO, *, stop_before_pixels: bool = False) -> Dataset:
    """Read a DICOM file, also one without preamble or without a named transfer syntax.

    Raises what pydicom raises, which may be anything where the file is damaged, and ``ValueError``
    where a small file would become a very large data set.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return open_dataset(opened, stop_before_pixels=stop_before_pixels)
    _refuse_many_items(file)
    read_preamble(file, force=True)
    meta = _read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return _inflated(file, meta, stop_before_pixels=stop_before_pixels)
    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels, force=True)
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return dataset


def _refuse_many_items(file: BinaryIO) -> None:
    """Count the items of sequences: one of 8 bytes becomes an object of more than 1000."""
    if file.seek(0, os.SEEK_END) < _MOST_ITEMS * _SMALLEST_ITEM:
        file.seek(0)
        return
    count = 0
    file.seek(0)
    while part := file.read(_PART_BYTES):
        count += sum(map(part.count, _ITEM_TAGS))
    file.seek(0)
    if count > _MOST_ITEMS:
        raise ValueError("more items in sequences than any image has")


def _inflated(file: BinaryIO, meta: FileMetaDataset, *, stop_before_pixels: bool) -> Dataset:
    """Read the deflated data set behind the meta information, up to a limited size.

    pydicom has no limit of its own.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    stream = io.BytesIO()
    while not inflater.eof:
        part = inflater.unconsumed_tail or file.read(_PART_BYTES)
        if not part or stream.tell() > _MOST_INFLATED_BYTES:
            raise ValueError("the deflated data set is incomplete or too large")
        stream.write(inflater.decompress(part, _PART_BYTES))
    _refuse_many_items(stream)
    dataset = read_dataset(
        stream,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=(lambda tag, *_: tag in _PIXEL_TAGS) if stop_before_pixels else None,
    )
    return FileDataset(
        file,
        dataset,
        file_meta=meta,
        is_implicit_VR=False,
        is_little_endian=True,
    )


def scopes_of(dataset: Dataset, index: int | None) -> list[Dataset]:
    """Return the data sets in which to look up attributes of a frame, most special first."""
    groups = []
    if index is not None:
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
        if per_frame:
            groups.append(per_frame[index])
        groups.extend((dataset.get("SharedFunctionalGroupsSequence") or [])[:1])
    elements = [element for group in groups for element in group]
    items = [one.value[0] for one in elements if one.VR == "SQ" and one.value]
    return [*items, dataset]


def find(scopes: Iterable[Dataset], *keywords: str) -> Any:
    """Return the first value of one of the keywords that is not empty, or None."""
    for keyword in keywords:
        for scope in scopes:
            value = scope.get(keyword)
            if value is not None and value != "":
                return value
    return None


def _frames(path: Path, dataset: Dataset, *, pixel_bytes: int) -> Iterable[Frame]:
    """Make one frame, or as many as an MR or CT file announces."""
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not dataset.get(keyword):
            raise ValueError(keyword)
    announced = int(dataset.get("NumberOfFrames") or 1)
    if announced > _MOST_FRAMES:
        raise ValueError(announced)
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    is_multi = str(dataset.get("Modality")) in IMAGE_MODALITIES and (
        announced > 1 or per_frame is not None
    )
    is_truncated = pixel_bytes < _announced_bytes(dataset, announced)
    for index in range(announced) if is_multi else [None]:
        yield _frame(path, dataset, index, is_truncated=is_truncated)


def _frame(path: Path, dataset: Dataset, index: int | None, *, is_truncated: bool) -> Frame:
    scopes = scopes_of(dataset, index)
    description = str(dataset.get("SeriesDescription") or "").strip().lower()
    texts = (str(find([dataset], keyword) or "") for keyword in _TEXT_KEYWORDS)
    return Frame(
        path=path,
        index=index,
        sop_uid=str(dataset.SOPInstanceUID),
        study_uid=str(dataset.StudyInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
        series_number=_whole(dataset.get("SeriesNumber")),
        modality=str(dataset.get("Modality") or "?").upper(),
        image_type=_image_type(scopes),
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        is_colour=int(dataset.get("SamplesPerPixel") or 1) > 1
        or str(dataset.get("PhotometricInterpretation") or "").strip() == "PALETTE COLOR",
        is_capture=str(dataset.get("SOPClassUID", "")).startswith(_CAPTURE_CLASSES),
        is_truncated=is_truncated,
        dtype=_dtype(dataset),
        spacing_yx_mm=_numbers(find(scopes, "PixelSpacing"), count=2),
        orientation=_orientation(find(scopes, "ImageOrientationPatient")),
        position_xyz_mm=_numbers(find(scopes, "ImagePositionPatient"), count=3),
        b_value=_b_value(scopes),
        echo_time_ms=_number(find(scopes, "EffectiveEchoTime", "EchoTime")),
        repetition_time_ms=_number(find(scopes, "RepetitionTime")),
        is_gradient_echo=_is_gradient_echo(scopes),
        temporal_position=_whole(
            find(scopes, "TemporalPositionIndex", "TemporalPositionIdentifier")
        ),
        acquisition_number=_whole(find(scopes, "FrameAcquisitionNumber", "AcquisitionNumber")),
        acquired_s=_seconds(scopes),
        trigger_time_ms=_number(find(scopes, "NominalCardiacTriggerDelayTime", "TriggerTime")),
        scan_options=str(dataset.get("ScanOptions") or ""),
        instance_number=_whole(dataset.get("InstanceNumber")),
        diffusion_direction=_diffusion_direction(scopes),
        contrast_from_s=_time_of_day(str(dataset.get("ContrastBolusStartTime") or "")),
        patient=_patient(dataset),
        patient_id=str(dataset.get("PatientID") or "").strip(),
        frame_of_reference_uid=str(dataset.get("FrameOfReferenceUID") or ""),
        contrast_agent=_contrast_agent(dataset),
        text=" ".join(texts).lower(),
        description=description,
    )


def _announced_bytes(dataset: Dataset, frames: int) -> int:
    """Return how many bytes are to follow: the pixels with their tag, type and length.

    0 if the pixels are compressed, so that their size is not known, and if there are none.
    """
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    bits = int(dataset.get("BitsAllocated") or 0) * int(dataset.get("SamplesPerPixel") or 1)
    pixels = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) * frames
    if syntax is None or syntax.is_encapsulated or syntax.is_deflated or not pixels:
        return 0
    return pixels * bits // 8 + (8 if syntax.is_implicit_VR else 12)


def _image_type(scopes: list[Dataset]) -> tuple[str, ...]:
    """Return the values of the frame's own type where it has one, else of the file's."""
    value = find(scopes, "FrameType", "ImageType")
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else list(value)
    return tuple(str(item).strip().upper() for item in values)


def _dtype(dataset: Dataset) -> np.dtype:
    """Return the stored type; 16 bits unsigned where the header does not say."""
    kind = "i" if int(dataset.get("PixelRepresentation") or 0) else "u"
    size = {8: 1, 32: 4}.get(int(dataset.get("BitsAllocated") or 16), 2)
    return np.dtype(f"{kind}{size}")


def _b_value(scopes: list[Dataset]) -> float | None:
    standard = _number(find(scopes, "DiffusionBValue"))
    if standard is not None:
        return standard
    root = scopes[-1]
    for [value] in _private_values(root, _PRIVATE_B_VALUES):
        first = _number(value if isinstance(value, (str, bytes)) else _first(value))
        if first is not None and first > 0:
            return first % _GE_B_OFFSET
    named = _B_IN_SEQUENCE_NAME.search(str(root.get("SequenceName") or "").lower())
    return float(named[1]) if named else None


def _diffusion_direction(scopes: list[Dataset]) -> str:
    """Return ``trace``, or the direction as text; empty if the header contains neither."""
    root = scopes[-1]
    named = str(root.get("SequenceName") or "").strip().lower()
    kinds = {str(find(scopes, "DiffusionDirectionality") or "").upper(), *_image_type(scopes)}
    if kinds & _TRACE_TYPES or _TRACE_IN_SEQUENCE_NAME.search(named):
        return TRACE
    gradient = find(scopes, "DiffusionGradientDirectionSequence")
    places = [*gradient, *scopes] if gradient else scopes
    direction = _numbers(find(places, "DiffusionGradientOrientation"), count=3)
    for values in _private_values(root, _PRIVATE_DIRECTIONS):
        direction = direction or _numbers(values[0] if len(values) == 1 else values, count=3)
    if direction is not None and any(direction):
        return " ".join(f"{value:.2f}" for value in direction)
    return named if _B_IN_SEQUENCE_NAME.search(named) and "#" in named else ""


def _private_values(
    dataset: Dataset, places: Iterable[tuple[int, str, tuple[int, ...]]]
) -> Iterator[list[Any]]:
    """Yield the values at each place where the data set holds all elements."""
    for group, creator, elements in places:
        with contextlib.suppress(KeyError):
            block = dataset.private_block(group, creator)
            yield [block[element].value for element in elements]


def _patient(dataset: Dataset) -> tuple[str, str, str]:
    """Return PatientID, name and birth date in a form that spelling does not change."""
    name = str(dataset.get("PatientName") or "").partition("=")[0]
    return (
        str(dataset.get("PatientID") or "").strip().casefold(),
        " ".join(re.findall(r"\w+", name.casefold())),
        str(dataset.get("PatientBirthDate") or "").strip(),
    )


def _is_gradient_echo(scopes: list[Dataset]) -> bool:
    pulse = str(find(scopes, "EchoPulseSequence") or "").upper()
    scanning = find(scopes, "ScanningSequence") or ""
    kinds = {scanning} if isinstance(scanning, str) else set(scanning)
    return pulse == "GRADIENT" or ("GR" in kinds and "SE" not in kinds)


def _contrast_agent(dataset: Dataset) -> str:
    agent = str(dataset.get("ContrastBolusAgent") or "").strip().lower()
    if not agent and dataset.get("ContrastBolusAgentSequence"):
        item = dataset.ContrastBolusAgentSequence[0]
        agent = str(item.get("CodeMeaning") or "agent").strip().lower()
    return "" if agent in ("no", "none", "n/a", "-") else agent


def _seconds(scopes: list[Dataset]) -> float | None:
    """Return the time of acquisition in seconds since midnight."""
    moment = str(find(scopes, "FrameAcquisitionDateTime", "AcquisitionDateTime") or "")[8:]
    moment = str(find(scopes, "AcquisitionTime") or "") or moment
    return _time_of_day(moment or str(find(scopes, "ContentTime") or ""))


def _time_of_day(moment: str) -> float | None:
    match = re.match(r"(\d\d):?(\d\d):?(\d\d(?:\.\d+)?)", moment)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, Sequence) and value else value


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _orientation(value: Any) -> tuple[float, ...] | None:
    """Return two unit vectors at right angles; None if the values differ much from that.

    Vectors of another length would change the size of the voxels.
    """
    found = _numbers(value, count=6)
    if found is None:
        return None
    row, column = np.array(found[:3]), np.array(found[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if any(abs(length - 1) > TINY_SHEAR for length in lengths) or abs(row @ column) > TINY_SHEAR:
        return None
    return (*(row / lengths[0]).tolist(), *(column / lengths[1]).tolist())


def _numbers(value: Any, *, count: int) -> tuple[Any, ...] | None:
    """Return exactly ``count`` finite numbers, or None."""
    if not isinstance(value, Iterable) or isinstance(value, str):
        return None
    found = [_number(item) for item in value]
    return tuple(found) if len(found) == count and None not in found else None
