"""An earlier run in the output folder: which results are kept, and which are moved aside."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sslmedsam2.contract.outputs import RUN_FOLDERS, report_path
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.intensity import intensity_statistics
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.records import move_aside, sha256_file
from sslmedsam2.imaging.volume import MaskVolume, Volume, mask_volume_ml
from sslmedsam2.predict.recorder import RunRecorder
from sslmedsam2.predict.series import SeriesTarget, read_image, with_preview
from sslmedsam2.reporting.run_report import RunReport, SeriesResult, SeriesStatus, load_report
from sslmedsam2.reporting.volume_table import VOLUME_TABLE_NAME

logger = logging.getLogger(__name__)

COMPLETE = (SeriesStatus.OK, SeriesStatus.SKIPPED_RESUME, SeriesStatus.CHECK)
_NEVER_A_SEG = "Use the NIfTI mask"
"""The remedy where images rule a DICOM-SEG out; after other errors it is tried again."""


def earlier_report(output_dir: Path) -> RunReport | None:
    """Read the report of the run to resume; None, after a line in the log, if there is none."""
    path = report_path(output_dir)
    if not path.is_file():
        logger.info("nothing to resume: there is no %s yet", path.name)
        return None
    try:
        return load_report(path)
    except InputError as error:
        logger.warning("not resuming: %s", error)
        return None


def move_earlier_aside(output_dir: Path, targets: Sequence[SeriesTarget]) -> None:
    """Move aside the results of an earlier run, and files in the places of the masks.

    Raises OutputError: one cannot be moved.
    """
    path = report_path(output_dir)
    try:
        earlier = load_report(path).series if path.is_file() else ()
    except InputError:
        earlier = ()
    outputs = (Path(one.output_path) for one in earlier if one.output_path)
    loose = [output_dir / one for one in outputs if one.parts[0] not in RUN_FOLDERS]
    records = [path, output_dir / VOLUME_TABLE_NAME]
    # Without a record of a run, and where scans are, folders of these names are the user's own.
    has_run = any(one.exists() for one in records)
    folders = [output_dir / name for name in RUN_FOLDERS if has_run]
    images = [target.series.path.resolve() for target in targets]
    written = [*records, *folders, *loose]
    found = [
        one
        for one in written
        if one.exists() and not any(image.is_relative_to(one.resolve()) for image in images)
    ]
    if found:
        logger.warning("%s holds an earlier run; --resume would continue it", output_dir)
    for one in found:
        move_aside(one, why="it is of an earlier run")
    for target in targets:
        if target.mask_path.exists():
            move_aside(target.mask_path, why="this program did not write it in this run")


def keep_others(
    targets: Sequence[SeriesTarget],
    problems: Sequence[SeriesResult],
    previous: RunReport | None,
    *,
    report: RunReport,
    output_dir: Path,
) -> tuple[SeriesResult, ...]:
    """Return the earlier results of scans that this run was not given, to be listed again.

    They are kept if a person has corrected the mask, or if models, backend and options are those of
    ``report`` and the result is complete. Other masks of the earlier run that this one does not
    write are moved aside: every mask in the folder is to be listed in its report.

    Raises OutputError: one cannot be moved.
    """
    written = {target.output_name for target in targets}
    # The path alone, relative to the input, may be that of another scan in another input.
    given = {(target.series.case, target.input_name) for target in targets}
    given |= {(one.case, one.input_path) for one in problems}
    same = previous is not None and _same_provenance(previous, report)
    kept = []
    for one in previous.series if previous is not None else ():
        path = output_dir / (one.output_path or "")
        if one.output_path in (None, *written) or not path.is_file():
            continue
        is_given = (one.case, one.input_path) in given
        found = None if is_given else _kept_unseen(one, path, same=same)
        if found is not None:
            kept.append(found)
            continue
        _move_aside((output_dir / name for name in one.files), why="this run does not list it")
    return tuple(kept)


def _kept_unseen(result: SeriesResult, path: Path, *, same: bool) -> SeriesResult | None:
    """Return the earlier result of a scan that is not at hand; None if it is not to be kept.

    ``same`` says whether the earlier run had the same provenance.
    """
    with suppress(OSError, InputError):
        if result.mask_sha256 not in (None, sha256_file(path)):
            return _corrected(result, read_mask(path))
        if same and result.status in COMPLETE:
            return _kept(result)
    return None


def keep_done(
    targets: Sequence[SeriesTarget], recorder: RunRecorder, previous: RunReport | None
) -> list[SeriesTarget]:
    """Give the recorder the results of an earlier run to keep; return the other targets.

    Raises OutputError: as `reusable_result`.
    """
    pending = []
    for target in targets:
        kept = reusable_result(target, previous, report=recorder.report)
        if kept is None:
            pending.append(target)
        else:
            recorder.add(kept)
    return pending


def reusable_result(
    target: SeriesTarget, previous: RunReport | None, *, report: RunReport
) -> SeriesResult | None:
    """Return the earlier result of a series if it is to be kept, else None.

    It is kept if models, backend and options are those of ``report``, the image is the same, and
    the mask exists, is readable, not empty and on the grid of the image. Guesses are tried again. A
    mask that a person has corrected is kept as long as its image is the same. Other masks that a
    person may have changed are moved aside. A preview that is missing or out of date is drawn
    again.

    Raises OutputError: a mask cannot be moved aside.
    """
    earlier = _earlier(target, previous)
    try:
        made = sha256_file(target.mask_path)
    except OSError:
        return None
    corrected = earlier is not None and earlier.mask_sha256 not in (None, made)
    same = previous is not None and _same_provenance(previous, report)
    usable = corrected or (earlier is not None and earlier.status in COMPLETE and same)
    if earlier is not None and usable and (stored := _stored(target, earlier)):
        mask, image = stored
        if corrected or (target.statistics and earlier.intensity is None):
            measured = intensity_statistics(image.array_zyx, mask.array_zyx)
            earlier = replace(earlier, intensity=measured if target.statistics else None)
        if corrected:
            return with_preview(_corrected(earlier, mask), target, image=image, mask=mask)
        missing = _missing_beside(target, earlier)
        if missing is None:
            if target.preview_path is not None and not target.preview_path.is_file():
                earlier = with_preview(earlier, target, image=image, mask=mask)
            return _kept(earlier)
        logger.info("done again: %s has no %s", target.output_name, missing)
    if earlier is None or earlier.mask_sha256 != made:
        move_aside(target.mask_path, why="it is not as this program wrote it")
    return None


def move_unmade_aside(target: SeriesTarget, result: SeriesResult | None) -> None:
    """Move aside the files that an earlier run left of a series, if this one has no such results.

    ``result`` is None for a series that this run has not reached.

    Raises OutputError: one cannot be moved.
    """
    paths: list[Path | None] = []
    if result is None or result.output_path is None:
        paths += [target.mask_path, target.preview_path, *target.map_paths.values()]
    if target.dicom is not None and (result is None or result.dicom_seg_path is None):
        paths.append(target.dicom.seg_path)
    _move_aside(filter(None, paths), why="this run has made none")


def _move_aside(paths: Iterable[Path], *, why: str) -> None:
    for path in paths:
        if path.exists():
            move_aside(path, why=why)


def _earlier(target: SeriesTarget, previous: RunReport | None) -> SeriesResult | None:
    """Return the earlier result with the mask of a series, under the name of its input now.

    A folder within the earlier input gives its scans other names.
    """
    for one in () if previous is None else previous.series:
        if one.output_path == target.output_name:
            return replace(one, input_path=target.input_name)
    return None


def _kept(result: SeriesResult) -> SeriesResult:
    """Return a complete result as one of an earlier run."""
    is_doubtful = result.status is SeriesStatus.CHECK
    return result if is_doubtful else replace(result, status=SeriesStatus.SKIPPED_RESUME)


def _same_provenance(previous: RunReport, report: RunReport) -> bool:
    def provenance(run: RunReport) -> tuple[object, ...]:
        # These options do not affect a mask that the network has found.
        others = ("previews", "on_failure", "sequences")
        options = {key: value for key, value in run.options.items() if key not in others}
        models = [(model.name, dict(model.sha256)) for model in run.models]
        return models, run.backend, options

    return provenance(previous) == provenance(report)


def _stored(target: SeriesTarget, result: SeriesResult) -> tuple[MaskVolume, Volume] | None:
    """Return mask and image if the mask is not empty and was made from this image, else None."""
    try:
        mask = read_mask(target.mask_path)
        image = read_image(target)
    except InputError as error:
        # Its subject may be a temporary path of an unpacked archive.
        logger.info("done again: %s: %s", target.output_name, error.reason)
        return None
    if not mask.array_zyx.any() or not same_grid(mask.geometry, image.geometry):
        logger.info("done again: %s is empty or on another grid", target.output_name)
        return None
    if image.sha256() != result.image_sha256:
        logger.info("done again: %s was made of another image", target.output_name)
        return None
    return mask, image


def _corrected(result: SeriesResult, mask: MaskVolume) -> SeriesResult:
    """Return the result of a mask that a person has corrected, with its present volume.

    ``mask_sha256`` remains that of the mask as written, so that the next run recognises it too.
    """
    volume_ml = mask_volume_ml(mask.array_zyx, spacing_zyx_mm=mask.geometry.spacing_zyx_mm)
    note = "manually_corrected: the mask is kept as it is"
    logger.info("%s: its manually corrected mask stands", result.output_path)
    return replace(
        result,
        status=SeriesStatus.SKIPPED_RESUME,
        error=None,
        liver_volume_ml=round(volume_ml, 1),
        components=None,
        touches_border=None,
        mean_foreground_confidence=None,
        estimated_dice=None,
        estimated_dice_interval=None,
        verdict=None,
        warnings=(*(one for one in result.warnings if one != note), note),
    )


def _missing_beside(target: SeriesTarget, result: SeriesResult) -> str | None:
    """Return the name of a wanted output that the earlier run has not written; None if nothing."""
    path = target.dicom.seg_path if target.dicom else None
    is_impossible = any(
        one.startswith("no_dicom_seg: ") and _NEVER_A_SEG in one for one in result.warnings
    )
    if path is not None and not is_impossible and not (result.dicom_seg_path and path.is_file()):
        return "DICOM-SEG"
    return None if all(one.is_file() for one in target.map_paths.values()) else "maps"
