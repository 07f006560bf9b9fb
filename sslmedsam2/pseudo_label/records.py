"""The record of each pseudo label, their table ``pseudo_labels.csv``, and ``calibration.json``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sslmedsam2.contract.pseudo_label_outputs import (
    TABLE_NAME,
    PseudoLabelPaths,
    find_records,
    pseudo_label_paths,
)
from sslmedsam2.errors import InputError
from sslmedsam2.fewshot.outcome import Calibration, calibrate, judge, score
from sslmedsam2.fewshot.strategy import Evidence, SupportScore, Verdict
from sslmedsam2.imaging.atomic import output_error, write_text_atomic
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.records import key_of, move_aside, read_record_or_none, sha256_file
from sslmedsam2.imaging.volume import mask_volume_ml
from sslmedsam2.reporting.volume_table import csv_text

_COLUMNS: Final = (
    *("case", "sequence", "vendor", "verdict", "estimated_dice", "dice_low", "dice_high"),
    *("volume_ml", "seconds", "encoder_calls", "error"),
)


METHOD: Final = 2
"""Version of the few-shot method, increased when the same settings and supports give new masks."""


@dataclass(frozen=True)
class Provenance:
    """Everything that decides a pseudo label besides its query.

    Attributes
    ----------
    sam2_sha256
        Hash of the checkpoint file.
    settings
        Settings of the few-shot method, without those for speed or memory only.
    supports
        SHA-256 of the files ``image`` and ``mask`` of each labelled volume.
    """

    tool_version: str
    sam2_name: str
    sam2_sha256: str
    settings: Mapping[str, Any]
    supports: Mapping[str, Mapping[str, str]]

    @property
    def key(self) -> str:
        """Hash of the content: file names and the version of the program do not count."""
        return key_of([METHOD, self.sam2_sha256, self.settings, self.supports])

    def key_of(self, name: str, image_sha256: str) -> str:
        """Return a key of one query's pseudo label."""
        return key_of([self.key, name, image_sha256])


@dataclass(frozen=True)
class PseudoLabelRecord:
    """Result of one query.

    Attributes
    ----------
    sequence, vendor
        None where they are not known.
    image
        The query's file, relative to the query folder.
    key
        See `Provenance.key_of`; None where the file could not be read.
    error
        One line; if set, there is no pseudo label, and the fields after it are empty.
    interval
        Contains the true Dice in 90 % of cases.
    image_sha256, mask_sha256
        Hashes of the query's file and of the mask as written; a mask with another hash was
        corrected manually.
    """

    case: str
    sequence: str | None
    vendor: str | None
    image: str
    key: str | None = None
    error: str | None = None
    verdict: Verdict | None = None
    estimated_dice: float | None = None
    interval: tuple[float, float] | None = None
    volume_ml: float | None = None
    encoder_calls: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    evidence: Evidence | None = None
    supports: tuple[SupportScore, ...] = ()
    calibration: Calibration | None = None
    device: str | None = None
    provenance: Provenance | None = None
    mask_sha256: str | None = None
    image_sha256: str | None = None

    def paths(self, output_dir: Path) -> PseudoLabelPaths:
        """Return the files of the pseudo label in an output folder."""
        image = ImageFile(
            case=self.case, vendor=self.vendor, sequence=self.sequence, path=Path(self.image)
        )
        return pseudo_label_paths(output_dir, image)


def read_pseudo_label(path: Path) -> PseudoLabelRecord | None:
    """Read a record; None without one and, after a warning, if it is not usable."""
    return read_record_or_none(path, PseudoLabelRecord)


def is_edited(mask: Path, mask_sha256: str | None) -> bool:
    """Return whether a mask was changed since it was written; raises OSError without the file."""
    return mask_sha256 is not None and sha256_file(mask) != mask_sha256


def make_way(paths: PseudoLabelPaths, *, mask_sha256: str | None) -> None:
    """Make way for a new pseudo label: remove the record, and move a changed mask aside.

    A mask with another hash than ``mask_sha256``, that of its record, may be corrected manually.

    Raises OutputError: a file cannot be moved or removed.
    """
    try:
        if paths.mask.is_file() and sha256_file(paths.mask) != mask_sha256:
            move_aside(paths.mask, why="it is not as this program wrote it")
        paths.record.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(paths.mask, error) from error


@dataclass(frozen=True, kw_only=True)
class CalibrationCase:
    """One support, segmented with the others as if it had no mask.

    Attributes
    ----------
    dice
        Between the result and the reference mask.
    score
        The evidence as one number.
    estimated_dice, interval
        By a calibration on all other supports, which shows how good the estimates are.
    """

    name: str
    dice: float
    score: float = 0.0
    estimated_dice: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    evidence: Evidence


@dataclass(frozen=True)
class CalibrationRun:
    """A calibration with its cases, and the `Provenance.key` for which it is valid.

    It is written after each support, so that a stopped run continues with the missing ones.
    """

    key: str
    calibration: Calibration
    cases: tuple[CalibrationCase, ...]


def calibrate_on(cases: Iterable[CalibrationCase], *, key: str) -> CalibrationRun:
    """Calibrate on supports, and estimate each by a calibration on the others."""
    cases = list(cases)
    known = [(case.evidence, case.dice) for case in cases]
    estimated = []
    for index, case in enumerate(cases):
        estimate = judge(case.evidence, calibrate(known[:index] + known[index + 1 :]))
        estimated.append(
            replace(
                case,
                score=score(case.evidence),
                estimated_dice=estimate.estimated_dice,
                interval=estimate.interval,
            )
        )
    return CalibrationRun(key, calibrate(known), tuple(estimated))


def write_table(output_dir: Path, *, problems: Iterable[PseudoLabelRecord]) -> Path:
    """Write one row for each record in the output folder, and for each of ``problems``.

    The records are read from disk, so that runs which share the folder keep each other's rows.
    Raises OutputError.
    """
    path, more = output_dir / TABLE_NAME, list(problems)
    text = None
    # Another shard may have added a record meanwhile, so the last writer must see all records.
    while text != (text := _table([*read_all(output_dir), *more])):
        write_text_atomic(path, text)
    return path


def read_all(output_dir: Path) -> Iterator[PseudoLabelRecord]:
    """Read the usable records of an output folder, as its masks are now; see `as_corrected`."""
    found = (read_pseudo_label(path) for path in find_records(output_dir))
    return (as_corrected(record, output_dir) for record in found if record is not None)


def as_corrected(record: PseudoLabelRecord, output_dir: Path) -> PseudoLabelRecord:
    """Return the record of a manually corrected mask with its volume, accepted, without estimate.

    Any other record is returned as it is.
    """
    path = record.paths(output_dir).mask
    try:
        if not is_edited(path, record.mask_sha256):
            return record
        mask = read_mask(path)
    except (InputError, OSError):
        return record
    spacing_zyx_mm = mask.geometry.spacing_zyx_mm
    return replace(
        record,
        verdict="accept",
        estimated_dice=None,
        interval=None,
        volume_ml=round(mask_volume_ml(mask.array_zyx, spacing_zyx_mm=spacing_zyx_mm), 1),
        warnings=("manually_corrected: the mask was changed after the run",),
    )


def _table(records: Iterable[PseudoLabelRecord]) -> str:
    rows = sorted(map(_row, records), key=lambda row: (row["case"], row["sequence"]))
    return csv_text(_COLUMNS, rows)


def _row(record: PseudoLabelRecord) -> dict[str, Any]:
    low, high = record.interval or (None, None)
    return {
        "case": record.case,
        "sequence": record.sequence or "",
        "vendor": record.vendor or "",
        "verdict": record.verdict,
        "estimated_dice": record.estimated_dice,
        "dice_low": low,
        "dice_high": high,
        "volume_ml": record.volume_ml,
        "seconds": round(sum(record.seconds.values()), 2),
        "encoder_calls": record.encoder_calls,
        "error": record.error,
    }
