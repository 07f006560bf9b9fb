"""Scores as text for a terminal, as CSV and as JSON data."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from sslmedsam2.evaluation.metrics import MaskMetrics
from sslmedsam2.evaluation.tables import METRIC_NAMES, GroupMeans, ScoreRow

_NOTHING = "-"
_METRIC_HEADINGS = ("Dice", "HD mm", "HD95 mm", "ASSD mm", "vol ml", "vol %")
_ROW_HEADINGS = ("case", "sequence", "vendor", *_METRIC_HEADINGS, "remark")
_MEAN_HEADINGS = (
    *("sequence", "group", "n", *_METRIC_HEADINGS[:2], "sd Dice", "sd HD", *_METRIC_HEADINGS[2:]),
    *("missing", "empty", "errors", "Dice*", "HD* mm"),
)
_WORD_HEADINGS = {"case", "sequence", "vendor", "group", "remark"}
_LEGEND = """\
vol: predicted less reference; in means, the size of the error. sd: standard deviation over cases.
Dice*, HD*: over all references; a missing, empty or unusable prediction counts as Dice 0 and as
the diagonal of its image."""


def format_tables(rows: Sequence[ScoreRow], summaries: Sequence[GroupMeans]) -> str:
    """Return the rows and the means as two tables with aligned columns, and a legend."""
    row_table = _aligned([_ROW_HEADINGS, *map(_row_cells, rows)])
    mean_table = _aligned([_MEAN_HEADINGS, *map(_mean_cells, summaries)])
    return f"{row_table}\n\n{mean_table}\n\n{_LEGEND}"


def rows_as_csv(rows: Iterable[ScoreRow]) -> str:
    """Return the rows as CSV with a header; figures that are not defined are empty cells."""
    metric_names = [field.name for field in fields(MaskMetrics)]
    names = [field.name for field in fields(ScoreRow) if field.name != "metrics"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names, *metric_names], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = _without_nan(asdict(row))
        metrics = flat.pop("metrics") or {}
        writer.writerow({**flat, **metrics})
    return text.getvalue()


def as_json_data(rows: Sequence[ScoreRow], summaries: Sequence[GroupMeans]) -> dict[str, Any]:
    """Return rows and means for a JSON file; figures that are not defined are null."""
    return {
        "rows": [_without_nan(asdict(row)) for row in rows],
        "summary": [_without_nan(asdict(summary)) for summary in summaries],
    }


def _row_cells(row: ScoreRow) -> tuple[str, ...]:
    values = [getattr(row.metrics, name) if row.metrics else math.nan for name in METRIC_NAMES]
    remark = "" if row.status == "scored" else f"{row.status.upper()} {row.reason}".rstrip()
    figures = [_dice(values[0]), *map(_number, values[1:])]
    return (row.case, row.sequence or _NOTHING, row.vendor or _NOTHING, *figures, remark)


def _mean_cells(summary: GroupMeans) -> tuple[str, ...]:
    means, deviations = summary.means, summary.deviations
    return (
        summary.sequence or _NOTHING,
        summary.group,
        str(summary.references),
        _dice(means["dice"]),
        _number(means["hausdorff_mm"]),
        _dice(deviations["dice"]),
        _number(deviations["hausdorff_mm"]),
        *(_number(means[name]) for name in METRIC_NAMES[2:]),
        str(summary.missing),
        str(summary.empty),
        str(summary.errors),
        _dice(summary.with_missing["dice"]),
        _number(summary.with_missing["hausdorff_mm"]),
    )


def _dice(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:.4f}"


def _number(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:.2f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lay cells out in columns, words to the left and figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    to_left = [heading in _WORD_HEADINGS for heading in lines[0]]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, to_left, strict=True)
        ).rstrip()
        for line in lines
    )


def _without_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not know, by None, at any depth."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
