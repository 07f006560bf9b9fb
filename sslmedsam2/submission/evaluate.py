"""``evaluate``: score a folder of masks against a folder of reference masks."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sslmedsam2.contract import names
from sslmedsam2.contract.masks import MaskListing, find_predictions, find_references, match_masks
from sslmedsam2.contract.outputs import report_path
from sslmedsam2.contract.sequence_map import NO_MAP, SequenceMap
from sslmedsam2.errors import ExitCode, InputError
from sslmedsam2.imaging.atomic import write_text_atomic
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.labelled import read_liver_mask
from sslmedsam2.imaging.records import write_record
from sslmedsam2.imaging.volume import MaskVolume
from sslmedsam2.reporting.run_report import RunReport, SeriesResult, load_report
from sslmedsam2.submission.metrics import diagonal_mm, measure
from sslmedsam2.submission.tables import GroupMeans, ScoreRow, rows_as_csv, summarise

_LOG = logging.getLogger(__name__)
_VENDOR_GROUPS = {
    f"vendors {', '.join(names.IN_DISTRIBUTION_VENDORS)}": names.IN_DISTRIBUTION_VENDORS
}
"""Of the challenge's training set; its other vendor, C, is in the test set only."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of all references and their means.

    ``predictions`` (None for a missing one) and ``references`` are the masks of the rows,
    ``unmatched`` are predictions without a reference.
    """

    rows: tuple[ScoreRow, ...]
    predictions: tuple[Path | None, ...]
    references: tuple[Path, ...]
    summaries: tuple[GroupMeans, ...]
    unmatched: tuple[Path, ...]
    problems: tuple[InputError, ...]

    @property
    def exit_code(self) -> ExitCode:
        """OK if every reference was compared with a mask that is not empty."""
        complete = not self.problems and all(row.status == "scored" for row in self.rows)
        return ExitCode.OK if complete else ExitCode.SOME_CASES_FAILED


def evaluate(
    *,
    predictions: Path,
    references: Path,
    label: int | None = None,
    sequence_map: SequenceMap = NO_MAP,
) -> Evaluation:
    """Score every reference; the row of a pair that cannot be compared has the reason.

    In the output folder of ``predict``, masks have the case and sequence of ``run_report.json``.

    Parameters
    ----------
    label
        The value of the liver in references, and in predictions of several values; None where
        they hold one foreground value.
    sequence_map
        Sequences of files by the user; takes precedence over names.

    Raises
    ------
    NoInputError
        One of the folders does not exist or holds no masks.
    """
    found = find_predictions(predictions, sequence_map=sequence_map)
    with suppress(InputError):
        found = named_by_report(found, load_report(report_path(predictions)), run_dir=predictions)
    expected = find_references(references, sequence_map=sequence_map)
    sequence_map.warn_of_unused(predictions, references)
    evaluation = compare(found, expected, label=label)
    if len(evaluation.unmatched) == len(found.masks):
        _LOG.warning("no mask of %s has the case and sequence of a reference", predictions)
    return evaluation


def named_by_report(found: MaskListing, run: RunReport, *, run_dir: Path) -> MaskListing:
    """Return a listing of a run's folder with case and sequence of its report.

    The names of masks may lack the sequence, or have the case in another form (``--sequence`` and
    ``--layout`` of ``predict``). Masks that the report does not list keep theirs.
    """
    reported = [reported_mask(one, run_dir) for one in run.series if one.output_path]
    paths = {mask.path for mask in reported}
    return replace(
        found,
        masks=(
            *(mask for mask in reported if mask.path in found.identities),
            *(mask for mask in found.masks if mask.path not in paths),
        ),
        # Masks of one name may be of different scans.
        problems=tuple(one for one in found.problems if Path(one.subject) not in paths),
    )


def reported_mask(result: SeriesResult, run_dir: Path) -> ImageFile:
    """Return the mask of a result; its path is the folder of the run if there is none."""
    return ImageFile(
        case=result.case,
        vendor=result.vendor,
        sequence=result.sequence if result.sequence in names.SEQUENCES else None,
        path=run_dir / (result.output_path or ""),
    )


def compare(found: MaskListing, expected: MaskListing, *, label: int | None = None) -> Evaluation:
    """Score every reference of a listing, as `evaluate` does."""
    scored = []
    pairs = match_masks(expected, found)
    for reference, prediction in pairs:
        predicted = None if prediction is None else prediction.path
        row = _score(reference, prediction, label=label)
        scored.append((row, predicted, reference.path))
        _LOG.debug("scored %s", reference.path)
    used = {predicted for _, predicted, _ in scored}
    unmatched = tuple(mask.path for mask in found.masks if mask.path not in used)
    for path in unmatched:
        _LOG.info("%s: no reference; left out", path)
    scored.sort(key=lambda one: (names.sequence_order(one[0].sequence), one[0].case))
    rows = [row for row, _, _ in scored]
    return Evaluation(
        rows=tuple(rows),
        predictions=tuple(path for _, path, _ in scored),
        references=tuple(path for _, _, path in scored),
        summaries=summarise(rows, vendor_groups=_VENDOR_GROUPS),
        unmatched=unmatched,
        problems=_problems(found, expected),
    )


def write_results(
    evaluation: Evaluation, *, json_path: Path | None = None, csv_path: Path | None = None
) -> None:
    """Write the scores as JSON (rows and means) and as CSV (rows); raises OutputError."""
    if json_path:
        data = {
            "rows": evaluation.rows,
            "summary": evaluation.summaries,
            "unmatched": evaluation.unmatched,
            "problems": [str(problem) for problem in evaluation.problems],
        }
        write_record(json_path, data)
    if csv_path:
        write_text_atomic(csv_path, rows_as_csv(evaluation.rows))


def _problems(found: MaskListing, expected: MaskListing) -> tuple[InputError, ...]:
    problems = (*found.problems, *expected.problems)
    for problem in problems:
        _LOG.warning("%s", problem)
    return problems


def _score(reference: ImageFile, prediction: ImageFile | None, *, label: int | None) -> ScoreRow:
    """Compare one reference with its prediction."""
    named = prediction or reference
    row = ScoreRow(
        case=named.case,
        sequence=named.sequence,
        vendor=reference.vendor or named.vendor,
        status="error",
    )
    predicted = problem = None
    if prediction is not None:
        try:
            predicted = read_liver_mask(prediction.path, label=label, strict=False)
        except InputError as error:
            problem = error
    grid = None if predicted is None else predicted.geometry
    try:
        expected = read_liver_mask(reference.path, label=label, grid=grid)
    except InputError as error:
        return replace(row, reason=f"reference {error}")
    for note in expected.repairs:
        _LOG.info("%s: %s", reference.path, note)
    spacing = expected.geometry.spacing_zyx_mm
    diagonal = diagonal_mm(expected.geometry.shape_zyx, spacing_zyx_mm=spacing)
    row = replace(row, diagonal_mm=diagonal)
    if prediction is None:
        return replace(row, status="missing", reason="no prediction")
    if predicted is None:
        return replace(row, reason=str(problem))
    try:
        _check_grid(predicted, expected)
    except InputError as error:
        return replace(row, reason=str(error))
    metrics = measure(predicted.array_zyx, expected.array_zyx, spacing_zyx_mm=spacing)
    row = replace(row, status="scored", metrics=metrics)
    volumes = {"prediction": metrics.volume_ml, "reference": metrics.reference_volume_ml}
    empty = " and ".join(name for name, volume_ml in volumes.items() if volume_ml == 0)
    return replace(row, status="empty", reason=f"{empty} without a voxel") if empty else row


def _check_grid(predicted: MaskVolume, expected: MaskVolume) -> None:
    if same_grid(predicted.geometry, expected.geometry):
        return
    ours, theirs = predicted.geometry, expected.geometry
    if ours.shape_zyx != theirs.shape_zyx:
        difference = f"shape {ours.shape_zyx} against {theirs.shape_zyx}"
    else:
        difference = "its affine differs"
    raise InputError(
        predicted.source.path,
        kind="geometry_mismatch",
        reason=f"it lies on another grid than its reference {expected.source.path} ({difference})",
        remedy="Check that both are of the same scan, and write masks on the grid of the image",
    )
