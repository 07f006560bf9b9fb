"""What an interrupted run has completed, and may be kept."""

from __future__ import annotations

import logging
from dataclasses import replace

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.predict.series import SeriesTarget, read_image
from sslmedsam2.reporting.run_report import RunReport, SeriesResult, SeriesStatus

logger = logging.getLogger(__name__)

_COMPLETE = (SeriesStatus.OK, SeriesStatus.SKIPPED_RESUME)


def reusable_result(
    target: SeriesTarget, previous: RunReport | None, *, report: RunReport
) -> SeriesResult | None:
    """Return the earlier result of a series if it still stands, else None.

    It stands if it was made by the same models, engine and options as ``report`` names, and its
    mask is there, readable, not empty and on the grid of its image, whose voxels are those that
    it was made of. Fallbacks are tried again.
    """
    if previous is None or not _same_provenance(previous, report):
        return None
    for result in previous.series:
        is_this = result.input_path == target.input_name
        if is_this and result.status in _COMPLETE and result.output_path == target.output_name:
            return _still_valid(target, result)
    return None


def _same_provenance(previous: RunReport, report: RunReport) -> bool:
    def provenance(run: RunReport) -> tuple[object, ...]:
        # JSON knows no tuples: compare what both look like after a round trip.
        options = {key: value for key, value in run.options.items() if key != "previews"}
        options["sequences"] = None
        models = [(model.name, dict(model.sha256)) for model in run.models]
        return run.tool_version, models, run.backend, options

    return provenance(previous) == provenance(report)


def _still_valid(target: SeriesTarget, result: SeriesResult) -> SeriesResult | None:
    try:
        mask = read_mask(target.mask_path)
        image = read_image(target)
    except InputError as error:
        logger.info("done again: %s", error)
        return None
    if not mask.array_zyx.any() or not same_grid(mask.geometry, image.geometry):
        logger.info("done again: %s is empty or on another grid", target.output_name)
        return None
    if image.sha256() != result.image_sha256:
        logger.info("done again: %s was made of another image", target.output_name)
        return None
    if _lacks_seg(target, result):
        logger.info("done again: %s has no DICOM-SEG", target.output_name)
        return None
    return replace(result, status=SeriesStatus.SKIPPED_RESUME)


def _lacks_seg(target: SeriesTarget, result: SeriesResult) -> bool:
    """Tell whether a DICOM-SEG is wanted that an earlier run has not written."""
    path = target.dicom.seg_path if target.dicom else None
    return path is not None and not (result.dicom_seg_path and path.is_file())
