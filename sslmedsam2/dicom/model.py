"""Data classes of this package: frames as their headers describe them, volumes, table rows.

``repr`` of these omits what could name a patient: paths, identifiers and free text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from sslmedsam2.imaging.volume import Geometry

IMAGE_MODALITIES = ("MR", "CT")
TRACE = "trace"
"""Diffusion direction of an image that is the mean of all directions."""

Use = Literal["segment", "left_out", "unusable"]
"""``left_out``: sound but not wanted; ``unusable``: should be a volume, but none can be made."""


@dataclass(frozen=True)
class Frame:
    """One two-dimensional image: a file, or a frame of a multi-frame file.

    Attributes
    ----------
    path, index
        The file, and the frame's place in it from 0; ``index`` is None in a file of one image.
    modality
        DICOM's code, such as MR.
    is_capture
        A screenshot or a scanned page.
    is_truncated
        The file ends before its last pixel.
    image_type
        Values of ImageType (or FrameType) in upper case.
    spacing_yx_mm
        Between rows, then between columns, as PixelSpacing has it.
    orientation
        LPS direction cosines of a row, then of a column.
    position_xyz_mm
        LPS position of the first pixel's centre.
    b_value
        Diffusion weighting in s/mm2; None if nothing says that it is a diffusion image.
    acquired_s
        When it was acquired, in seconds since midnight.
    trigger_time_ms, scan_options, instance_number
        Used to separate volumes of one series if other attributes are equal.
    diffusion_direction
        ``trace`` for an image without direction, a text that differs between directions, or empty
        if unknown.
    contrast_from_s
        When contrast agent was given, in seconds since midnight.
    patient
        PatientID, name and birth date, each empty if missing. Never to be shown.
    patient_id
        PatientID as it is spelled. Never to be shown.
    frame_of_reference_uid
        Of the coordinates of ``position_xyz_mm``; empty if missing.
    contrast_agent, text, description
        Free text in lower case; ``text`` holds all descriptions. Never to be shown.
    """

    path: Path = field(repr=False)
    index: int | None
    sop_uid: str = field(repr=False)
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    series_number: int | None
    modality: str
    image_type: tuple[str, ...]
    rows: int
    columns: int
    is_colour: bool
    is_capture: bool
    is_truncated: bool
    dtype: np.dtype
    spacing_yx_mm: tuple[float, float] | None
    orientation: tuple[float, ...] | None
    position_xyz_mm: tuple[float, float, float] | None
    b_value: float | None
    echo_time_ms: float | None
    repetition_time_ms: float | None
    is_gradient_echo: bool
    temporal_position: int | None
    acquisition_number: int | None
    acquired_s: float | None
    trigger_time_ms: float | None
    scan_options: str
    instance_number: int | None
    diffusion_direction: str
    contrast_from_s: float | None
    patient: tuple[str, str, str] = field(repr=False)
    patient_id: str = field(repr=False)
    frame_of_reference_uid: str = field(repr=False)
    contrast_agent: str = field(repr=False)
    text: str = field(repr=False)
    description: str = field(repr=False)


@dataclass(frozen=True)
class DicomVolume:
    """Images that are one volume, in the order of the array's z axis.

    Attributes
    ----------
    case, series
        Neutral names, see ``discovery.py``; ``series`` ends in ``.2`` and so on where a series
        holds several volumes.
    geometry
        Right-handed: z grows along the normal of the slices.
    repairs
        Corrections of the geometry.
    averaged
        Further stacks on the same grid, in the same order. The image is the mean of ``frames`` and
        these: the directions of a diffusion series without a trace image.
    """

    case: str
    series: str
    frames: tuple[Frame, ...] = field(repr=False)
    geometry: Geometry
    repairs: tuple[str, ...] = ()
    averaged: tuple[tuple[Frame, ...], ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """The name in logs and reports."""
        return f"{self.case}/{self.series}"


@dataclass(frozen=True)
class SeriesRow:
    """One line of the table of DICOM series.

    Attributes
    ----------
    case, series
        Neutral names; ``series`` of a damaged file is the file's.
    sequence
        The guess, or the choice of the sequence map; None without a sequence.
    reason
        Why it has that sequence, is left out or unusable; contains no text of the files.
    images
        How many images it consists of.
    """

    case: str
    series: str
    sequence: str | None
    use: Use
    reason: str
    images: int


@dataclass(frozen=True)
class NamedVolume:
    """A volume to segment, with its line in the table."""

    volume: DicomVolume
    row: SeriesRow


@dataclass(frozen=True)
class Identity:
    """The identifiers behind a neutral name. Never for logs or records.

    ``place`` is the folder of a series, or the path of a damaged file.
    """

    patient_id: str = field(repr=False)
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    description: str = field(repr=False)
    place: str = field(repr=False)


@dataclass(frozen=True)
class DicomDiscovery:
    """The volumes and series of a tree of DICOM files.

    Attributes
    ----------
    volumes
        To segment; at most one for each sequence of a case.
    rows
        One for each volume, and for each other series or file; sorted by case and series.
    identities
        Identifiers of each named series or damaged file, by ``(case, series)``.
    notes
        Further lines for the user, such as dropped copies.
    used_keys
        The keys of the sequence map that match a series.
    """

    volumes: tuple[NamedVolume, ...]
    rows: tuple[SeriesRow, ...]
    identities: dict[tuple[str, str], Identity] = field(repr=False)
    notes: tuple[str, ...] = ()
    used_keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Algorithm:
    """The model that made a mask: its name and the SHA-256 of each of its files."""

    model: str
    sha256: Mapping[str, str] = field(default_factory=dict)
