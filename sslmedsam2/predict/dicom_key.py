"""The key of a DICOM tree: which patient, study and series each neutral name stands for."""

from __future__ import annotations

import os
from dataclasses import astuple
from pathlib import Path
from typing import Final

from sslmedsam2.dicom.model import DicomDiscovery
from sslmedsam2.errors import UsageError
from sslmedsam2.imaging.atomic import atomic_path
from sslmedsam2.reporting.volume_table import csv_text

_COLUMNS: Final = (
    "case",
    "series",
    "patient_id",
    "study_instance_uid",
    "series_instance_uid",
    "description",
    "place",
)


def write_key(found: DicomDiscovery, path: Path) -> int:
    """Write the key as CSV, readable for its owner only, and return the number of its rows.

    An earlier key is replaced.

    Raises
    ------
    UsageError
        Another file has this name.
    OutputError
        It cannot be written.
    """
    rows = [
        dict(zip(_COLUMNS, (case, series, *astuple(identity)), strict=True))
        for (case, series), identity in sorted(found.identities.items())
    ]
    text = csv_text(_COLUMNS, rows)
    if path.exists() and not _is_key(path):
        raise UsageError(
            path, reason="it exists and is not a key", remedy="Give a new file to --key"
        )
    with atomic_path(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    return len(rows)


def _is_key(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.readline().rstrip() == ",".join(_COLUMNS).encode()
    except OSError:
        return False
