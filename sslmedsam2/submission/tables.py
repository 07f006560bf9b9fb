"""Rows of scores, and their means by sequence and vendor.

How cases without a full score count
------------------------------------
Plain means run over the masks that could be compared. An empty prediction is among them with
Dice 0; its distances are not defined and are left out. The ``with_missing`` means run over all
references: a prediction that is missing, empty, unreadable or on another grid counts as Dice 0
and with the diagonal of the image as its Hausdorff distance, the largest value possible.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from sslmedsam2.reporting.volume_table import aligned, csv_text
from sslmedsam2.submission.metrics import MaskMetrics

Status = Literal["scored", "empty", "missing", "error"]
METRIC_NAMES = (
    "dice",
    "hausdorff_mm",
    "hausdorff95_mm",
    "surface_distance_mm",
    "volume_error_ml",
    "volume_error_percent",
)


@dataclass(frozen=True)
class ScoreRow:
    """The score of one reference.

    Attributes
    ----------
    status
        ``scored``; ``empty``: compared, and a mask is empty; ``missing``: no prediction;
        ``error``: cannot be compared. All but the first give a ``reason``.
    metrics
        None unless compared.
    diagonal_mm
        Of the reference's grid; None where the reference itself cannot be read, and then the row
        counts in no mean.
    """

    case: str
    sequence: str | None
    vendor: str | None
    status: Status
    metrics: MaskMetrics | None = None
    diagonal_mm: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class GroupMeans:
    """Means of one sequence over one group of cases; NaN where there is nothing to average.

    ``means`` and ``deviations`` (population) run over compared masks, volume errors by their
    size; ``with_missing`` over all readable references, see the module.
    """

    sequence: str | None
    group: str
    references: int
    compared: int
    empty: int
    missing: int
    errors: int
    means: dict[str, float]
    deviations: dict[str, float]
    with_missing: dict[str, float]


def summarise(
    rows: Sequence[ScoreRow], *, vendor_groups: Mapping[str, Sequence[str]]
) -> tuple[GroupMeans, ...]:
    """Average the rows of each sequence: over all, over each group of vendors, over each vendor.

    Groups without a row are left out. The order of sequences is that of the rows.
    """
    summaries = []
    for sequence in dict.fromkeys(row.sequence for row in rows):
        own = [row for row in rows if row.sequence == sequence]
        summaries.append(_means_of(own, "all"))
        vendors = sorted({row.vendor for row in own if row.vendor})
        groups = {**vendor_groups, **{f"vendor {vendor}": (vendor,) for vendor in vendors}}
        for name, members in groups.items():
            chosen = [row for row in own if row.vendor in members]
            if chosen:
                summaries.append(_means_of(chosen, name))
    return tuple(summaries)


def _means_of(rows: Sequence[ScoreRow], group: str) -> GroupMeans:
    compared = [row.metrics for row in rows if row.metrics is not None]
    columns = {
        name: _defined(_size(name, getattr(metrics, name)) for metrics in compared)
        for name in METRIC_NAMES
    }
    readable = [row for row in rows if row.diagonal_mm is not None]
    with_missing = {
        "dice": [_penalised_dice(row) for row in readable],
        "hausdorff_mm": [_penalised_distance(row) for row in readable],
    }
    count_of = [row.status for row in rows].count
    return GroupMeans(
        sequence=rows[0].sequence,
        group=group,
        references=len(rows),
        compared=len(compared),
        empty=count_of("empty"),
        missing=count_of("missing"),
        errors=count_of("error"),
        means=_averages(statistics.fmean, columns),
        deviations=_averages(statistics.pstdev, columns),
        with_missing=_averages(statistics.fmean, with_missing),
    )


def _size(name: str, value: float) -> float:
    """Return a volume error without its sign: errors of both signs must not cancel in a mean."""
    return abs(value) if name.startswith("volume_error") else value


def _defined(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _averages(
    function: Callable[[list[float]], float], columns: dict[str, list[float]]
) -> dict[str, float]:
    return {name: function(values) if values else math.nan for name, values in columns.items()}


def _penalised_dice(row: ScoreRow) -> float:
    return row.metrics.dice if row.metrics else 0.0


def _penalised_distance(row: ScoreRow) -> float:
    if row.metrics and not math.isnan(row.metrics.hausdorff_mm):
        return row.metrics.hausdorff_mm
    return math.nan if row.diagonal_mm is None else row.diagonal_mm


_NOTHING = "-"
_DISTANCE_HEADINGS = ("HD95", "ASSD")
_ROW_HEADINGS = (
    *("case", "sequence", "vendor", "Dice", "HD", *_DISTANCE_HEADINGS),
    *("diff ml", "diff %", "status"),
)
_MEAN_HEADINGS = (
    *("sequence", "group", "n", "Dice (sd)", "HD (sd)", *_DISTANCE_HEADINGS),
    *("|diff| ml", "|diff| %"),
)
_ALL_HEADINGS = ("sequence", "group", "references", "empty", "missing", "errors", "Dice*", "HD*")
_WORD_HEADINGS = {"case", "sequence", "vendor", "group", "status"}
_LEGEND = """\
HD, HD95, ASSD: Hausdorff distance, its 95th percentile, and average surface distance, in mm.
diff: volume of the prediction less that of the reference; |diff|: mean of its size.
n: masks that could be compared. sd: standard deviation over them."""
_ALL_LEGEND = """\
Dice*, HD*: over all references; a missing, empty or unusable prediction counts as Dice 0 and as
the diagonal of its image."""


def format_tables(rows: Sequence[ScoreRow], summaries: Sequence[GroupMeans]) -> str:
    """Return rows, reasons, means and a legend, as aligned text.

    Means over all references follow for groups in which a prediction is missing, empty or
    unusable; in others they are the same. With case names of up to 20 characters it fits 100
    columns.
    """
    reasons = [
        f"{row.case} {row.sequence or ''}".rstrip() + f": {row.reason}"
        for row in rows
        if row.reason
    ]
    parts = [
        _table(_ROW_HEADINGS, map(_row_cells, rows)),
        "\n".join(reasons),
        _table(_MEAN_HEADINGS, map(_mean_cells, summaries)),
    ]
    incomplete = [one for one in summaries if one.empty or one.missing or one.errors]
    if incomplete:
        parts += [_table(_ALL_HEADINGS, map(_all_cells, incomplete)), _LEGEND + "\n" + _ALL_LEGEND]
    else:
        parts.append(_LEGEND)
    return "\n\n".join(filter(None, parts))


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(aligned([headings, *rows], words=_WORD_HEADINGS))


def rows_as_csv(rows: Iterable[ScoreRow]) -> str:
    """Return the rows as CSV with a header; figures that are not defined are empty cells."""
    metric_names = [field.name for field in fields(MaskMetrics)]
    names = [field.name for field in fields(ScoreRow) if field.name != "metrics"]
    cells = []
    for row in rows:
        flat = asdict(row)
        flat |= flat.pop("metrics") or {}
        # NaN, which alone differs from itself, is no figure.
        cells.append({name: "" if value != value else value for name, value in flat.items()})
    return csv_text([*names, *metric_names], cells)


def _row_cells(row: ScoreRow) -> tuple[str, ...]:
    values = [getattr(row.metrics, name) if row.metrics else math.nan for name in METRIC_NAMES]
    status = "" if row.status == "scored" else row.status.upper()
    figures = [_dice(values[0]), *map(_number, values[1:])]
    return (row.case, row.sequence or _NOTHING, row.vendor or _NOTHING, *figures, status)


def _mean_cells(summary: GroupMeans) -> tuple[str, ...]:
    means, deviations = summary.means, summary.deviations
    return (
        summary.sequence or _NOTHING,
        summary.group,
        str(summary.compared),
        f"{_dice(means['dice'])} ({_dice(deviations['dice'])})",
        f"{_number(means['hausdorff_mm'])} ({_number(deviations['hausdorff_mm'])})",
        *(_number(means[name]) for name in METRIC_NAMES[2:]),
    )


def _all_cells(summary: GroupMeans) -> tuple[str, ...]:
    return (
        summary.sequence or _NOTHING,
        summary.group,
        *map(str, (summary.references, summary.empty, summary.missing, summary.errors)),
        _dice(summary.with_missing["dice"]),
        _number(summary.with_missing["hausdorff_mm"]),
    )


def _dice(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:.4f}"


def _number(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:.1f}"
