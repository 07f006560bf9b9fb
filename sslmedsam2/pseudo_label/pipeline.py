"""``pseudo-label``: label volumes without a mask with a frozen SAM2 from a few labelled ones.

First each labelled volume is segmented with all others, to calibrate the estimated Dice. Then an
executor segments the queries: by default this process, in sorted order, reading the next query and
writing the previous one while SAM2 computes. The record of a query is written last, so a query with
a record is complete.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sslmedsam2 import __version__
from sslmedsam2.contract.folder_rules import Discovery
from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.contract.pseudo_label_outputs import (
    CALIBRATION_NAME,
    Shard,
    pseudo_label_paths,
    run_record_path,
)
from sslmedsam2.contract.sequence_map import SequenceMap
from sslmedsam2.contract.studies import find_queries
from sslmedsam2.errors import ExitCode, InputError, NoInputError, SslMedSam2Error, UsageError
from sslmedsam2.execution.interrupt import StopRequest, stop_on_signals
from sslmedsam2.execution.units import Executor, ThisProcess, all_or_error, duration
from sslmedsam2.fewshot.checkpoint import hash_sam2
from sslmedsam2.fewshot.strategy import FewShotSettings
from sslmedsam2.imaging.atomic import locked
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.records import read_record_or_none, utc_now, write_record
from sslmedsam2.inference.device import Device
from sslmedsam2.predict.inputs import input_name, place_of_problem
from sslmedsam2.pseudo_label.query import (
    LabelResult,
    LabelUnit,
    LabelWork,
    QueryTarget,
    given_up,
    standing_record,
)
from sslmedsam2.pseudo_label.records import (
    CalibrationCase,
    CalibrationRun,
    Provenance,
    PseudoLabelRecord,
    as_corrected,
    calibrate_on,
    write_table,
)
from sslmedsam2.pseudo_label.supports import check_supports, find_sam2

logger = logging.getLogger(__name__)

_WITHOUT_EFFECT: Final = ("memory_limit_mb",)
"""Settings that do not affect pseudo labels."""

_MEASURED_S: Final = 10.0
_MEASURED_UNITS: Final = 2
"""The remaining time is estimated after either."""

OnRecord = Callable[[PseudoLabelRecord, int, int], None]
"""Called with each query's record, how many are done and how many there are."""


@dataclass(frozen=True)
class PseudoLabelOptions:
    """What ``pseudo-label`` is asked to do.

    Attributes
    ----------
    support_dir
        Case folders with ``<SEQ>.nii.gz`` and ``mask_<SEQ>.nii.gz``.
    query_dir
        Volumes to label, in any layout that ``predict`` reads.
    sam2
        ``compact``, the name of an official checkpoint that was fetched, or a path.
    sequences
        Of the queries; canonical names, None for all.
    resume
        Keep pseudo labels of an earlier run with the same supports, SAM2 and settings.
    label
        The value of the liver in the supports' masks; None for their only foreground value.
    sequence_map
        Sequences of files by the user; takes precedence over names.
    shard
        Label this part of the queries only; None for all. Shards may share ``output_dir``.
    """

    support_dir: Path
    query_dir: Path
    output_dir: Path
    sam2: str
    sequences: tuple[str, ...] | None = None
    settings: FewShotSettings = field(default_factory=FewShotSettings)
    device: Device = "auto"
    resume: bool = False
    label: int | None = None
    sequence_map: SequenceMap = field(default_factory=SequenceMap)
    shard: Shard | None = None


@dataclass(frozen=True)
class PseudoLabelSummary:
    """How a run went.

    Attributes
    ----------
    records
        Of all queries of this run, including the ``kept`` ones of an earlier run.
    problems
        Files and folders that should be queries and cannot be used.
    support_errors
        A line for each labelled volume that was left out.
    """

    records: tuple[PseudoLabelRecord, ...]
    kept: int
    problems: tuple[PseudoLabelRecord, ...]
    support_errors: tuple[str, ...]
    table_path: Path
    interrupted: bool

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        failed = self.problems or self.support_errors or any(r.error for r in self.records)
        return ExitCode.SOME_CASES_FAILED if failed else ExitCode.OK

    @property
    def counts(self) -> dict[str, int]:
        """Number of pseudo labels with each verdict, and of failures."""
        words = [record.verdict or "failed" for record in (*self.records, *self.problems)]
        return {word: words.count(word) for word in ("accept", "doubtful", "reject", "failed")}


def pseudo_label(
    options: PseudoLabelOptions,
    *,
    on_record: OnRecord | None = None,
    executor: Executor | None = None,
    supports: Sequence[ImageFile] | None = None,
) -> PseudoLabelSummary:
    """Label every query below ``options.query_dir``.

    A query that fails does not stop the others, nor does a labelled volume that cannot be used; the
    summary's ``exit_code`` shows whether there were any.

    Parameters
    ----------
    on_record
        Called after each query.
    executor
        Segments the queries; None for this process.
    supports
        The labelled volumes to use; None for all below ``options.support_dir``.

    Raises
    ------
    NoInputError
        There is no labelled volume that can be used, or no query.
    InputError
        It is ambiguous which mask in the support folder belongs to which image.
    ModelError
        There is no such SAM2, or it is damaged.
    UsageError
        The device does not exist, or the output folder lies in the query folder.
    OutputError
        The output folder cannot be written.
    """
    _check_output_dir(options)
    labelled = supports or find_labelled_series(
        options.support_dir, label=options.label, sequence_map=options.sequence_map
    )
    queries = find_queries(
        options.query_dir,
        labelled=labelled,
        sequences=options.sequences,
        sequence_map=options.sequence_map,
    )
    options.sequence_map.warn_of_unused(options.support_dir, options.query_dir)
    for note in queries.notes:
        logger.info(note)
    targets = [_target(series, options) for series in queries.series]
    if not targets:
        raise _no_query(queries, options)
    sam2 = find_sam2(options.sam2)
    sam2_sha256 = hash_sam2(sam2)
    checked = check_supports(options.support_dir, labelled)
    settings = {k: v for k, v in asdict(options.settings).items() if k not in _WITHOUT_EFFECT}
    work = LabelWork(
        options.settings,
        sam2=sam2,
        supports=checked,
        provenance=Provenance(__version__, sam2.stem, sam2_sha256, settings, checked.sha256),
        device=options.device,
        shared_dir=options.output_dir,
    )
    part = targets if options.shard is None else options.shard.of(targets)
    executor = executor or ThisProcess()
    lock_name = f".{run_record_path(options.output_dir, options.shard).stem}.lock"
    with (
        work.no_scratch_left(),
        executor.open(work) as device,
        locked(options.output_dir, lock_name),
    ):
        run = _Run(
            options,
            work,
            executor,
            support_errors=tuple(str(problem) for problem in checked.problems),
            problems=tuple(_problem_record(error, options) for error in queries.problems),
            device=device,
            listener=on_record,
            n_queries=len(part),
        )
        with stop_on_signals() as stop:
            return run.label(part, stop)


@dataclass
class _Run:
    """One run: what all queries share, and the results so far."""

    options: PseudoLabelOptions
    work: LabelWork
    executor: Executor
    support_errors: tuple[str, ...]
    problems: tuple[PseudoLabelRecord, ...]
    device: str
    listener: OnRecord | None
    n_queries: int
    started: str = field(default_factory=utc_now)
    records: list[PseudoLabelRecord] = field(default_factory=list)
    kept: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def label(self, targets: Sequence[QueryTarget], stop: StopRequest) -> PseudoLabelSummary:
        """Label the targets, until done or stopped, and return the summary."""
        for problem in self.problems:
            logger.error(problem.error)
        self._write_run_record(None)
        pending = [target for target in targets if not self._keep(target)]
        if pending:
            self._label(pending, stop)
        summary = PseudoLabelSummary(
            records=tuple(self.records),
            kept=self.kept,
            problems=self.problems,
            support_errors=self.support_errors,
            table_path=write_table(self.options.output_dir, problems=self.problems),
            interrupted=bool(stop),
        )
        self._write_run_record(summary)
        return summary

    def _keep(self, target: QueryTarget) -> bool:
        """Keep a mask that a person has corrected and, to resume, one of an earlier run."""
        record = standing_record(target, self.work.provenance, resume=self.options.resume)
        if record is None:
            return False
        self.kept += 1
        self._add(as_corrected(record, self.options.output_dir))
        return True

    def _label(self, targets: Sequence[QueryTarget], stop: StopRequest) -> None:
        """Calibrate, then label the queries, until done or stopped."""
        pace = _Pace(n_units=len(targets))
        with self._timed("supports"):
            built = self.executor.map(self.work, [LabelUnit()], stop=stop)
            all_or_error(built)
        with self._timed("calibration"):
            calibrated = self._calibrate(pace, stop)
        if calibrated is None:
            return
        units = [LabelUnit(target, calibrated.calibration) for target in targets]
        for unit, record in self.executor.map(self.work, units, stop=stop):
            if isinstance(record, SslMedSam2Error):
                assert unit.target is not None
                record = given_up(unit.target, record)
            assert isinstance(record, PseudoLabelRecord)
            self._add(record)
            pace.unit_done()

    def _calibrate(self, pace: _Pace, stop: StopRequest) -> CalibrationRun | None:
        """Calibrate on the supports that an earlier run has not done; None if stopped."""
        path, key = self.options.output_dir / CALIBRATION_NAME, self.work.provenance.key
        names = list(self.work.supports.sha256)
        # With a single patient there is nothing to learn from.
        if len(self.work.supports.cases) < 2:
            names = []
            logger.warning(
                "one labelled patient cannot tell how good pseudo labels are: none accepted"
            )
        found: dict[str, CalibrationCase] = {}
        if self.options.resume or self.options.shard is not None:
            earlier = read_record_or_none(path, CalibrationRun)
            if earlier is not None and earlier.key == key:
                found = {case.name: case for case in earlier.cases}
            elif earlier is not None:
                logger.info("%s was made from other data or settings and is made again", path.name)

        def calibrated() -> CalibrationRun:
            return calibrate_on((found[name] for name in names if name in found), key=key)

        pending = [LabelUnit(support=i) for i, name in enumerate(names) if name not in found]
        pace.n_units += len(pending)
        errors: list[tuple[LabelUnit, LabelResult | SslMedSam2Error]] = []
        for unit, case in self.executor.map(self.work, pending, stop=stop):
            if isinstance(case, CalibrationCase):
                found[case.name] = case
                message = "calibration %d/%d %s: Dice %.3f"
                logger.info(message, len(found), len(names), case.name, case.dice)
                # After each support, so that a stop loses none.
                write_record(path, calibrated())
            elif case is not None:
                errors.append((unit, case))
            pace.unit_done()
        all_or_error(errors)
        if stop:
            return None
        write_record(path, calibrated())
        return calibrated()

    def _add(self, record: PseudoLabelRecord) -> None:
        self.records.append(record)
        if record.error is not None:
            logger.error(record.error)
        if self.listener is not None:
            self.listener(record, len(self.records), self.n_queries)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)

    def _write_run_record(self, summary: PseudoLabelSummary | None) -> None:
        """Write options and provenance and, with a ``summary``, the results."""
        content: dict[str, Any] = {
            "tool_version": __version__,
            "started": self.started,
            "finished": None,
            "options": _recorded_options(self.options),
            "device": self.device,
            "provenance": self.work.provenance,
            "support_errors": self.support_errors,
            "query_problems": [problem.error for problem in self.problems],
            "queries": self.n_queries,
        }
        if summary is not None:
            content |= {
                "finished": utc_now(),
                "interrupted": summary.interrupted,
                "exit_code": int(summary.exit_code),
                "counts": summary.counts,
                "kept": summary.kept,
                "seconds": self.seconds,
            }
        write_record(run_record_path(self.options.output_dir, self.options.shard), content)


class _Pace:
    """Logs once how long the rest will take, estimated from the pace of the first units.

    Supports and queries take the same time, except the first, which includes warm-up.
    """

    def __init__(self, n_units: int) -> None:
        self.n_units = n_units
        self._done = 0
        self._start = 0.0
        self._is_logged = False

    def unit_done(self) -> None:
        """Count a unit."""
        if self._done == 0:
            self._start = time.perf_counter()
        self._done += 1
        seconds, measured = time.perf_counter() - self._start, self._done - 1
        left = self.n_units - self._done
        is_enough = measured >= _MEASURED_UNITS or (measured and seconds >= _MEASURED_S)
        if is_enough and left and not self._is_logged:
            self._is_logged = True
            logger.info("estimate: %s left (%d scans)", duration(left * seconds / measured), left)


def _check_output_dir(options: PseudoLabelOptions) -> None:
    """Refuse an output folder in the query folder: the next run would take masks for queries."""
    # Unlike Path.resolve, this takes a link in a circle.
    output, root = (Path(os.path.realpath(one)) for one in (options.output_dir, options.query_dir))
    if root in (output, *output.parents):
        raise UsageError(
            options.output_dir,
            reason=f"the output would lie among the queries in {options.query_dir}",
            remedy="Choose an output folder beside the query folder",
        )


def _target(series: ImageFile, options: PseudoLabelOptions) -> QueryTarget:
    return QueryTarget(
        series=series,
        image_name=input_name(series.path, options.query_dir),
        paths=pseudo_label_paths(options.output_dir, series),
    )


def _problem_record(problem: InputError, options: PseudoLabelOptions) -> PseudoLabelRecord:
    """Return the record of a case folder, or a file in one, that cannot be a query."""
    case, file, name = place_of_problem(problem, options.query_dir)
    return PseudoLabelRecord(case=case, sequence=file, vendor=None, image=name, error=str(problem))


def _no_query(queries: Discovery, options: PseudoLabelOptions) -> NoInputError:
    reasons = [*map(str, queries.problems), *queries.notes]
    return NoInputError(
        options.query_dir,
        reason="there is no volume to label" + (f" ({reasons[0]})" if reasons else ""),
        remedy="Give case folders with GED4.nii.gz and the like, or plain volumes",
    )


def _recorded_options(options: PseudoLabelOptions) -> dict[str, Any]:
    """Return the options without folders and map, whose names may identify a patient."""
    recorded = asdict(options)
    for name in ("support_dir", "query_dir", "output_dir", "sequence_map"):
        del recorded[name]
    return recorded
