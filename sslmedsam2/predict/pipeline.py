"""``predict``: find the studies, segment each series, write masks, previews and the report.

The executor computes the series: by default this process, which reads the next one and writes the
last one while the network works. The report is rewritten after each series (in a long run less
often), so that a run that was killed can be resumed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from os.path import realpath
from pathlib import Path
from typing import Literal

from sslmedsam2.contract.archives import OpenedInput, open_archives
from sslmedsam2.contract.folder_rules import LeftOut
from sslmedsam2.contract.names import split_volume_name
from sslmedsam2.contract.outputs import (
    DEFAULT_SLUG,
    MASK_EXTENSION,
    RUN_FOLDERS,
    Layout,
    bids_path,
    map_path,
    mask_path,
    preview_path,
    report_path,
    seg_path,
    socket_path,
    write_bids_description,
)
from sslmedsam2.contract.sequence_map import NO_MAP, SequenceMap
from sslmedsam2.dicom.model import Algorithm, DicomVolume, SeriesRow
from sslmedsam2.errors import (
    ExitCode,
    InputError,
    ModelError,
    NoInputError,
    SslMedSam2Error,
    UsageError,
)
from sslmedsam2.execution.host import in_container
from sslmedsam2.execution.interrupt import StopRequest, stop_on_signals
from sslmedsam2.execution.units import Executor, ThisProcess
from sslmedsam2.imaging.atomic import check_writable, locked, remove_partials
from sslmedsam2.imaging.formats import written_extension
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.records import check_words
from sslmedsam2.imaging.writing import MaskDtype
from sslmedsam2.inference.device import Device
from sslmedsam2.inference.segmenter import EngineOptions, Mode
from sslmedsam2.predict.inputs import (
    Inputs,
    dicom_input_name,
    dicom_series,
    find_inputs,
    input_name,
    place_of_problem,
    with_archives,
)
from sslmedsam2.predict.recorder import OnResult, RunRecorder
from sslmedsam2.predict.resume import (
    COMPLETE,
    earlier_report,
    keep_done,
    keep_others,
    move_earlier_aside,
    move_unmade_aside,
)
from sslmedsam2.predict.series import (
    MAP_KINDS,
    WITHOUT_SEQUENCE,
    DicomTarget,
    SeriesTarget,
    SeriesWork,
    given_up,
)
from sslmedsam2.reporting.run_report import (
    DicomRecord,
    LeftOutRecord,
    ModelRecord,
    RunReport,
    SeriesResult,
    SeriesStatus,
    start_report,
)
from sslmedsam2.weights.locate import ModelLocation, locate_models, model_for_sequence
from sslmedsam2.weights.manifest import ANY_SEQUENCE

logger = logging.getLogger(__name__)

FailurePolicy = Literal["auto", "fallback", "skip"]
MaskFormat = Literal["nii.gz", "mha", "nrrd", "same"]
_RECORDED_OPTIONS = (
    *("sequences", "device", "mode", "mirror", "second_view"),
    *("on_failure", "previews", "mask_dtype"),
)


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``predict``.

    Attributes
    ----------
    model_dir
        None to search the usual places, see :mod:`sslmedsam2.weights.locate`.
    second_view
        Average with inverted contrast if the network is unsure and the model supports it.
    sequences
        Canonical names; None for those that the challenge scores.
    on_failure
        ``fallback`` writes a valid, flagged guess if a series fails; ``skip`` writes nothing;
        ``auto`` writes a guess only for the sequences of the challenge in its container.
    resume
        Keep complete results of an earlier run with the same model and options.
    mask_dtype
        ``uint8``, or ``input`` for the voxel type of each image.
    sequence_map
        Sequences of DICOM series and files, see :mod:`sslmedsam2.contract.sequence_map`.
    dicom_seg
        Write a DICOM-SEG beside the mask of each DICOM series.
    statistics
        Measure the intensities inside each mask.
    maps
        Write maps of probability and uncertainty.
    strict
        Count a mask with status ``check`` as a failure.
    mask_file
        Path of the mask of the only scan; None for the paths of ``layout``.
    only
        The files and folders below ``input_path`` to segment; empty for all.
    sequence
        Canonical sequence of all scans whose names give none; it chooses the model.
    mask_format
        Extension of the masks without its dot, or ``same`` for that of each scan.
    layout, slug
        Names and folders of the masks; ``slug`` names the output of grand-challenge.org.
    """

    input_path: Path
    output_dir: Path
    model_dir: Path | None = None
    sequences: tuple[str, ...] | None = None
    device: Device = "auto"
    mode: Mode = "exact"
    mirror: bool = True
    second_view: bool = True
    on_failure: FailurePolicy = "auto"
    resume: bool = False
    previews: bool = True
    mask_dtype: MaskDtype = "uint8"
    sequence_map: SequenceMap = NO_MAP
    dicom_seg: bool = True
    statistics: bool = False
    maps: bool = False
    strict: bool = False
    mask_file: Path | None = None
    only: tuple[Path, ...] = ()
    sequence: str | None = None
    mask_format: MaskFormat = "nii.gz"
    layout: Layout = "challenge"
    slug: str = DEFAULT_SLUG

    def __post_init__(self) -> None:
        """Check the words; raises UsageError."""
        check_words(self)


def predict(
    options: PredictOptions, *, on_result: OnResult | None = None, executor: Executor | None = None
) -> RunReport:
    """Segment everything below ``options.input_path`` and return the finished report.

    A series that fails does not stop the others; see ``exit_code`` of the report.

    Parameters
    ----------
    on_result
        Called after each series.
    executor
        Computes the series; None for this process.

    Raises
    ------
    NoInputError
        The input path does not exist, or nothing below it can be used.
    ModelError
        No usable model was found.
    UsageError
        The device does not exist, or there is only DICOM and the packages to read it are missing.
    OutputError
        The output folder cannot be written.
    """
    # The workers of a cluster can see the output folder, and perhaps no other one.
    is_here = executor is None or isinstance(executor, ThisProcess)
    temporary = None if is_here else options.output_dir
    with open_archives(options.input_path, only=options.only, temporary=temporary) as opened:
        options = replace(options, input_path=opened.path, only=opened.only)
        return _predict(opened, options, on_result=on_result, executor=executor)


def _predict(
    opened: OpenedInput,
    options: PredictOptions,
    *,
    on_result: OnResult | None,
    executor: Executor | None,
) -> RunReport:
    found = find_inputs(
        options.input_path,
        only=options.only,
        sequences=options.sequences,
        sequence_map=options.sequence_map,
    )
    inputs = with_archives(found, opened)
    for note in inputs.notes:
        logger.info(opened.shown(note))
    models = locate_models(options.model_dir, hash_weights=False)
    plan = _plan(inputs, options, models)
    _check_targets(plan.targets, options)
    sure_from = None if options.second_view else 0.0
    work = SeriesWork(
        models,
        EngineOptions(options.device, options.mode, options.mirror, sure_from),
        sequences=frozenset(target.series.sequence for target in plan.targets),
        shared_dir=options.output_dir,
    )
    executor = executor or ThisProcess()
    with executor.open(work) as about, locked(options.output_dir):
        _remove_partials(plan.targets, options)
        if not options.resume and plan.targets:
            move_earlier_aside(options.output_dir, plan.targets)
        previous = earlier_report(options.output_dir) if options.resume else None
        report = start_report(
            models=tuple(_record(model) for model in models),
            device=about.device,
            backend=about.backend,
            options=_recorded_options(options),
            dicom=plan.dicom,
            left_out=plan.left_out,
        )
        if plan.targets:
            others = keep_others(
                plan.targets,
                plan.problems,
                previous,
                report=report,
                output_dir=options.output_dir,
            )
            report = replace(report, series=others)
        recorder = RunRecorder(
            report,
            report_path(options.output_dir),
            total=len(report.series) + len(plan.targets) + len(plan.problems),
            listener=on_result,
            shown=opened.shown,
        )
        for problem in plan.problems:
            recorder.add(problem)
        if not plan.targets:
            # The record of an earlier run stays with its masks.
            if not report_path(options.output_dir).exists():
                recorder.end(ExitCode.NO_VALID_INPUT)
            raise _no_input(inputs, plan, options)
        with stop_on_signals() as stop:
            pending = keep_done(plan.targets, recorder, previous)
            recorder.start_writing()
            _segment_all(work, pending, recorder, executor=executor, stop=stop)
            if stop:
                reached = {result.output_path for result in recorder.report.series}
                for target in pending:
                    if target.output_name not in reached:
                        move_unmade_aside(target, None)
            else:
                # A worker that was killed while it wrote has left some; none is at work now.
                _remove_partials(plan.targets, options)
            if options.layout == "bids":
                write_bids_description(options.output_dir)
            code = _exit_code(recorder.report, stop, strict=options.strict)
            return recorder.end(code, interrupted=bool(stop))


def _remove_partials(targets: Sequence[SeriesTarget], options: PredictOptions) -> None:
    """Remove partial files where a run writes; other programs may write elsewhere below."""
    output_dir = options.output_dir
    for name in RUN_FOLDERS:
        remove_partials(output_dir / name)
    folders = {target.mask_path.parent for target in targets}
    for folder in {output_dir, *(one for one in folders if one.is_relative_to(output_dir))}:
        remove_partials(folder, below=False)


def _segment_all(
    work: SeriesWork,
    targets: Sequence[SeriesTarget],
    recorder: RunRecorder,
    *,
    executor: Executor,
    stop: StopRequest,
) -> None:
    """Give the recorder the result of each series, until done or stopped."""
    for target, result in executor.map(work, targets, stop=stop):
        if isinstance(result, SslMedSam2Error):
            result = given_up(target, result)
        move_unmade_aside(target, result)
        recorder.add(result)


def _check_targets(targets: Sequence[SeriesTarget], options: PredictOptions) -> None:
    """Raise UsageError if a mask would overwrite a scan or another mask.

    Raises OutputError: the folder of the only mask cannot be written.
    `find_inputs` excludes two masks of one name only in the layout of the challenge.
    """
    if options.mask_file is not None and len(targets) > 1:
        raise UsageError(
            f"--output {options.mask_file}",
            reason=f"it names one file, and there are {len(targets)} scans",
            remedy="Give a folder to --output",
        )
    for name, count in Counter(target.output_name for target in targets).items():
        if count > 1:
            raise UsageError(
                f"--layout {options.layout}",
                reason=f"{count} scans would be written to {name}",
                remedy="Rename the scans, or use --layout challenge",
            )
    # Not Path.resolve, which raises RuntimeError for a circle of links before Python 3.13.
    images = {realpath(target.series.path) for target in targets if target.dicom is None}
    for target in targets:
        if realpath(target.mask_path) in images:
            raise UsageError(
                target.mask_path,
                reason="the mask would be written over a scan",
                remedy="Give another name or folder to --output",
            )
    if options.mask_file is not None and targets:
        check_writable(options.mask_file.parent)


@dataclass(frozen=True)
class _Plan:
    """Series to segment, inputs that cannot be used, inputs left out, and all DICOM series."""

    targets: tuple[SeriesTarget, ...]
    problems: tuple[SeriesResult, ...]
    left_out: tuple[LeftOutRecord, ...]
    dicom: tuple[DicomRecord, ...]


def _plan(inputs: Inputs, options: PredictOptions, models: Sequence[ModelLocation]) -> _Plan:
    """Sort files and DICOM series by whether a model serves them."""
    targets: list[SeriesTarget] = []
    left_out = [_left_out_record(one, inputs, options) for one in inputs.left_out]
    for series in inputs.studies.series:
        target = _target(series, input_name(series.path, options.input_path), options)
        model = _model_or_reason(target, models)
        if isinstance(model, str):
            sequence = series.sequence or WITHOUT_SEQUENCE
            left_out.append(LeftOutRecord(series.case, sequence, target.input_name, model))
        else:
            targets.append(target)
    unserved: dict[SeriesRow, str] = {}
    for named in inputs.dicom.volumes if inputs.dicom else ():
        volume = named.volume
        target = _target(dicom_series(named), dicom_input_name(volume.case, volume.series), options)
        model = _model_or_reason(target, models)
        if isinstance(model, str):
            unserved[named.row] = model
        else:
            dicom = _dicom_target(volume, dicom_series(named), model, options)
            targets.append(replace(target, dicom=dicom))
    rows = tuple(_dicom_record(row, unserved.get(row)) for row in inputs.dicom_rows)
    problems = [_problem_result(problem, options) for problem in inputs.studies.problems]
    problems += [_unusable_result(row) for row in inputs.dicom_rows if row.use == "unusable"]
    return _Plan(tuple(targets), tuple(problems), tuple(left_out), rows)


def _left_out_record(one: LeftOut, inputs: Inputs, options: PredictOptions) -> LeftOutRecord:
    name = input_name(one.path, options.input_path)
    if one.image is not None:
        sequence = one.image.sequence or WITHOUT_SEQUENCE
        return LeftOutRecord(one.image.case, sequence, name, one.reason)
    is_at_the_top = one.path.parent == options.input_path
    case = one.path.name.partition(".")[0] if is_at_the_top else one.path.parent.name
    if inputs.dicom is not None and split_volume_name(one.path.name) is None:
        from sslmedsam2.dicom.discovery import file_name

        # A picture or a document beside DICOM is often named after the patient.
        case = name = file_name(one.path, root=options.input_path)
    return LeftOutRecord(case, WITHOUT_SEQUENCE, name, one.reason)


def _model_or_reason(target: SeriesTarget, models: Sequence[ModelLocation]) -> ModelLocation | str:
    """Return the model that serves a series, or log and return why there is none."""
    try:
        return model_for_sequence(models, target.series.sequence or ANY_SEQUENCE)
    except ModelError as error:
        logger.warning("%s is left out: %s", target.input_name, error.reason)
        return error.reason


def _dicom_record(row: SeriesRow, unserved: str | None) -> DicomRecord:
    record = DicomRecord(**asdict(row))
    if unserved is None:
        return record
    return replace(record, use="left_out", reason=f"{record.reason}; {unserved}")


def _is_fallback(series: ImageFile, options: PredictOptions) -> bool:
    if options.on_failure == "auto":
        return series.sequence is not None and in_container()
    return options.on_failure == "fallback"


def _target(series: ImageFile, input_name: str, options: PredictOptions) -> SeriesTarget:
    path = options.mask_file or _mask_path(series, options)
    return SeriesTarget(
        series=replace(series, sequence=series.sequence or options.sequence),
        input_name=input_name,
        mask_path=path,
        preview_path=preview_path(options.output_dir, series) if options.previews else None,
        output_name=path.name
        if options.mask_file
        else path.relative_to(options.output_dir).as_posix(),
        mask_dtype=options.mask_dtype,
        fallback=_is_fallback(series, options),
        statistics=options.statistics,
        map_paths={kind: map_path(options.output_dir, series, kind=kind) for kind in MAP_KINDS}
        if options.maps
        else {},
    )


def _mask_path(series: ImageFile, options: PredictOptions) -> Path:
    if options.layout == "bids":
        return bids_path(options.output_dir, series)
    if options.layout == "grand-challenge":
        return socket_path(options.output_dir, series, slug=options.slug)
    path = mask_path(options.output_dir, series)
    extension: str = options.mask_format
    if extension == "same":
        extension = written_extension(series.path).removeprefix(".")
    return path.with_name(path.name.removesuffix(MASK_EXTENSION) + f".{extension}")


def _dicom_target(
    volume: DicomVolume, series: ImageFile, model: ModelLocation, options: PredictOptions
) -> DicomTarget:
    record = _record(model)
    path = seg_path(options.output_dir, series) if options.dicom_seg else None
    return DicomTarget(
        volume=volume,
        seg_path=path,
        seg_name=path.relative_to(options.output_dir).as_posix() if path else None,
        algorithm=Algorithm(record.name, record.sha256),
    )


def _problem_result(problem: InputError, options: PredictOptions) -> SeriesResult:
    """Return the result of a case folder, or a file in one, that cannot be used."""
    case, file, name = place_of_problem(problem, options.input_path)
    return _unread_result(case, file or WITHOUT_SEQUENCE, name, problem)


def _unusable_result(row: SeriesRow) -> SeriesResult:
    """Return the result of a DICOM series or file that cannot be used."""
    error = InputError(
        f"{row.case}/{row.series}",
        kind="unusable_dicom",
        reason=row.reason,
        remedy="Find it with 'sslmedsam2 dicom --identify' and export it again",
    )
    name = dicom_input_name(row.case, row.series)
    return _unread_result(row.case, row.sequence or WITHOUT_SEQUENCE, name, error)


def _unread_result(case: str, sequence: str, name: str, error: InputError) -> SeriesResult:
    return SeriesResult(case, None, sequence, name, None, SeriesStatus.FAILED, error=str(error))


def _recorded_options(options: PredictOptions) -> dict[str, object]:
    """Return the options that decide the masks, without folders and sequence map.

    Keys of the sequence map may identify a patient. Its effects are in the list of DICOM series.
    """
    names = _RECORDED_OPTIONS if options.sequence is None else (*_RECORDED_OPTIONS, "sequence")
    return {name: getattr(options, name) for name in names}


def _record(model: ModelLocation) -> ModelRecord:
    return ModelRecord(model.name, {entry.path: entry.sha256 for entry in model.files})


def _exit_code(report: RunReport, stop: StopRequest, *, strict: bool = False) -> ExitCode:
    if stop:
        return ExitCode.INTERRUPTED
    if strict and any(result.status is SeriesStatus.CHECK for result in report.series):
        return ExitCode.SOME_CASES_FAILED
    if all(result.status in COMPLETE for result in report.series):
        return ExitCode.OK
    # A series with a geometry was read: its failure, such as a full disk, is not due to the input.
    if all(
        result.status is SeriesStatus.FAILED and not result.geometry for result in report.series
    ):
        return ExitCode.NO_VALID_INPUT
    return ExitCode.SOME_CASES_FAILED


def _no_input(inputs: Inputs, plan: _Plan, options: PredictOptions) -> SslMedSam2Error:
    reasons = [problem.reason for problem in inputs.studies.problems]
    unserved = plan.left_out[len(inputs.left_out) :]
    reasons += [f"{row.case} {row.sequence}: {row.reason}" for row in unserved]
    reasons += [f"{row.case}/{row.series}: {row.reason}" for row in plan.dicom]
    reasons = reasons or list(inputs.notes)
    return NoInputError(
        options.input_path,
        reason="no volume can be used" + (f" ({reasons[0]})" if reasons else ""),
        remedy="Give folders of cases (GED4.nii.gz and the like), volumes or DICOM series",
    )
