"""The optional ``info.csv`` of a release: parsed tolerantly and compared with the files.

The columns ``Case``, ``Vendor`` and ``Missing Modality`` may be in any order, and may be absent;
they are separated by commas, semicolons or tabs. The separator of several missing sequences is not
specified, so sequence names are searched in the whole cell. The files take precedence.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.contract.names import identity_key, parse_sequence

_SEQUENCE_WORD = re.compile(r"GED[ _-]?[1-4]|T[12](?:WI?)?|DWI(?:[_-]?\w+)?", re.IGNORECASE)
_SEPARATORS = ",;\t"


@dataclass(frozen=True)
class CaseFacts:
    """One case as described by a table or by its files; ``missing`` is None if not stated."""

    case: str
    vendor: str | None
    missing: frozenset[str] | None


def is_info_table(path: Path) -> bool:
    """Return whether a file is the table of a release, by its name."""
    return path.name.lower() == "info.csv"


def read_info(path: Path) -> tuple[CaseFacts, ...]:
    """Read a table; rows without a case name are skipped.

    Raises ValueError: the table has no ``Case`` column, or is not text; OSError: the file cannot be
    read.
    """
    lines = _decode(path.read_bytes()).splitlines()
    lines = [line for line in lines if line.strip(_SEPARATORS + " ")]
    header = lines[0] if lines else ""
    separator = max(_SEPARATORS, key=header.count)
    columns = [_column_key(cell) for cell in next(csv.reader([header], delimiter=separator))]
    if "case" not in columns:
        raise ValueError("it has no column 'Case'")
    rows = csv.reader(lines[1:], delimiter=separator)
    facts = (_facts_of(row, columns) for row in rows)
    return tuple(fact for fact in facts if fact.case)


def disagreements(path: Path, found: Iterable[CaseFacts]) -> list[str]:
    """Return one line for each case where a table and the files differ."""
    try:
        listed = read_info(path)
    except (OSError, ValueError, csv.Error) as error:
        return [f"{path}: not used ({error})"]
    by_key = {identity_key(fact.case): fact for fact in found}
    notes = []
    for fact in listed:
        actual = by_key.pop(identity_key(fact.case), None)
        difference = _difference(fact, actual)
        if difference:
            notes.append(f"{path}: {fact.case}: {difference}")
    unlisted = (f"{path}: {fact.case}: is not in the table" for fact in by_key.values())
    return [*notes, *unlisted]


def _difference(listed: CaseFacts, actual: CaseFacts | None) -> str:
    if actual is None:
        return "is in the table and has no usable folder"
    parts = []
    if listed.vendor and actual.vendor and listed.vendor != actual.vendor:
        parts.append(f"the table says vendor {listed.vendor}, the folder {actual.vendor}")
    if listed.missing is not None and actual.missing is not None:
        there = sorted(listed.missing - actual.missing)
        absent = sorted(actual.missing - listed.missing)
        if there:
            parts.append(f"said to be missing and found: {', '.join(there)}")
        if absent:
            parts.append(f"not said to be missing and not found: {', '.join(absent)}")
    return "; ".join(parts)


def _facts_of(row: list[str], columns: list[str]) -> CaseFacts:
    cells = {column: cell.strip() for column, cell in zip(columns, row, strict=False)}
    missing = None
    if "missingmodality" in columns:
        # An unquoted list that uses the table's own separator continues in extra columns.
        text = " ".join([cells.get("missingmodality", ""), *row[len(columns) :]])
        parsed = (parse_sequence(word) for word in _SEQUENCE_WORD.findall(text))
        missing = frozenset(name.sequence for name in parsed if name)
    vendor = re.sub(r"vendor[ _-]?", "", cells.get("vendor", ""), flags=re.IGNORECASE).upper()
    return CaseFacts(case=cells.get("case", ""), vendor=vendor or None, missing=missing)


def _column_key(cell: str) -> str:
    """Reduce ``Missing Modality`` and its spellings to one key."""
    key = re.sub(r"[^a-z]", "", cell.lower())
    return "missingmodality" if key.startswith("missing") else key


def _decode(content: bytes) -> str:
    """Decode what spreadsheet programs write: UTF-8 with or without a mark, UTF-16, Latin-1."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
