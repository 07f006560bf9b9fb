"""One series: read, segment, write. The result is a ``SeriesResult``, also after an error.

:class:`SeriesWork` has the three steps, which overlap between series. Each takes the frozen result
of the step before; an error is passed along as data, so that it stays with its series.
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
from sslmedsam2.imaging.orientation import reorientation_of, to_native
from sslmedsam2.imaging.reading import read_grid, read_volume
from sslmedsam2.imaging.volume import CanonicalVolume, MaskVolume, MaskZYX, Volume
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
from sslmedsam2.reporting.page_volumes import canonical_geometry
from sslmedsam2.reporting.previews import draw_preview
from sslmedsam2.reporting.run_report import NOTES, InputGeometry, SeriesResult, SeriesStatus
from sslmedsam2.weights.locate import ModelLocation, model_for_sequence
from sslmedsam2.weights.manifest import ANY_SEQUENCE, sha256_file

MAP_KINDS = ("probability", "uncertainty")
NO_SEG_FOR_GUESSES = "no_dicom_seg: a guess is not written as DICOM-SEG"
WITHOUT_SEQUENCE = "no sequence"
LARGEST_GUESS_VOXELS = 2**26
"""Twice the largest scan of the challenge (1024 x 1024 x 32). No mask is guessed for a file that
claims more and cannot be read: its header is likelier wrong, and memory is spent on it in vain."""


@dataclass(frozen=True)
class DicomTarget:
    """A DICOM volume and where its DICOM-SEG goes.

    Attributes
    ----------
    seg_path, seg_name
        In full, and relative to the run's folder; None if none is wanted.
    algorithm
        What the object is to say of its making.
    """

    volume: DicomVolume
    seg_path: Path | None
    seg_name: str | None
    algorithm: Algorithm


@dataclass(frozen=True)
class WrittenSeg:
    """Where a DICOM-SEG was written, or None, and what is to be said of that."""

    name: str | None = None
    warnings: tuple[str, ...] = ()


def write_seg(target: DicomTarget | None, mask_zyx: MaskZYX, *, is_guess: bool) -> WrittenSeg:
    """Write the DICOM-SEG if one is wanted; a failure is a warning, for the mask is good.

    A guess where the network found nothing, or failed, must not reach an archive of patients.
    """
    if target is None or target.seg_path is None:
        return WrittenSeg()
    if is_guess:
        return WrittenSeg(warnings=(NO_SEG_FOR_GUESSES,))
    from sslmedsam2.dicom.segmentation import write_dicom_seg

    try:
        write_dicom_seg(
            mask_zyx, volume=target.volume, path=target.seg_path, algorithm=target.algorithm
        )
    except OutputError as error:
        return WrittenSeg(warnings=(f"no_dicom_seg: {error}",))
    return WrittenSeg(name=target.seg_name)


@dataclass(frozen=True)
class SeriesTarget:
    """One series and where its results go.

    Attributes
    ----------
    preview_path
        None without previews.
    map_paths
        Where the maps of `MAP_KINDS` go; empty without maps.
    statistics
        Whether to measure the scan inside its mask.
    dicom
        None unless it is a DICOM series; then ``series.path`` is no path but its neutral name.
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
class Loaded:
    """A series as read and as its network takes it, or the error that prevented it.

    ``prepared`` is gone once the network has taken it.
    """

    target: SeriesTarget
    ready: ReadyVolume | None
    error: SslMedSam2Error | None
    seconds: dict[str, float] = field(default_factory=dict)
    prepared: Prepared | None = None


@dataclass(frozen=True)
class Computed:
    """A loaded series with what its network says, or the error that prevented it."""

    loaded: Loaded
    inferred: Inferred | None
    error: SslMedSam2Error | None


@dataclass(frozen=True)
class Segmented:
    """A loaded series with its segmentation; both may be missing where ``error`` says why."""

    loaded: Loaded
    segmentation: CanonicalSegmentation | None
    error: SslMedSam2Error | None


@dataclass(frozen=True)
class EngineAbout:
    """What the networks run on."""

    device: str
    backend: str


class SeriesWork(Work[SeriesTarget, SeriesResult]):
    """Segment series and write what comes of it; ``shared_dir`` is the output folder.

    All networks that ``sequences`` need are loaded before anything is written, so that one that
    cannot be loaded costs no half-finished run.
    """

    def __init__(
        self,
        models: Sequence[ModelLocation],
        engine: EngineOptions,
        *,
        sequences: frozenset[str | None],
        shared_dir: Path,
    ) -> None:
        """Take the sequences that will come, each of which has a model."""
        self.shared_dir = shared_dir
        self._models, self._engine, self._sequences = tuple(models), engine, sequences
        self._by_sequence: dict[str | None, CanonicalSegmenter] = {}

    @property
    def wants_gpu(self) -> bool:
        """Whether a GPU is used where there is one."""
        return self._engine.device != "cpu"

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

        Raises
        ------
        ModelError
            One cannot be loaded, or has other files here than where the run was started.
        UsageError
            The device is not there.
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

    def load(self, target: SeriesTarget) -> Loaded:
        """Read a series, turn it to the canonical orientation and prepare it for its network."""
        start = time.perf_counter()
        seconds: dict[str, float] = {}
        ready = None
        try:
            ready = make_ready(read_image(target))
            seconds["read"] = round(time.perf_counter() - start, 4)
            prepared = self._segmenter(target).prepare(ready.canonical)
            seconds["prepare"] = round(time.perf_counter() - start - seconds["read"], 4)
        except Exception as error:
            return Loaded(target, ready, _about(error, target, ready), seconds)
        return Loaded(target, ready, None, seconds, prepared)

    def compute(self, loaded: Loaded, _stop: StopRequest) -> Computed:
        """Run the network; an unforeseen failure becomes this series' error."""
        prepared, rest = loaded.prepared, replace(loaded, prepared=None)
        if prepared is None:
            return Computed(rest, None, loaded.error)
        try:
            return Computed(rest, self._segmenter(loaded.target).infer(prepared), None)
        except Exception as error:
            return Computed(rest, None, _about(error, loaded.target, loaded.ready))

    def finish(self, computed: Computed) -> SeriesResult:
        """Clean the mask, decide what to write, write it, and say how it went."""
        work = self._segmented(computed)
        start = time.perf_counter()
        target = work.loaded.target
        try:
            result = _written(work)
        except SslMedSam2Error as error:
            result = _failed(work, error)
        except Exception as error:
            result = _failed(work, unforeseen(target.series.path, error))
        seconds = dict(result.seconds)
        seconds["write"] = round(time.perf_counter() - start, 4)
        mask_sha256 = sha256_file(target.mask_path) if result.output_path is not None else None
        return replace(result, seconds=seconds, mask_sha256=mask_sha256)

    def _segmented(self, computed: Computed) -> Segmented:
        loaded, inferred = computed.loaded, computed.inferred
        if inferred is None:
            return Segmented(loaded, None, computed.error)
        try:
            with_maps = bool(loaded.target.map_paths)
            found = self._segmenter(loaded.target).finish(inferred, with_probability=with_maps)
            return Segmented(loaded, found, None)
        except Exception as error:
            return Segmented(loaded, None, _about(error, loaded.target, loaded.ready))

    def _segmenter(self, target: SeriesTarget) -> CanonicalSegmenter:
        return self._by_sequence[target.series.sequence]

    def close(self) -> None:
        """Free the networks."""
        self._by_sequence.clear()


def _about(error: Exception, target: SeriesTarget, ready: ReadyVolume | None) -> SslMedSam2Error:
    """Return an error as one of this series; once it was read, it is named as in the report."""
    if not isinstance(error, SslMedSam2Error):
        return unforeseen(target.series.path, error)
    return error if ready is None else error.about(target.input_name)


def read_image(target: SeriesTarget) -> Volume:
    """Read the image of a target; raises InputError."""
    if target.dicom is None:
        return read_volume(target.series.path)
    from sslmedsam2.dicom.reading import read_dicom

    return read_dicom(target.dicom.volume)


def read_target_grid(target: SeriesTarget) -> MaskVolume:
    """Return an empty mask on a series' grid; raises InputError if that cannot be read."""
    if target.dicom is None:
        return read_grid(target.series.path)
    from sslmedsam2.dicom.reading import dicom_grid

    return dicom_grid(target.dicom.volume)


def given_up(target: SeriesTarget, error: SslMedSam2Error) -> SeriesResult:
    """Return the result of a series that no worker could do."""
    return _failed(Segmented(Loaded(target, None, error), None, error), error)


def _written(work: Segmented) -> SeriesResult:
    """Write the network's mask, or a fallback where there is none and one is wanted."""
    found = work.segmentation
    if found is not None and found.n_components > 0:
        return _write(work, found.mask_zyx, status=SeriesStatus.OK, reason=None)
    if found is not None:
        return _written_without_liver(work, found)
    assert work.error is not None
    if not work.loaded.target.fallback:
        return _failed(work, work.error)
    return _write_typical_liver(work, work.error)


def _written_without_liver(work: Segmented, found: CanonicalSegmentation) -> SeriesResult:
    """Write the likeliest region where the network found no liver, or none if none is wanted."""
    path = work.loaded.target.series.path
    empty = SslMedSam2Error(
        path, reason="the network found no liver", remedy="Check that it is an abdominal scan"
    )
    if not work.loaded.target.fallback:
        return _result(work, status=SeriesStatus.EMPTY, error=str(empty))
    relaxed = found.relaxed_mask_zyx
    # A network that says the same of every voxel prefers none.
    if relaxed is None or not relaxed.any():
        return _write_typical_liver(work, empty)
    outcome = f"{empty} The likeliest region was written instead."
    return _write(work, relaxed, status=SeriesStatus.FALLBACK, reason=outcome)


def _write_typical_liver(work: Segmented, cause: SslMedSam2Error) -> SeriesResult:
    """Write the typical liver on the file's grid, if at least that can be read."""
    ready = work.loaded.ready
    grid = ready.volume if ready else _unread_grid(work.loaded.target)
    if grid is None:
        return _failed(work, cause)
    turn = reorientation_of(grid.geometry)
    z, y, x = (grid.geometry.shape_zyx[axis] for axis in turn.axes)
    guess = typical_liver((z, y, x))
    mask = to_native(guess, turn)
    target = work.loaded.target
    write_mask(mask, like=grid, path=target.mask_path, dtype=target.mask_dtype)
    seg = write_seg(target.dicom, mask, is_guess=True)
    voxel_ml = float(np.prod(grid.geometry.spacing_zyx_mm)) / 1000
    outcome = f"{cause} A liver of typical place and size was written instead."
    result = _result(work, status=SeriesStatus.FALLBACK, error=outcome)
    if ready is not None:
        canonical = ready.canonical
    else:
        spacing_z, spacing_y, spacing_x = (grid.geometry.spacing_zyx_mm[axis] for axis in turn.axes)
        black = np.broadcast_to(np.float32(0), guess.shape)
        canonical = CanonicalVolume(black, (spacing_z, spacing_y, spacing_x), turn)
    previewing = _preview(target, canonical, guess, status=result.status, warnings=(outcome,))
    return replace(
        result,
        warnings=(*result.warnings, *seg.warnings, *previewing),
        output_path=target.output_name,
        verdict="check",
        liver_volume_ml=round(float(mask.sum()) * voxel_ml, 1),
    )


def _unread_grid(target: SeriesTarget) -> MaskVolume | None:
    """Return the grid of a series whose voxels could not be read, if it can be relied on."""
    try:
        grid = read_target_grid(target)
    except InputError:
        return None
    return grid if grid.array_zyx.size <= LARGEST_GUESS_VOXELS else None


def _write(
    work: Segmented, mask_zyx: MaskZYX, *, status: SeriesStatus, reason: str | None
) -> SeriesResult:
    target, ready, found = work.loaded.target, work.loaded.ready, work.segmentation
    assert ready is not None
    assert found is not None
    judged = judge(mask_zyx, ready, found)
    if status is SeriesStatus.OK and judged.is_to_check:
        status = SeriesStatus.CHECK
    write_mask(judged.mask_zyx, like=ready.volume, path=target.mask_path, dtype=target.mask_dtype)
    _write_maps(target, ready, found)
    is_guess = status is SeriesStatus.FALLBACK
    seg = write_seg(target.dicom, judged.mask_zyx, is_guess=is_guess)
    shown = (*filter(None, (reason,)), *judged.warnings)
    previewing = _preview(target, ready.canonical, mask_zyx, status=status, warnings=shown)
    return replace(
        _result(work, status=status, error=reason),
        output_path=target.output_name,
        liver_volume_ml=round(judged.volume_ml, 1),
        components=found.n_components,
        touches_border=judged.touches_border,
        mean_foreground_confidence=_rounded(found.mean_confidence),
        estimated_dice=judged.estimate.dice if judged.estimate else None,
        estimated_dice_interval=judged.estimate.interval if judged.estimate else None,
        verdict="ok" if status is SeriesStatus.OK else "check",
        most_doubtful_lps_mm=_world_place(found.doubtful_zyx, ready),
        intensity=intensity_statistics(ready.volume.array_zyx, judged.mask_zyx)
        if target.statistics
        else None,
        warnings=(*judged.warnings, *seg.warnings, *previewing),
        dicom_seg_path=seg.name,
    )


def _write_maps(target: SeriesTarget, ready: ReadyVolume, found: CanonicalSegmentation) -> None:
    if not target.map_paths or found.probability_zyx is None:
        return
    native = to_native(found.probability_zyx, ready.canonical.reorientation)
    for kind, array in zip(MAP_KINDS, (native, entropy_bits(native)), strict=True):
        write_map(array, like=ready.volume, path=target.map_paths[kind])


def _world_place(
    canonical_zyx: tuple[float, float, float] | None, ready: ReadyVolume
) -> tuple[float, float, float] | None:
    """Return a voxel of the canonical grid as LPS millimetres."""
    if canonical_zyx is None:
        return None
    grid = canonical_geometry(ready.volume.geometry, ready.canonical.reorientation)
    x, y, z = (affine_lps(grid) @ [*canonical_zyx[::-1], 1.0])[:3].tolist()
    return round(x, 1), round(y, 1), round(z, 1)


def _preview(
    target: SeriesTarget,
    canonical: CanonicalVolume,
    mask_zyx: MaskZYX,
    *,
    status: SeriesStatus,
    warnings: tuple[str, ...],
) -> tuple[str, ...]:
    """Draw the preview of a canonical mask if one is wanted."""
    if target.preview_path is None:
        return ()
    flag = "GUESS" if status is SeriesStatus.FALLBACK else status.value.upper()
    return draw_preview(
        canonical,
        mask_zyx,
        path=target.preview_path,
        title=" ".join(filter(None, (target.series.case, target.series.sequence))),
        flags=() if status is SeriesStatus.OK else (flag,),
        warnings=tuple(one for one in warnings if one.partition(":")[0] not in NOTES),
    )


def _failed(work: Segmented, error: SslMedSam2Error) -> SeriesResult:
    return _result(work, status=SeriesStatus.FAILED, error=str(error))


def _result(work: Segmented, *, status: SeriesStatus, error: str | None) -> SeriesResult:
    """Return what is known of a series without its mask."""
    loaded = work.loaded
    series, ready = loaded.target.series, loaded.ready
    stages = work.segmentation.seconds if work.segmentation is not None else {}
    return SeriesResult(
        case=series.case,
        vendor=series.vendor,
        sequence=series.sequence or WITHOUT_SEQUENCE,
        input_path=loaded.target.input_name,
        output_path=None,
        status=status,
        seconds={**loaded.seconds, **stages},
        peak_memory_mb=peak_memory_mb(),
        warnings=ready.notes if ready else (),
        error=error,
        geometry=InputGeometry.of(ready.volume) if ready else None,
        image_sha256=ready.volume.sha256() if ready else None,
    )


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, 4)


def peak_memory_mb() -> float:
    """Return the process's largest resident size so far, in MB of 10**6 bytes.

    0 where the system does not say, such as on Windows.
    """
    try:
        import resource
    except ImportError:
        return 0.0
    # Linux counts in KiB.
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)
