"""The user's sequence map, which overrides every guess.

A table from a series to a sequence, ``skip`` or ``none``. A series is named by its
SeriesInstanceUID, its description (case is ignored), or its name in the list:
``study-3f2a9c01d4/301-a1b2c3``, without the study, or with ``.2`` for one volume of several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sslmedsam2.contract.names import SEQUENCES, parse_sequence
from sslmedsam2.dicom.model import Frame
from sslmedsam2.errors import UsageError

SKIP = "skip"
NO_SEQUENCE = "none"


@dataclass(frozen=True)
class SequenceMap:
    """Checked entries: key in lower case to a canonical sequence, ``skip`` or ``none``."""

    entries: Mapping[str, str]

    def choice(self, frame: Frame, *, case: str, series: str) -> tuple[str, str] | None:
        """Return (key, choice) for a volume, by its most special name; None if it has none."""
        whole_series = series.partition(".")[0]
        keys = (
            f"{case}/{series}",
            series,
            f"{case}/{whole_series}",
            whole_series,
            frame.series_uid,
            frame.description,
        )
        return next(((key, self.entries[key]) for key in keys if key in self.entries), None)

    def unused(self, used: set[str]) -> int:
        """Return how many entries fitted no series."""
        return len(self.entries.keys() - used)


def parse_sequence_map(table: Mapping[str, Any]) -> SequenceMap:
    """Check a user's table.

    Raises
    ------
    UsageError
        A value is no sequence, ``skip`` or ``none``. The key is not quoted: it may be a
        description, which is free text.
    """
    entries = {}
    for number, (key, value) in enumerate(table.items(), start=1):
        word = value.strip() if isinstance(value, str) else ""
        name = parse_sequence(word)
        if word.lower() in (SKIP, NO_SEQUENCE):
            entries[key.strip().lower()] = word.lower()
        elif name is not None:
            entries[key.strip().lower()] = name.sequence
        else:
            raise UsageError(
                f"--sequence-map, entry {number}",
                reason="its value is not a sequence",
                remedy=f"Use one of {', '.join(SEQUENCES)}, {NO_SEQUENCE} or {SKIP}",
            )
    return SequenceMap(entries)
