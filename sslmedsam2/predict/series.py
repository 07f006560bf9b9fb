"""One series: read, segment, write. The result is a ``SeriesResult``, also after an error.

:class:`SeriesWork` has three steps, which overlap between series. Each takes the frozen result of
the step before. An error is passed on as data and reported in the result of its series.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sslmedsam2.dicom.model import Algorithm, DicomVolume
from sslmedsam2.errors import InputError, OutputError, SslMedSam2Error, unforeseen
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import Work
from sslmedsam2.imaging.geometry import affine_lps
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.intensity import entropy_bits, intensity_statistics
from sslmedsam2.imaging.orientation import (
    apply_reorientation,
    canonical_geometry,
    reorientation_of,
    to_native,
)
from sslmedsam2.imaging.reading import read_grid, read_volume
from sslmedsam2.imaging.records import sha256_file
from sslmedsam2.imaging.volume import CanonicalVolume, MaskVolume, MaskZYX, Volume, mask_volume_ml
from sslmedsam2.imaging.writing import MaskDtype, write_map, write_mask
from sslmedsam2.inference.masks import ReadyVolume, judge, make_ready
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.postprocessing import typical_liver
from sslmedsam2.inference.preprocessing import Prepared
from sslmedsam2.inference.segmenter import (
    CanonicalSegmentation,
    CanonicalSegmenter,
    EngineOptions,
    Inferred,
)
from sslmedsam2.reporting.previews import draw_preview
from sslmedsam2.reporting.run_report import NOTES, InputGeometry, SeriesResult, SeriesStatus
from sslmedsam2.weights.locate import ModelLocation, model_for_sequence
from sslmedsam2.weights.manifest import ANY_SEQUENCE

MAP_KINDS = ("probability", "uncertainty")
WITHOUT_SEQUENCE = "no sequence"
LARGEST_GUESS_VOXELS = 2**26
"""Twice the largest scan of the challenge (1024 x 1024 x 32). For an unreadable file that claims
more, no mask is guessed: its header is probably wrong."""


@dataclass(frozen=True)
class DicomTarget:
    """A DICOM volume and where its DICOM-SEG is written.

    Attributes
    ----------
    seg_path, seg_name
        Path, and name relative to the output folder; None if no DICOM-SEG is wanted.
    algorithm
        The model to name in the object.
    """

    volume: DicomVolume
    seg_path: Path | None
    seg_name: str | None
    algorithm: Algorithm


@dataclass(frozen=True)
class SeriesTarget:
    """One series and where its results are written.

    Attributes
    ----------
    preview_path
        None without previews.
    map_paths
        Paths of the maps of `MAP_KINDS`; empty without maps.
    statistics
        Whether to measure the intensities of the scan inside its mask.
    dicom
        Set for a DICOM series; its ``series.path`` is then a neutral name, not a path.
    """

    series: ImageFile
    input_name: str
    mask_path: Path
    preview_path: Path | None
    output_name: str
    mask_dtype: MaskDtype
    fallback: bool
    statistics: bool = False
    map_paths: Mapping[str, Path] = field(default_factory=dict)
    dicom: DicomTarget | None = None


@dataclass(frozen=True)
class Scan:
    """A series on its way through the three steps.

    Attributes
    ----------
    ready
        The image; None if it could not be read.
    prepared, inferred
        Input of the next step, freed by that step.
    found
        The segmentation.
    error
        Why the next step is not possible.
    """

    target: SeriesTarget
    ready: ReadyVolume | None = None
    prepared: Prepared | None = None
    inferred: Inferred | None = None
    found: CanonicalSegmentation | None = None
    error: SslMedSam2Error | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def failed(self, error: Exception) -> Scan:
        """Return the scan with an error, which names the scan as the report does."""
        if not isinstance(error, SslMedSam2Error):
            shown = unforeseen(self.target.series.path, error)
        else:
            shown = error if self.ready is None else error.about(self.target.input_name)
        return replace(self, prepared=None, inferred=None, error=shown)


@dataclass(frozen=True)
class EngineAbout:
    """The device of the networks, and the library and number format that they use."""

    device: str
    backend: str


class SeriesWork(Work[SeriesTarget, SeriesResult]):
    """Segment series and write the results; ``shared_dir`` is the output folder.

    ``sequences`` are those of all series to come; each must have a model. All their networks are
    loaded before anything is written, so that a missing one does not leave an incomplete run.
    """

    def __init__(
        self,
        models: Sequence[ModelLocation],
        engine: EngineOptions,
        *,
        sequences: frozenset[str | None],
        shared_dir: Path,
    ) -> None:
        self.shared_dir, self.wants_gpu = shared_dir, engine.device != "cpu"
        self._models, self._engine, self._sequences = tuple(models), engine, sequences
        self._by_sequence: dict[str | None, CanonicalSegmenter] = {}

    def name_of(self, target: SeriesTarget) -> str:
        """Return the name of the series in ``run_report.json``."""
        return target.input_name

    def files_of(self, target: SeriesTarget) -> Sequence[Path]:
        """Return the files of a series."""
        if target.dicom is None:
            return (target.series.path,)
        return tuple(dict.fromkeys(frame.path for frame in target.dicom.volume.frames))

    def set_up(self) -> EngineAbout:
        """Load the networks.

        Raises ModelError: a network cannot be loaded, or its files differ from those of the process
        that started the run; UsageError: the device does not exist.
        """
        names = self._sequences
        chosen = {name: model_for_sequence(self._models, name or ANY_SEQUENCE) for name in names}
        loaded: dict[Path, CanonicalSegmenter] = {}
        for model in chosen.values() or self._models[:1]:
            if model.path not in loaded:
                spec = read_model_spec(model.path, folds=model.folds, sha256=model.sha256)
                loaded[model.path] = CanonicalSegmenter(spec, self._engine)
        self._by_sequence = {name: loaded[model.path] for name, model in chosen.items()}
        first = next(iter(loaded.values()))
        return EngineAbout(first.device, first.backend)

    def load(self, target: SeriesTarget) -> Scan:
        """Read a series, turn it to the canonical orientation and preprocess it."""
        start = time.perf_counter()
        scan = Scan(target)
        try:
            ready = make_ready(read_image(target))
            scan = replace(scan, ready=ready)
            scan.seconds["read"] = round(time.perf_counter() - start, 4)
            prepared = self._segmenter(target).prepare(ready.canonical)
            scan.seconds["prepare"] = round(time.perf_counter() - start - scan.seconds["read"], 4)
            return replace(scan, prepared=prepared)
        except Exception as error:
            return scan.failed(error)

    def compute(self, scan: Scan, _stop: StopRequest) -> Scan:
        """Run the network; a failure becomes the error of the scan."""
        if scan.prepared is None:
            return scan
        try:
            inferred = self._segmenter(scan.target).infer(scan.prepared)
            return replace(scan, prepared=None, inferred=inferred)
        except Exception as error:
            return scan.failed(error)

    def finish(self, scan: Scan) -> SeriesResult:
        """Clean and write the mask, or a guess, and return the result."""
        scan = self._segmented(scan)
        start = time.perf_counter()
        target = scan.target
        try:
            result = _written(scan)
        except SslMedSam2Error as error:
            result = _failed(scan, error)
        except Exception as error:
            result = _failed(scan, unforeseen(target.series.path, error))
        seconds = dict(result.seconds)
        seconds["write"] = round(time.perf_counter() - start, 4)
        mask_sha256 = sha256_file(target.mask_path) if result.output_path is not None else None
        return replace(result, seconds=seconds, mask_sha256=mask_sha256)

    def _segmented(self, scan: Scan) -> Scan:
        if scan.inferred is None:
            return scan
        try:
            segmenter, with_maps = self._segmenter(scan.target), bool(scan.target.map_paths)
            found = segmenter.finish(scan.inferred, with_probability=with_maps)
            return replace(scan, inferred=None, found=found)
        except Exception as error:
            return scan.failed(error)

    def _segmenter(self, target: SeriesTarget) -> CanonicalSegmenter:
        return self._by_sequence[target.series.sequence]

    def close(self) -> None:
        """Free the networks."""
        self._by_sequence.clear()


def read_image(target: SeriesTarget) -> Volume:
    """Read the image of a target; raises InputError."""
    if target.dicom is None:
        return read_volume(target.series.path)
    from sslmedsam2.dicom.reading import read_dicom

    return read_dicom(target.dicom.volume)


def given_up(target: SeriesTarget, error: SslMedSam2Error) -> SeriesResult:
    """Return the result of a series that no worker could compute."""
    return _failed(Scan(target), error)


def _written(scan: Scan) -> SeriesResult:
    """Write the mask of the network or, if there is none and a guess is wanted, a guess."""
    found = scan.found
    if found is not None and found.n_components > 0:
        return _write(scan, found.mask_zyx, status=SeriesStatus.OK, reason=None)
    if found is not None:
        return _written_without_liver(scan, found)
    assert scan.error is not None
    if not scan.target.fallback:
        return _failed(scan, scan.error)
    return _write_typical_liver(scan, scan.error)


def _written_without_liver(scan: Scan, found: CanonicalSegmentation) -> SeriesResult:
    """Write the likeliest region as a guess, if one is wanted, after the network found no liver."""
    path = scan.target.series.path
    empty = SslMedSam2Error(
        path, reason="the network found no liver", remedy="Check that it is an abdominal scan"
    )
    if not scan.target.fallback:
        return _result(scan, status=SeriesStatus.EMPTY, error=str(empty))
    relaxed = found.relaxed_mask_zyx
    # If the probability is the same everywhere, there is no likeliest region.
    if relaxed is None or not relaxed.any():
        return _write_typical_liver(scan, empty)
    outcome = f"{empty} The likeliest region was written instead."
    return _write(scan, relaxed, status=SeriesStatus.FALLBACK, reason=outcome)


def _write_typical_liver(scan: Scan, cause: SslMedSam2Error) -> SeriesResult:
    """Write the typical liver as a guess, if at least the grid of the file can be read."""
    ready = scan.ready
    grid = ready.volume if ready else _unread_grid(scan.target)
    if grid is None:
        return _failed(scan, cause)
    turn = reorientation_of(grid.geometry)
    z, y, x = (grid.geometry.shape_zyx[axis] for axis in turn.axes)
    guess = typical_liver((z, y, x))
    mask = to_native(guess, turn)
    target = scan.target
    write_mask(mask, like=grid, path=target.mask_path, dtype=target.mask_dtype)
    _, seg_warnings = _write_seg(target.dicom, mask, is_guess=True)
    outcome = f"{cause} A liver of typical place and size was written instead."
    result = _result(scan, status=SeriesStatus.FALLBACK, error=outcome)
    if ready is not None:
        canonical = ready.canonical
    else:
        spacing_z, spacing_y, spacing_x = (grid.geometry.spacing_zyx_mm[axis] for axis in turn.axes)
        black = np.broadcast_to(np.float32(0), guess.shape)
        canonical = CanonicalVolume(black, (spacing_z, spacing_y, spacing_x), turn)
    preview = _draw(target, canonical, guess, status=result.status, warnings=(outcome,))
    return replace(
        result,
        warnings=(*result.warnings, *seg_warnings, *preview.warnings),
        preview_path=preview.name,
        output_path=target.output_name,
        verdict="check",
        liver_volume_ml=round(mask_volume_ml(mask, spacing_zyx_mm=grid.geometry.spacing_zyx_mm), 1),
    )


def _unread_grid(target: SeriesTarget) -> MaskVolume | None:
    """Return the grid of a series whose voxels could not be read; None if it is not reliable."""
    try:
        if target.dicom is None:
            grid = read_grid(target.series.path)
        else:
            from sslmedsam2.dicom.reading import dicom_grid

            grid = dicom_grid(target.dicom.volume)
    except InputError:
        return None
    return grid if grid.array_zyx.size <= LARGEST_GUESS_VOXELS else None


def _write(
    scan: Scan, mask_zyx: MaskZYX, *, status: SeriesStatus, reason: str | None
) -> SeriesResult:
    target, ready, found = scan.target, scan.ready, scan.found
    assert ready is not None
    assert found is not None
    judged = judge(mask_zyx, ready, found)
    if status is SeriesStatus.OK and judged.is_to_check:
        status = SeriesStatus.CHECK
    # Before the mask: a scan that fails for its maps has none.
    map_names = _write_maps(target, ready, found)
    write_mask(judged.mask_zyx, like=ready.volume, path=target.mask_path, dtype=target.mask_dtype)
    is_guess = status is SeriesStatus.FALLBACK
    seg_name, seg_warnings = _write_seg(target.dicom, judged.mask_zyx, is_guess=is_guess)
    shown = (*filter(None, (reason,)), *judged.warnings)
    preview = _draw(target, ready.canonical, mask_zyx, status=status, warnings=shown)
    return replace(
        _result(scan, status=status, error=reason),
        output_path=target.output_name,
        liver_volume_ml=round(judged.volume_ml, 1),
        components=found.n_components,
        touches_border=judged.touches_border,
        mean_foreground_confidence=None
        if found.mean_confidence is None
        else round(found.mean_confidence, 4),
        estimated_dice=judged.estimate.dice if judged.estimate else None,
        estimated_dice_interval=judged.estimate.interval if judged.estimate else None,
        verdict="ok" if status is SeriesStatus.OK else "check",
        most_doubtful_lps_mm=_world_place(found.doubtful_zyx, ready),
        intensity=intensity_statistics(ready.volume.array_zyx, judged.mask_zyx)
        if target.statistics
        else None,
        warnings=(*judged.warnings, *seg_warnings, *preview.warnings),
        dicom_seg_path=seg_name,
        preview_path=preview.name,
        map_paths=map_names,
    )


def _write_seg(
    target: DicomTarget | None, mask_zyx: MaskZYX, *, is_guess: bool
) -> tuple[str | None, tuple[str, ...]]:
    """Write the DICOM-SEG if one is wanted; return its name, or None, and warnings.

    A failure is only a warning, because the mask is good. A guess is not written: it must not reach
    a clinical archive.
    """
    if target is None or target.seg_path is None:
        return None, ()
    if is_guess:
        return None, ("no_dicom_seg: a guess is not written as DICOM-SEG",)
    from sslmedsam2.dicom.segmentation import write_dicom_seg

    try:
        write_dicom_seg(
            mask_zyx, volume=target.volume, path=target.seg_path, algorithm=target.algorithm
        )
    except OutputError as error:
        return None, (f"no_dicom_seg: {error}",)
    return target.seg_name, ()


def _write_maps(
    target: SeriesTarget, ready: ReadyVolume, found: CanonicalSegmentation
) -> tuple[str, ...]:
    """Write the maps if they are wanted; return their names, relative to the run's folder."""
    if not target.map_paths or found.probability_zyx is None:
        return ()
    native = to_native(found.probability_zyx, ready.canonical.reorientation)
    for kind, array in zip(MAP_KINDS, (native, entropy_bits(native)), strict=True):
        write_map(array, like=ready.volume, path=target.map_paths[kind])
    return tuple(f"{path.parent.name}/{path.name}" for path in target.map_paths.values())


def _world_place(
    canonical_zyx: tuple[float, float, float] | None, ready: ReadyVolume
) -> tuple[float, float, float] | None:
    """Return a voxel of the canonical grid as LPS millimetres."""
    if canonical_zyx is None:
        return None
    grid = canonical_geometry(ready.volume.geometry, ready.canonical.reorientation)
    x, y, z = (affine_lps(grid) @ [*canonical_zyx[::-1], 1.0])[:3].tolist()
    return round(x, 1), round(y, 1), round(z, 1)


@dataclass(frozen=True)
class _Preview:
    """Name of a preview, relative to the run's folder, and why there is none if it failed."""

    name: str | None
    warnings: tuple[str, ...] = ()


def _draw(
    target: SeriesTarget,
    canonical: CanonicalVolume,
    mask_zyx: MaskZYX,
    *,
    status: SeriesStatus,
    warnings: tuple[str, ...],
) -> _Preview:
    """Draw the preview of a canonical mask if one is wanted."""
    path = target.preview_path
    if path is None:
        return _Preview(None)
    flag = "GUESS" if status is SeriesStatus.FALLBACK else status.value.upper()
    failed = draw_preview(
        canonical,
        mask_zyx,
        path=path,
        title=" ".join(filter(None, (target.series.case, target.series.sequence))),
        flags=() if status is SeriesStatus.OK else (flag,),
        warnings=tuple(one for one in warnings if one.partition(":")[0] not in NOTES),
    )
    return _Preview(None if failed else f"{path.parent.name}/{path.name}", failed)


def with_preview(
    result: SeriesResult, target: SeriesTarget, *, image: Volume, mask: MaskVolume
) -> SeriesResult:
    """Draw the preview of a mask that was kept, if one is wanted, and say if that fails."""
    canonical = make_ready(image).canonical
    warnings = tuple(one for one in result.warnings if not one.startswith("no_preview: "))
    preview = _draw(
        target,
        canonical,
        apply_reorientation(mask.array_zyx, canonical.reorientation),
        status=result.status if result.status is SeriesStatus.CHECK else SeriesStatus.OK,
        warnings=warnings,
    )
    return replace(result, warnings=(*warnings, *preview.warnings), preview_path=preview.name)


def _failed(scan: Scan, error: SslMedSam2Error) -> SeriesResult:
    return _result(scan, status=SeriesStatus.FAILED, error=str(error))


def _result(scan: Scan, *, status: SeriesStatus, error: str | None) -> SeriesResult:
    """Return a result with everything that does not depend on the written mask."""
    series, ready = scan.target.series, scan.ready
    stages = scan.found.seconds if scan.found is not None else {}
    return SeriesResult(
        case=series.case,
        vendor=series.vendor,
        sequence=series.sequence or WITHOUT_SEQUENCE,
        input_path=scan.target.input_name,
        output_path=None,
        status=status,
        seconds={**scan.seconds, **stages},
        peak_memory_mb=peak_memory_mb(),
        warnings=ready.notes if ready else (),
        error=error,
        geometry=InputGeometry.of(ready.volume) if ready else None,
        image_sha256=ready.volume.sha256() if ready else None,
    )


def peak_memory_mb() -> float:
    """Return the largest resident size of the process so far, in MB of 10**6 bytes.

    0 on systems that do not report it, such as Windows.
    """
    try:
        import resource
    except ImportError:
        return 0.0
    # Linux counts in KiB.
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)
