"""``report``: write the results page of a finished run.

``run_report.json`` lists the series. Their masks are in the folder of the run, their images in the
input folder. Series are read one at a time; one that cannot be read is shown with the reason.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sslmedsam2.contract import names
from sslmedsam2.contract.masks import (
    MaskKey,
    find_predictions,
    find_references,
    mask_key,
)
from sslmedsam2.contract.outputs import PAGE_FOLDER, REPORT_NAME, report_path
from sslmedsam2.errors import ExitCode, InputError, NoInputError
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.intensity import window_if_hounsfield
from sslmedsam2.imaging.labelled import read_liver_mask
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.records import record_text
from sslmedsam2.imaging.volume import MaskVolume, Volume
from sslmedsam2.predict.inputs import InputImages, dicom_input_name
from sslmedsam2.reporting.page import (
    VIEW_BUDGET_BYTES,
    check_page_folder,
    write_page,
    write_preview_case,
    write_volumes_case,
)
from sslmedsam2.reporting.page_data import PageEntry, PageScore, page_data, worst_first
from sslmedsam2.reporting.page_volumes import ViewVolumes, reduce_for_view
from sslmedsam2.reporting.run_report import (
    RunReport,
    SeriesResult,
    SeriesStatus,
    load_report,
)
from sslmedsam2.reporting.volume_table import VOLUME_TABLE_NAME, volume_table
from sslmedsam2.submission.evaluate import compare, named_by_report, reported_mask
from sslmedsam2.submission.tables import ScoreRow

_LOG = logging.getLogger(__name__)

_LISTED_REFERENCES = 5


@dataclass(frozen=True)
class ReportOptions:
    """Options of ``report``.

    Attributes
    ----------
    run_dir
        The output folder of ``predict``.
    input_path, only
        The input of ``predict``, as in `PredictOptions`; no input to show previews instead of
        volumes.
    references
        Folder of reference masks, or None.
    output_dir
        Of the page; None for ``report`` in the run's folder.
    """

    run_dir: Path
    input_path: Path | None = None
    references: Path | None = None
    output_dir: Path | None = None
    only: tuple[Path, ...] = ()


@dataclass(frozen=True)
class WrittenPage:
    """Path and entries of a page, worst first."""

    index_path: Path
    entries: tuple[PageEntry, ...]

    @property
    def exit_code(self) -> ExitCode:
        """OK if every mask and image of the run could be read."""
        problems = any(entry.problem for entry in self.entries)
        return ExitCode.SOME_CASES_FAILED if problems else ExitCode.OK


@dataclass(frozen=True)
class _Reference:
    """The score of a reference, and its path if it is on the grid of the prediction."""

    name: str
    score: PageScore
    path: Path | None


def report(options: ReportOptions) -> WrittenPage:
    """Write the page of a run; a series that cannot be read is shown with the reason.

    Raises
    ------
    NoInputError
        No usable ``run_report.json``, no input folder with an image of the run, or no reference
        masks.
    UsageError
        The folder of the page holds other files.
    OutputError
        The page cannot be written.
    """
    run = _load_run(options.run_dir)
    downloads = {VOLUME_TABLE_NAME: volume_table(run), REPORT_NAME: record_text(run)}
    return write_results_page(run, options, downloads=downloads)


def write_results_page(
    run: RunReport, options: ReportOptions, *, downloads: Mapping[str, str]
) -> WrittenPage:
    """Write the page of any run with masks; raises as `report` does.

    ``downloads`` are text files to offer, by name.
    """
    references, notes = _references(run, options)
    folder = options.output_dir or options.run_dir / PAGE_FOLDER
    check_page_folder(folder)
    views = _ViewWriter(options, folder)
    views.check_input(run)
    reasons = {dicom_input_name(row.case, row.series): row.reason for row in run.dicom}
    entries = []
    results = sorted(run.series, key=lambda result: result.key)
    for number, result in enumerate(results, start=1):
        mask = reported_mask(result, options.run_dir)
        reference = references.pop(mask.path, None) or references.pop(mask_key(mask), None)
        entry = views.add(
            PageEntry(
                series_id=f"{number:04d}",
                result=result,
                score=reference.score if reference else None,
                sequence_reason=reasons.get(result.input_path, ""),
            ),
            reference_path=reference.path if reference else None,
        )
        if entry.problem:
            _LOG.warning("%s %s is not shown: %s", result.case, result.sequence, entry.problem)
        entries.append(entry)
        _LOG.info("%d/%d %s %s", number, len(results), result.case, result.sequence)
    ordered = worst_first(entries)
    notes = (*notes, *_left_over(references))
    index = write_page(
        folder,
        page_data(run, ordered, notes=notes),
        title=options.run_dir.resolve().name,
        downloads=downloads,
    )
    return WrittenPage(index_path=index, entries=tuple(ordered))


def report_or_none(options: ReportOptions) -> WrittenPage | None:
    """Write the page of a run that has just ended; a failure is logged, and None returned.

    The run itself does not fail for its page.
    """
    try:
        return report(options)
    except Exception as error:
        _LOG.warning("no page of the results: %s", error)
        _LOG.debug("where the error arose", exc_info=True)
        return None


class _ViewWriter:
    """Writes the data of each series for the viewer: volumes, else the preview, else nothing."""

    def __init__(self, options: ReportOptions, folder: Path) -> None:
        path = _checked_input(options.input_path)
        self._run_dir, self._input = options.run_dir, path
        self._images = None if path is None else InputImages(path, only=options.only)
        self._folder = folder
        self._folders = (options.run_dir, path.parent if path and path.is_file() else path)

    def check_input(self, run: RunReport) -> None:
        """Raise NoInputError if the input holds no image of the run, before a page is replaced."""
        if self._images is None or not run.series:
            return
        if not any(self._images.holds(result.input_path) for result in run.series):
            raise NoInputError(
                self._input,
                reason="it holds no scan of this run",
                remedy="Give the folder that predict was given, or leave --input out",
            )

    def add(self, entry: PageEntry, *, reference_path: Path | None) -> PageEntry:
        """Write the script of a series and return the completed entry."""
        result = entry.result
        try:
            mask = read_mask(self._run_dir / result.output_path) if result.output_path else None
            if self._images is not None:
                image, unread = self._image(result, mask)
                volumes = _volumes(image, mask, result=result, reference_path=reference_path)
                write_volumes_case(self._folder, entry.series_id, volumes)
                note = unread or volumes.note
                return replace(entry, shown="volumes", view_note=note)
        except InputError as error:
            # If there is no mask, the report of the run says why already.
            reason = _without_folders(str(error), self._folders)
            if result.output_path:
                entry = replace(entry, problem=reason)
            else:
                entry = replace(entry, view_note=reason)
        else:
            if result.output_path:
                entry = replace(entry, view_note="Give --input to see the volumes.")
        try:
            png = (self._run_dir / (result.preview_path or "")).read_bytes()
        except OSError:
            return entry
        write_preview_case(self._folder, entry.series_id, png)
        return replace(entry, shown="preview")

    def _image(self, result: SeriesResult, mask: MaskVolume | None) -> tuple[Volume, str]:
        """Return the image and a note; for a guess of an unreadable image, a black one."""
        assert self._images is not None
        try:
            return _as_seen(self._images.read(result.input_path)), ""
        except InputError as error:
            if mask is None or result.status is not SeriesStatus.FALLBACK:
                raise
            black = np.zeros(mask.array_zyx.shape, np.float32)
            reason = _without_folders(str(error), self._folders)
            return Volume(black, mask.geometry, mask.source), f"The guess alone is shown: {reason}"


def _volumes(
    image: Volume,
    mask: MaskVolume | None,
    *,
    result: SeriesResult,
    reference_path: Path | None,
) -> ViewVolumes:
    if mask is not None and not same_grid(mask.geometry, image.geometry):
        raise InputError(
            result.input_path,
            kind="geometry_mismatch",
            reason="the mask of the run lies on another grid than this image",
            remedy="Give the input that the run was made from",
        )
    reference_zyx = None
    if reference_path is not None:
        reference_zyx = read_liver_mask(reference_path, grid=image.geometry).array_zyx
    return reduce_for_view(
        image,
        np.zeros_like(image.array_zyx, np.uint8) if mask is None else mask.array_zyx,
        reference_zyx=reference_zyx,
        budget_bytes=VIEW_BUDGET_BYTES,
        focus_lps_mm=result.most_doubtful_lps_mm,
    )


def _load_run(run_dir: Path) -> RunReport:
    path = report_path(run_dir)
    if not path.is_file():
        raise NoInputError(
            run_dir,
            reason=f"it holds no {path.name}" if run_dir.is_dir() else "there is no such folder",
            remedy="Give the output folder of predict or of pseudo-label",
        )
    try:
        return load_report(path)
    except InputError as error:
        again = "Run predict again with this version"
        remedy = again if error.kind == "bad_record" else error.remedy
        raise NoInputError(path, reason=error.reason, remedy=remedy) from error


def _checked_input(path: Path | None) -> Path | None:
    if path is None or path.exists():
        return path
    raise NoInputError(
        path,
        reason="there is no such input folder",
        remedy="Give the folder that predict was given, or leave --input out",
    )


def _references(
    run: RunReport, options: ReportOptions
) -> tuple[dict[Path | MaskKey, _Reference], tuple[str, ...]]:
    """Score the references; return them with notes for the page.

    The key is the path of the mask that was compared; case and sequence where there is none.
    """
    if options.references is None:
        return {}, ()
    expected = find_references(options.references)
    try:
        masks = find_predictions(options.run_dir)
    except NoInputError as error:
        return {}, (f"Nothing was compared with the references: {error.reason}",)
    evaluation = compare(named_by_report(masks, run, run_dir=options.run_dir), expected)
    folders = (options.run_dir, options.references)
    found: dict[Path | MaskKey, _Reference] = {}
    for row, mask, reference in zip(
        evaluation.rows, evaluation.predictions, evaluation.references, strict=True
    ):
        key = mask or (names.identity_key(row.case), row.sequence)
        path = reference if row.metrics else None
        found[key] = _Reference(
            f"{row.case} {row.sequence or ''}".strip(), _score(row, folders), path
        )
    problems = (_without_folders(str(problem), folders) for problem in evaluation.problems)
    return found, tuple(problems)


def _score(row: ScoreRow, folders: Iterable[Path]) -> PageScore:
    metrics, note = row.metrics, _without_folders(row.reason, folders)
    if metrics is None:
        return PageScore(None, None, note)
    distance = metrics.hausdorff_mm
    return PageScore(metrics.dice, None if math.isnan(distance) else distance, note)


def _left_over(references: Mapping[Path | MaskKey, _Reference]) -> tuple[str, ...]:
    if not references:
        return ()
    listed = sorted(reference.name for reference in references.values())
    more = ", ..." if len(listed) > _LISTED_REFERENCES else ""
    shown = ", ".join(listed[:_LISTED_REFERENCES])
    return (f"{len(listed)} references belong to no series of this run: {shown}{more}",)


def _without_folders(text: str, folders: Iterable[Path | None]) -> str:
    """Make paths relative to the folders: the page must not show paths of the machine."""
    for folder in folders:
        if folder is not None:
            text = text.replace(f"{folder}/", "")
    return text


def _as_seen(image: Volume) -> Volume:
    """Return an image as ``predict`` uses it: a CT is clipped to the abdominal window."""
    return replace(
        image, array_zyx=window_if_hounsfield(image.array_zyx, modality=image.modality)[0]
    )
