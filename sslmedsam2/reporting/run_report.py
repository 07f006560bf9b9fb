"""``run_report.json``: the result of each scan, with models, options and versions.

It contains nothing about the machine or the user: paths are those of the caller, relative to the
input and output folders. It is rewritten while a run goes on, so that a run that is killed can be
resumed; see :class:`sslmedsam2.predict.recorder.RunRecorder`.
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sslmedsam2 import __version__
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.records import read_record, utc_now, write_record
from sslmedsam2.imaging.volume import Volume

Verdict = Literal["ok", "check"]

SCHEMA_VERSION = 1
_REMEDY = "Remove it to begin the run anew"

NOTES = frozenset(
    (
        "hounsfield_window",
        "padding",
        "inverted",
        "averaged",
        "trailing_bytes",
        "gpu_failed",
        "gpu_memory",
        "manually_corrected",
        "second_view",
        "brightness",
    )
)
"""Warnings after which there is nothing to check."""

_WARNING_NAME = re.compile(r"([a-z0-9_]+): ")
_REPORTED_PACKAGES = ("torch", "numpy", "nnunetv2", "openvino")


class SeriesStatus(str, Enum):
    """How the work on one series ended."""

    OK = "ok"
    CHECK = "check"
    EMPTY = "empty"
    FALLBACK = "fallback"
    FAILED = "failed"
    SKIPPED_RESUME = "skipped_resume"


@dataclass(frozen=True)
class InputGeometry:
    """The geometry of a series as read: see :class:`sslmedsam2.imaging.volume.Geometry`.

    ``direction_xyz`` holds the rows of the 3 x 3 matrix; ``native_shape`` is the stored shape in
    the file's own axis order.
    """

    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    direction_xyz: tuple[tuple[float, float, float], ...]
    left_handed: bool
    native_shape: tuple[int, ...]
    native_dtype: str

    @classmethod
    def of(cls, volume: Volume) -> InputGeometry:
        """Record the geometry of a volume."""
        geometry = volume.geometry
        direction = geometry.direction_xyz
        return cls(
            shape_zyx=geometry.shape_zyx,
            spacing_zyx_mm=geometry.spacing_zyx_mm,
            origin_xyz_mm=geometry.origin_xyz_mm,
            direction_xyz=tuple((float(a), float(b), float(c)) for a, b, c in direction),
            left_handed=bool(np.linalg.det(direction) < 0),
            native_shape=volume.source.native_shape,
            native_dtype=str(volume.source.native_dtype),
        )


@dataclass(frozen=True)
class SeriesResult:
    """What became of one series.

    Attributes
    ----------
    case, vendor, sequence
        Which series; ``vendor`` is None where the folders do not name one.
    input_path, output_path
        Relative to the run's folders; ``output_path`` is None if nothing was written.
    status
        How it ended.
    seconds
        Wall-clock seconds by stage.
    peak_memory_mb
        Peak resident memory of the process so far, in MB of 10**6 bytes.
    liver_volume_ml, components, touches_border, mean_foreground_confidence
        Of the written mask; None where there is none.
    estimated_dice, estimated_dice_interval
        The Dice that a comparison with a reference mask would probably give, and the interval that
        should hold it in 90 % of scans; None without a mask, for a guess, and where the model has
        no calibration.
    verdict
        ``check``: a person should look at the mask before it is used; None without a mask, and
        where a person has corrected it.
    most_doubtful_lps_mm
        Where the network is least sure of the border: x, y, z in the LPS world coordinates of the
        scan; None where no mask was found.
    intensity
        ``mean``, ``sd`` and percentiles of the scan inside the mask, in the units of the file;
        None if not asked for.
    warnings
        Repairs and doubts, in plain words.
    error
        One line, or None.
    dicom_seg_path, preview_path
        Of the DICOM-SEG and of the preview, relative to the run's folder; None if none was written.
    map_paths
        Of the maps, relative to the run's folder.
    geometry
        Of the input; None if it could not be read.
    image_sha256
        Of the voxels and the geometry as read; None if they could not be read.
    mask_sha256
        Of the mask's file as written; one with another was corrected manually since.
    """

    case: str
    vendor: str | None
    sequence: str
    input_path: str
    output_path: str | None
    status: SeriesStatus
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    liver_volume_ml: float | None = None
    components: int | None = None
    touches_border: bool | None = None
    mean_foreground_confidence: float | None = None
    estimated_dice: float | None = None
    estimated_dice_interval: tuple[float, float] | None = None
    verdict: Verdict | None = None
    most_doubtful_lps_mm: tuple[float, float, float] | None = None
    intensity: Mapping[str, float] | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    geometry: InputGeometry | None = None
    dicom_seg_path: str | None = None
    preview_path: str | None = None
    map_paths: tuple[str, ...] = ()
    image_sha256: str | None = None
    mask_sha256: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Everything written for the series, relative to the run's folder."""
        paths = (self.output_path, self.dicom_seg_path, self.preview_path, *self.map_paths)
        return tuple(path for path in paths if path is not None)

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the series within a run."""
        return self.case, self.sequence, self.input_path

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of the warnings, which are written ``name: sentence``, each once."""
        found = (_WARNING_NAME.match(warning) for warning in self.warnings)
        return tuple(dict.fromkeys(match[1] if match else "warning" for match in found))


@dataclass(frozen=True)
class DicomRecord:
    """The sequence and use of a DICOM series, under its neutral name.

    Attributes
    ----------
    sequence
        The guess, or the choice of the sequence map; None without a sequence.
    use
        ``segment``, ``left_out`` or ``unusable``.
    reason
        Why.
    images
        How many images it consists of.
    """

    case: str
    series: str
    sequence: str | None
    use: str
    reason: str
    images: int


@dataclass(frozen=True)
class LeftOutRecord:
    """A series of the input, not of DICOM, that was found and deliberately not segmented.

    ``sequence`` and ``input_path`` are as in `SeriesResult`; ``reason`` is one clause.
    """

    case: str
    sequence: str
    input_path: str
    reason: str


@dataclass(frozen=True)
class ModelRecord:
    """A model that was used: its name and the SHA-256 of each of its files."""

    name: str
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class RunReport:
    """Everything needed to understand a run and to do it again.

    ``started`` and ``finished`` are ISO 8601 times in UTC; ``finished`` and ``exit_code`` are None
    while the run goes on, and stay so if it was killed. ``dicom`` lists every DICOM series of the
    input, those that were left out included; ``left_out`` lists what else no model serves.
    ``counts`` says how many series ended in each status.
    """

    models: tuple[ModelRecord, ...]
    device: str
    backend: str
    options: Mapping[str, Any]
    started: str
    finished: str | None = None
    exit_code: int | None = None
    interrupted: bool = False
    series: tuple[SeriesResult, ...] = ()
    dicom: tuple[DicomRecord, ...] = ()
    left_out: tuple[LeftOutRecord, ...] = ()
    tool: str = "sslmedsam2"
    tool_version: str = __version__
    versions: Mapping[str, str | None] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    counts: Mapping[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Count the series; the counts in a file are not used."""
        found = Counter(result.status.value for result in self.series)
        counts = {status.value: found[status.value] for status in SeriesStatus}
        object.__setattr__(self, "counts", counts)

    @property
    def n_left_out(self) -> int:
        """How many series were found and deliberately not segmented."""
        return len(self.left_out) + sum(row.use == "left_out" for row in self.dicom)

    def with_series(self, result: SeriesResult) -> RunReport:
        """The report with one more series; an earlier result of the same series is replaced."""
        others = tuple(known for known in self.series if known.key != result.key)
        return replace(self, series=(*others, result))

    def ended(self, *, exit_code: int, interrupted: bool = False) -> RunReport:
        """The report of the finished run."""
        return replace(self, finished=utc_now(), exit_code=exit_code, interrupted=interrupted)


def start_report(
    *,
    models: tuple[ModelRecord, ...],
    device: str,
    backend: str,
    options: Mapping[str, Any],
    dicom: tuple[DicomRecord, ...] = (),
    left_out: tuple[LeftOutRecord, ...] = (),
) -> RunReport:
    """Return an empty report of a run that begins now."""
    return RunReport(
        models=models,
        device=device,
        backend=backend,
        options=options,
        started=utc_now(),
        dicom=dicom,
        left_out=left_out,
        versions=installed_versions(),
    )


def installed_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide the result, without importing them."""
    packages = {package: _installed_version(package) for package in _REPORTED_PACKAGES}
    return {"python": platform.python_version(), **packages}


@cache
def _installed_version(package: str) -> str | None:
    """Kept, because finding and parsing what pip wrote takes 10 ms a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_report(report: RunReport, path: Path) -> None:
    """Write the report as JSON, whole or not at all, its series sorted by case and sequence.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    ordered = tuple(sorted(report.series, key=lambda result: result.key))
    write_record(path, replace(report, series=ordered))


def load_report(path: Path) -> RunReport:
    """Read a report back, for instance to resume its run.

    Raises
    ------
    InputError
        If the file is missing, is not a report or is of another schema version.
    """
    report = read_record(path, RunReport, remedy=_REMEDY)
    if report.schema_version != SCHEMA_VERSION:
        raise InputError(
            path,
            kind="bad_record",
            reason=f"its schema version is {report.schema_version}, not {SCHEMA_VERSION}",
            remedy=_REMEDY,
        )
    return report
