"""Names for studies, series and files that contain nothing about the patient.

Folders and files of an export are often named after the patient, and descriptions are free text.
So everything in a log, a record or an output path is named by a hash of a unique identifier: the
same series always has the same name, and whoever holds the files can find it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_STUDY_DIGITS = 10
_SERIES_DIGITS = 6


def case_name(study_uid: str) -> str:
    """Name a study: ``study-`` and the beginning of the hash of its StudyInstanceUID."""
    return f"study-{_digest(study_uid, _STUDY_DIGITS)}"


def series_name(series_uid: str, series_number: int | None) -> str:
    """Name a series within its study: its number and a hash of its SeriesInstanceUID."""
    number = "x" if series_number is None else str(series_number)
    return f"{number}-{_digest(series_uid, _SERIES_DIGITS)}"


def file_name(path: Path, *, root: Path) -> str:
    """Name a file that belongs to no known series, by a hash of its place below ``root``."""
    place = path.relative_to(root) if path.is_relative_to(root) else path
    return f"file-{_digest(place.as_posix(), _STUDY_DIGITS)}"


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:digits]
