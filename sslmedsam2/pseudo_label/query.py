"""One query: read, segment, write.

The three steps overlap between queries. An error is passed on as data and stored in the record of
its query.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sslmedsam2.contract.pseudo_label_outputs import PseudoLabelPaths
from sslmedsam2.errors import InputError, ModelError, SslMedSam2Error, unforeseen
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import Work
from sslmedsam2.fewshot.checkpoint import load_sam2
from sslmedsam2.fewshot.outcome import Calibration, Reliability, judge
from sslmedsam2.fewshot.strategy import (
    FewShotResult,
    FewShotSettings,
    Query,
    Strategy,
    Support,
    build_strategy,
)
from sslmedsam2.imaging.atomic import output_error
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.intensity import window_if_hounsfield
from sslmedsam2.imaging.orientation import to_canonical, to_native
from sslmedsam2.imaging.reading import read_grid, read_mask, read_volume
from sslmedsam2.imaging.records import sha256_file, write_record
from sslmedsam2.imaging.volume import CanonicalVolume, MaskZYX, Volume, mask_dice, mask_volume_ml
from sslmedsam2.imaging.writing import write_map, write_mask
from sslmedsam2.inference.device import Device, choose_device
from sslmedsam2.pseudo_label.records import (
    CalibrationCase,
    Provenance,
    PseudoLabelRecord,
    is_edited,
    make_way,
    read_pseudo_label,
)
from sslmedsam2.pseudo_label.supports import SupportFiles
from sslmedsam2.reporting.previews import draw_preview

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueryTarget:
    """One query and where its pseudo label goes; ``image_name`` is relative to the query folder."""

    series: ImageFile
    image_name: str
    paths: PseudoLabelPaths

    @property
    def name(self) -> str:
        """``<case>/<sequence>``, or the case if the sequence is unknown."""
        return self.series.name

    @property
    def blank(self) -> PseudoLabelRecord:
        """A record with the names of the query only."""
        series = self.series
        return PseudoLabelRecord(series.case, series.sequence, series.vendor, self.image_name)


@dataclass(frozen=True)
class QueryInWork:
    """A query on its way through the steps; ``error`` is why one failed."""

    target: QueryTarget
    image_sha256: str | None = None
    volume: Volume | None = None
    canonical: CanonicalVolume | None = None
    result: FewShotResult | None = None
    error: SslMedSam2Error | None = None
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


def load(target: QueryTarget) -> QueryInWork:
    """Read a query and turn it to the canonical orientation."""
    start = time.perf_counter()
    path = target.series.path
    try:
        volume = read_volume(path)
        canonical, sha256 = to_canonical(volume), sha256_file(path)
    except Exception as error:
        return QueryInWork(target, error=unforeseen(path, error))
    seconds = {"read": round(time.perf_counter() - start, 4)}
    return QueryInWork(target, sha256, volume, canonical, seconds=seconds)


def given_up(target: QueryTarget, error: SslMedSam2Error) -> PseudoLabelRecord:
    """Write the record of a query that no worker could do, and remove an earlier result."""
    _make_way(target.paths)
    _remove_files(target.paths)
    record = replace(target.blank, error=str(error))
    write_record(target.paths.record, record)
    return record


def standing_record(
    target: QueryTarget, provenance: Provenance, *, resume: bool
) -> PseudoLabelRecord | None:
    """Return the record of an earlier run if its pseudo label is to be kept, else None.

    A manually corrected mask is kept as long as its image is the same. With ``resume``, another
    pseudo label is kept if it has the same provenance and image, no error, and all its files, and
    its mask is readable and on the grid of the image.
    """
    paths = target.paths
    record = read_pseudo_label(paths.record)
    if record is None or record.error is not None:
        return None
    try:
        corrected = is_edited(paths.mask, record.mask_sha256)
        if not corrected and not resume:
            return None
        image_sha256 = sha256_file(target.series.path)
        same_image = record.image_sha256 in (None, image_sha256)
        if not corrected and record.key != _key(target, image_sha256, provenance):
            logger.info(
                "%s is done again: its image or the way it is made has changed", target.name
            )
            return None
        mask, image = read_mask(paths.mask), read_grid(target.series.path)
    except (InputError, OSError) as error:
        logger.info("%s is done again: %s", target.name, error)
        return None
    if not (same_image and same_grid(mask.geometry, image.geometry)):
        logger.info("%s is done again: its mask belongs to another image", target.name)
        return None
    if corrected:
        logger.info("%s: its manually corrected mask stands", target.name)
    elif not (paths.probability.is_file() and paths.uncertainty.is_file()):
        logger.info("%s is done again: a map is missing", target.name)
        return None
    return record


def _make_way(paths: PseudoLabelPaths) -> None:
    record = read_pseudo_label(paths.record)
    make_way(paths, mask_sha256=record.mask_sha256 if record is not None else None)


def _key(target: QueryTarget, image_sha256: str | None, provenance: Provenance) -> str | None:
    return None if image_sha256 is None else provenance.key_of(target.name, image_sha256)


def _remove_files(paths: PseudoLabelPaths) -> None:
    for path in (paths.mask, paths.probability, paths.uncertainty, paths.preview):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            # The record shows that there is no pseudo label, whatever files remain.
            logger.warning("%s cannot be removed (%s)", path, error.strerror)


def _preview(
    target: QueryTarget,
    canonical: CanonicalVolume,
    mask_zyx: MaskZYX,
    *,
    reliability: Reliability,
) -> tuple[str, ...]:
    """Draw the preview with the estimate in its title; a CT in the abdominal window."""
    array, _ = window_if_hounsfield(canonical.array_zyx)
    low, high = reliability.interval
    estimate = f"Dice about {reliability.estimated_dice:.2f} ({low:.2f} to {high:.2f})"
    return draw_preview(
        replace(canonical, array_zyx=array),
        mask_zyx,
        path=target.paths.preview,
        title=f"{target.name}   {estimate}",
        flags=(reliability.verdict.upper(),),
    )


def leave_out(strategy: Strategy, support: Support) -> CalibrationCase | None:
    """Segment a support with those of all other patients; None if that fails."""
    try:
        found = strategy.segment(support, leave_out_case=support.case)
    except SslMedSam2Error as error:
        logger.error("left out of the calibration: %s", error)
        return None
    dice = mask_dice(found.mask_zyx > 0, support.mask_zyx > 0)
    return CalibrationCase(name=support.name, dice=dice, evidence=found.evidence)


@dataclass(frozen=True)
class LabelUnit:
    """A unit of work of one of three kinds.

    With ``target`` and ``calibration`` a query is labelled. With ``support``, an index, that
    support is labelled by the others. With neither, only the strategy is built.
    """

    target: QueryTarget | None = None
    calibration: Calibration | None = None
    support: int | None = None


LabelResult = CalibrationCase | PseudoLabelRecord | None
"""None for a unit that only builds the strategy, and for a support that cannot be labelled."""


class LabelWork(Work[LabelUnit, LabelResult]):
    """Label volumes with a SAM2 and a few supports.

    ``shared_dir`` is the output folder. SAM2 is loaded by ``set_up``, the supports when needed.
    """

    def __init__(
        self,
        settings: FewShotSettings,
        *,
        sam2: Path,
        supports: SupportFiles,
        provenance: Provenance,
        device: Device,
        shared_dir: Path,
    ) -> None:
        self.supports, self.provenance, self.shared_dir = supports, provenance, shared_dir
        self._settings, self._sam2_path, self._device = settings, sam2, device
        self.wants_gpu = device != "cpu"
        self._scratch_prefix = f".scratch-{uuid.uuid4().hex[:8]}-"
        self._built: Strategy | None = None

    def name_of(self, unit: LabelUnit) -> str:
        """Return the name of a volume in messages."""
        if unit.target is not None:
            return unit.target.name
        return "the supports" if unit.support is None else f"support {unit.support + 1}"

    def files_of(self, unit: LabelUnit) -> Sequence[Path]:
        """Return the volume's files, and those of all supports."""
        own = () if unit.target is None else (unit.target.series.path,)
        return (*own, *self.supports.paths)

    def set_up(self) -> str:
        """Load SAM2 and return its device.

        Raises ModelError: the file is damaged, or differs from that of the process that started the
        run; UsageError: the device does not exist.
        """
        self._chosen = choose_device(self._device)
        self._sam2 = load_sam2(self._sam2_path, device=torch.device(self._chosen))
        if self._sam2.sha256 != self.provenance.sam2_sha256:
            raise ModelError(
                self._sam2_path,
                reason="it is another SAM2 here than where the run was started",
                remedy="Put the checkpoint into a folder that all machines share",
            )
        self._scratch = ExitStack()
        return self._chosen

    def load(self, unit: LabelUnit) -> tuple[LabelUnit, Support | QueryInWork | None]:
        """Read the volume."""
        if unit.target is not None:
            return unit, load(unit.target)
        return unit, None if unit.support is None else self.supports[unit.support]

    def compute(
        self, loaded: tuple[LabelUnit, Support | QueryInWork | None], _stop: StopRequest
    ) -> tuple[LabelUnit, CalibrationCase | QueryInWork | None]:
        """Run SAM2."""
        unit, volume = loaded
        strategy = self._strategy()
        if isinstance(volume, QueryInWork):
            return unit, self._segment(volume)
        return unit, None if volume is None else leave_out(strategy, volume)

    def finish(
        self, computed: tuple[LabelUnit, CalibrationCase | QueryInWork | None]
    ) -> LabelResult:
        """Write the result of a query."""
        unit, found = computed
        if isinstance(found, QueryInWork):
            assert unit.calibration is not None
            return self._write(found, unit.calibration)
        return found

    def close(self) -> None:
        """Free the encoded supports in memory and on disk."""
        self._built = None
        self._scratch.close()

    @contextmanager
    def no_scratch_left(self) -> Iterator[None]:
        """Remove temporary files of workers at the end, also of those that died."""
        try:
            yield
        finally:
            for folder in self.shared_dir.glob(f"{self._scratch_prefix}*"):
                shutil.rmtree(folder, ignore_errors=True)

    def _strategy(self) -> Strategy:
        if self._built is None:
            self._built = build_strategy(
                self._settings, self._sam2, self.supports, scratch_dir=self._scratch_folder()
            )
        return self._built

    def _segment(self, work: QueryInWork) -> QueryInWork:
        """Run the network; an unforeseen failure becomes this query's error."""
        if work.canonical is None or work.volume is None or work.image_sha256 is None:
            return work
        series = work.target.series
        own_case = self.supports.case_with_image(work.image_sha256)
        query = Query(work.target.name, series.case, work.canonical, work.volume.geometry)
        try:
            if own_case is not None and self.supports.cases == {own_case}:
                raise InputError(
                    series.path,
                    kind="labelled_query",
                    reason="it is itself the only labelled volume",
                    remedy="Add other labelled volumes, or leave this query out",
                )
            result = self._strategy().segment(query, leave_out_case=own_case)
        except Exception as error:
            return replace(work, error=unforeseen(series.path, error))
        note = f"labelled: the same image as a support's; case {own_case} was left out of them"
        return replace(work, result=result, warnings=(note,) if own_case else ())

    def _write(self, work: QueryInWork, calibration: Calibration) -> PseudoLabelRecord:
        """Write the files of a query, the record last; raises OutputError if that fails.

        If the query failed, an earlier result is removed, because it would have no record. A mask
        that a person may have changed is moved aside.
        """
        start = time.perf_counter()
        paths, key = work.target.paths, _key(work.target, work.image_sha256, self.provenance)
        _make_way(paths)
        record = replace(
            work.target.blank,
            key=key,
            seconds={**work.seconds, **(work.result.seconds if work.result else {})},
            device=self._chosen,
            provenance=self.provenance,
            image_sha256=work.image_sha256,
        )
        try:
            record = self._written(work, record, calibration)
        except Exception as error:
            record = replace(record, error=str(unforeseen(work.target.series.path, error)))
        if record.error is not None:
            _remove_files(paths)
        seconds = {**record.seconds, "write": round(time.perf_counter() - start, 4)}
        record = replace(record, seconds=seconds)
        write_record(paths.record, record)
        return record

    @staticmethod
    def _written(
        work: QueryInWork, record: PseudoLabelRecord, calibration: Calibration
    ) -> PseudoLabelRecord:
        """Write mask, maps and preview, and return the complete record."""
        result, volume, canonical = work.result, work.volume, work.canonical
        if result is None or volume is None or canonical is None:
            assert work.error is not None
            raise work.error
        paths, turn = work.target.paths, canonical.reorientation
        write_mask(to_native(result.mask_zyx, turn), like=volume, path=paths.mask)
        write_map(to_native(result.probability_zyx, turn), like=volume, path=paths.probability)
        write_map(to_native(result.uncertainty_zyx, turn), like=volume, path=paths.uncertainty)
        reliability = judge(result.evidence, calibration)
        drawing = _preview(work.target, canonical, result.mask_zyx, reliability=reliability)
        volume_ml = mask_volume_ml(result.mask_zyx, spacing_zyx_mm=canonical.spacing_zyx_mm)
        low, high = reliability.interval
        return replace(
            record,
            verdict=reliability.verdict,
            estimated_dice=round(reliability.estimated_dice, 4),
            interval=(round(low, 4), round(high, 4)),
            volume_ml=round(volume_ml, 1),
            encoder_calls=result.encoder_calls,
            warnings=(*volume.repairs, *work.warnings, *result.warnings, *drawing),
            evidence=result.evidence,
            supports=result.supports,
            calibration=calibration,
            mask_sha256=sha256_file(paths.mask),
        )

    def _scratch_folder(self) -> Path:
        """Return a temporary folder on the disk of the output."""
        output_dir = self.shared_dir
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(
                dir=output_dir, prefix=self._scratch_prefix, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise output_error(output_dir, error) from error
        return Path(self._scratch.enter_context(folder))
