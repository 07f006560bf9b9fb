"""``liver_volumes.csv``: one row for each scan of a run, for spreadsheets and statistics."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sslmedsam2.imaging.atomic import write_text_atomic
from sslmedsam2.reporting.run_report import RunReport, SeriesResult, SeriesStatus

VOLUME_TABLE_NAME: Final = "liver_volumes.csv"
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def write_volume_table(report: RunReport, path: Path) -> None:
    """Write the table, sorted as the report; raises OutputError.

    A scan without a mask has a row with an empty volume. The intensity columns are there only if
    some scan has statistics.
    """
    write_text_atomic(path, volume_table(report))


def volume_table(report: RunReport) -> str:
    """Return the table as RFC 4180 text."""
    rows = [_row(result) for result in sorted(report.series, key=lambda result: result.key)]
    statistics = next((one.intensity for one in report.series if one.intensity), {})
    columns = [*_row(_NO_SCAN), *(f"intensity_{name}" for name in statistics)]
    return csv_text(columns, rows)


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table as RFC 4180 text; columns that a row lacks are empty.

    Text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _harmless(value) for name, value in row.items()})
    return text.getvalue()


def aligned(lines: Sequence[Sequence[str]], *, words: Collection[str] | None = None) -> list[str]:
    """Align cells in columns; the first line holds the headings.

    Columns whose heading is in ``words`` (None: all) are aligned left, the others right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    to_left = [words is None or heading in words for heading in lines[0]]
    return [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, to_left, strict=True)
        ).rstrip()
        for line in lines
    ]


_NO_SCAN: Final = SeriesResult("", None, "", "", None, SeriesStatus.FAILED)


def _row(result: SeriesResult) -> dict[str, Any]:
    low, high = result.estimated_dice_interval or (None, None)
    spacing = [round(mm, 5) for mm in result.geometry.spacing_zyx_mm] if result.geometry else None
    spacing_z, spacing_y, spacing_x = spacing or (None, None, None)
    return {
        "case": result.case,
        "sequence": result.sequence,
        "volume_ml": result.liver_volume_ml,
        "estimated_dice": result.estimated_dice,
        "estimated_dice_low": low,
        "estimated_dice_high": high,
        "verdict": result.verdict,
        "status": result.status.value,
        "is_guess": "yes" if result.status is SeriesStatus.FALLBACK else "no",
        "spacing_x_mm": spacing_x,
        "spacing_y_mm": spacing_y,
        "spacing_z_mm": spacing_z,
        "flags": "; ".join(result.flags),
        "vendor": result.vendor,
        "input": result.input_path,
        "mask": result.output_path,
        **{f"intensity_{name}": value for name, value in (result.intensity or {}).items()},
    }


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        # File names need not be valid text.
        value = value.encode("utf-8", "backslashreplace").decode("utf-8")
        return f"'{value}" if value.startswith(_FORMULA_STARTS) else value
    return value
