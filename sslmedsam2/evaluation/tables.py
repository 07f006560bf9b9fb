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
from dataclasses import dataclass
from typing import Literal

from sslmedsam2.evaluation.metrics import MaskMetrics

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
