"""``report`` for a folder of pseudo labels: the results page of their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sslmedsam2.contract.pseudo_label_outputs import TABLE_NAME
from sslmedsam2.errors import InputError, NoInputError
from sslmedsam2.imaging.geometry import affine_lps
from sslmedsam2.imaging.reading import read_stored
from sslmedsam2.predict.page import ReportOptions, WrittenPage, write_results_page
from sslmedsam2.predict.series import WITHOUT_SEQUENCE
from sslmedsam2.pseudo_label.records import PseudoLabelRecord, read_all
from sslmedsam2.reporting.run_report import ModelRecord, RunReport, SeriesResult, SeriesStatus

_DOUBT_SIGMA_MM = 10.0


def report(options: ReportOptions) -> WrittenPage:
    """Write the page of the pseudo labels of a folder.

    Raises NoInputError: there is no usable record of a pseudo label, no such input folder, or no
    reference masks; OutputError: the page cannot be written.
    """
    records = {record.image: record for record in read_all(options.run_dir)}
    if not records:
        raise NoInputError(
            options.run_dir,
            reason="it holds no record of a pseudo label",
            remedy="Give the output folder of pseudo-label",
        )

    table = options.run_dir / TABLE_NAME
    downloads = {TABLE_NAME: table.read_text("utf-8")} if table.is_file() else {}
    run = _as_run(list(records.values()), options.run_dir)
    return write_results_page(run, options, downloads=downloads)


def _as_run(records: Sequence[PseudoLabelRecord], run_dir: Path) -> RunReport:
    made = next((record for record in records if record.provenance is not None), records[0])
    provenance = made.provenance
    models: tuple[ModelRecord, ...] = ()
    if provenance is not None:
        models = (ModelRecord(provenance.sam2_name, {"checkpoint": provenance.sam2_sha256}),)
    return RunReport(
        models=models,
        device=made.device or "",
        backend="SAM2",
        options=provenance.settings if provenance else {},
        started="",
        series=tuple(_as_result(record, run_dir) for record in records),
        tool_version=provenance.tool_version if provenance else "",
    )


def _as_result(record: PseudoLabelRecord, run_dir: Path) -> SeriesResult:
    status = SeriesStatus.FAILED
    warnings = record.warnings
    if record.error is None:
        status = SeriesStatus.OK if record.verdict == "accept" else SeriesStatus.CHECK
    if status is SeriesStatus.CHECK and record.verdict is not None:
        warnings = (f"{record.verdict}: the verdict of pseudo-label", *warnings)
    paths = record.paths(run_dir)
    return SeriesResult(
        case=record.case,
        vendor=record.vendor,
        sequence=record.sequence or WITHOUT_SEQUENCE,
        input_path=record.image,
        output_path=None if record.error else paths.mask.relative_to(run_dir).as_posix(),
        status=status,
        seconds=record.seconds,
        liver_volume_ml=record.volume_ml,
        estimated_dice=record.estimated_dice,
        estimated_dice_interval=record.interval,
        verdict=None if record.error else "ok" if status is SeriesStatus.OK else "check",
        warnings=warnings,
        most_doubtful_lps_mm=_most_doubtful_lps_mm(paths.uncertainty),
        error=record.error,
        image_sha256=record.image_sha256,
        mask_sha256=record.mask_sha256,
        preview_path=paths.preview.relative_to(run_dir).as_posix(),
    )


def _most_doubtful_lps_mm(uncertainty: Path) -> tuple[float, float, float] | None:
    """Return where the map is highest in the mean of a neighbourhood; None without a map."""
    from scipy import ndimage

    if not uncertainty.is_file():
        return None
    try:
        volume = read_stored(uncertainty)
    except InputError:
        return None
    sigmas = [_DOUBT_SIGMA_MM / mm for mm in volume.geometry.spacing_zyx_mm]
    smooth = ndimage.gaussian_filter(volume.array_zyx.astype(np.float32), sigmas)
    place_zyx = np.unravel_index(int(smooth.argmax()), smooth.shape)
    x, y, z = (affine_lps(volume.geometry) @ [*place_zyx[::-1], 1.0])[:3].tolist()
    return round(x, 1), round(y, 1), round(z, 1)
