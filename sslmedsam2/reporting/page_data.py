"""Contents of the results page, as plain data for its template and script.

Order
-----
Series are ordered by status (failed and empty; then fallback and check; then the rest), and
within a status by the Dice with the reference, or without one by the estimated Dice, or without
that by the mean probability less 0.1 for each warning that asks for a look; of equal ones, the one
with more such warnings. A series that the page could not read counts as failed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sslmedsam2.reporting.run_report import (
    NOTES,
    InputGeometry,
    RunReport,
    SeriesResult,
    SeriesStatus,
)

Shown = Literal["volumes", "preview", "nothing"]

_STATUS_RANKS = {
    SeriesStatus.FAILED: 0,
    SeriesStatus.EMPTY: 1,
    SeriesStatus.FALLBACK: 2,
    SeriesStatus.CHECK: 2,
    SeriesStatus.OK: 3,
    SeriesStatus.SKIPPED_RESUME: 3,
}
_NOT_COUNTED = (SeriesStatus.FALLBACK, SeriesStatus.CHECK)
"""Their volumes are in no mean: guesses, and masks that a person has to look at first."""
_DOUBT_OF_A_FLAG = 0.1
_SHOWN_HASH_DIGITS = 12


@dataclass(frozen=True)
class PageScore:
    """The comparison of a mask with its reference; figures are None where not defined.

    ``note`` is the reason, or another remark.
    """

    dice: float | None
    hausdorff_mm: float | None
    note: str = ""


@dataclass(frozen=True)
class PageEntry:
    """One series of the page.

    Attributes
    ----------
    series_id
        Names the series in the page's address and its script's file.
    shown
        The data for the viewer in the script of the series.
    view_note
        How the volumes were reduced, or why there are none.
    problem
        Why a mask that the run has written could not be read, or None.
    score
        Against the reference; None if there is none.
    sequence_reason
        Why a DICOM series was taken for its sequence; empty for others, which files name.
    """

    series_id: str
    result: SeriesResult
    shown: Shown = "nothing"
    view_note: str = ""
    problem: str | None = None
    score: PageScore | None = None
    sequence_reason: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the warnings, which filters and the order go by."""
        return (*self.result.flags, *(["not_shown"] if self.problem else []))


def worst_first(entries: Iterable[PageEntry]) -> list[PageEntry]:
    """Sort the series as the module says; equal ones by case and sequence."""
    return sorted(entries, key=_badness)


def page_data(run: RunReport, entries: Iterable[PageEntry], *, notes: Iterable[str]) -> Any:
    """Return everything that the page shows but the pictures, ready for JSON.

    Parameters
    ----------
    run
        The run as reported.
    entries
        Its series in the order in which the page shows them.
    notes
        Remarks on the whole page, such as references without a prediction.
    """
    rows = list(entries)
    return {
        "run": _run_facts(run),
        "counts": {status: count for status, count in run.counts.items() if count},
        "notes": list(notes),
        "scored": any(entry.score is not None for entry in rows),
        "estimated": any(entry.result.estimated_dice is not None for entry in rows),
        "series": [_row(entry) for entry in rows],
        "left_out": _left_out(run),
        "volumes": _volume_summary(run),
    }


def _badness(entry: PageEntry) -> tuple[int, float, int, tuple[str, str, str]]:
    result = entry.result
    rank = 0 if entry.problem else _STATUS_RANKS[result.status]
    doubts = len(set(entry.flags) - NOTES)
    quality = entry.score.dice if entry.score else None
    if quality is None:
        quality = result.estimated_dice
    if quality is None:
        mean = result.mean_foreground_confidence
        quality = (1.0 if mean is None else mean) - _DOUBT_OF_A_FLAG * doubts
    return rank, quality, -doubts, result.key


def _row(entry: PageEntry) -> dict[str, Any]:
    """Return the fields of the result, some of them in words, and those of the page."""
    result, score = entry.result, entry.score
    return {
        **asdict(result),
        "id": entry.series_id,
        "status": result.status.value,
        "flags": list(entry.flags),
        "notes": [flag for flag in entry.flags if flag in NOTES],
        "warnings": list(result.warnings),
        "stages": dict(result.seconds),
        "seconds": round(sum(result.seconds.values()), 2) if result.seconds else None,
        "geometry": None if result.geometry is None else _geometry_in_words(result.geometry),
        "dice": score.dice if score else None,
        "hausdorff_mm": score.hausdorff_mm if score else None,
        "score_note": score.note if score else "",
        "shown": entry.shown,
        "view_note": entry.view_note,
        "problem": entry.problem,
        "sequence_reason": entry.sequence_reason,
    }


def _left_out(run: RunReport) -> list[dict[str, Any]]:
    """Return the inputs without a mask; ``images`` is known for DICOM only."""
    files = [
        {"case": row.case, "series": row.input_path, "sequence": row.sequence, "images": None}
        | {"use": "left_out", "reason": row.reason}
        for row in run.left_out
    ]
    dicom = [asdict(row) for row in run.dicom if row.use != "segment"]
    return sorted(files + dicom, key=lambda row: (row["case"], row["series"]))


def _volume_summary(run: RunReport) -> str:
    """Say how large the livers are, by the masks that nobody has to check first."""
    measured = [
        (result.liver_volume_ml, result.status in _NOT_COUNTED)
        for result in run.series
        if result.liver_volume_ml is not None
    ]
    volumes = [volume_ml for volume_ml, is_doubtful in measured if not is_doubtful]
    if not volumes:
        return ""
    n_doubtful = len(measured) - len(volumes)
    without = f", without {n_doubtful} to check" if n_doubtful else ""
    return (
        f"Liver volume: mean {statistics.mean(volumes):.0f} ml, median"
        f" {statistics.median(volumes):.0f} ml of {len(volumes)} masks{without}"
    )


def _run_facts(run: RunReport) -> list[tuple[str, str]]:
    """Return names and values for the summary, in the order in which they are shown."""
    facts = [("Model", f"{model.name} ({_fingerprint(model.sha256)})") for model in run.models]
    facts += [
        ("Device", ", ".join(filter(None, (run.device, run.backend)))),
        ("Options", ", ".join(f"{k} {v}" for k, v in run.options.items() if v is not None)),
        ("Started", run.started),
        ("Ended", _ending(run) if run.started else ""),
        ("Software", f"{run.tool} {run.tool_version}"),
        ("With", ", ".join(f"{name} {version}" for name, version in run.versions.items())),
    ]
    return [(name, value) for name, value in facts if value]


def _ending(run: RunReport) -> str:
    if run.finished is None:
        return "not ended: the run goes on, or was killed"
    interrupted = ", interrupted" if run.interrupted else ""
    return f"{run.finished}, exit code {run.exit_code}{interrupted}"


def _fingerprint(sha256: Any) -> str:
    """Name a model's weights by the beginning of their hashes."""
    weights = [value for path, value in sorted(sha256.items()) if not path.endswith(".json")]
    return ", ".join(f"sha256 {value[:_SHOWN_HASH_DIGITS]}" for value in weights or sha256.values())


def _geometry_in_words(geometry: InputGeometry) -> str:
    voxels = " x ".join(str(length) for length in geometry.shape_zyx[::-1])
    sizes = " x ".join(f"{mm:.3g}" for mm in geometry.spacing_zyx_mm[::-1])
    hand = ", left-handed" if geometry.left_handed else ""
    return f"{voxels} voxels of {sizes} mm, {geometry.native_dtype}{hand}"
