"""All stages of ``retrain``: index, pseudo labels, rounds, freezing.

Finished stages are kept, so that the same command continues after a stop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslmedsam2.contract.pseudo_label_outputs import pseudo_label_paths
from sslmedsam2.errors import ExitCode, UsageError
from sslmedsam2.execution.interrupt import StopRequest, stop_on_signals
from sslmedsam2.execution.units import Executor, ThisProcess
from sslmedsam2.imaging.atomic import locked
from sslmedsam2.imaging.records import read_record_or_none, write_record
from sslmedsam2.pseudo_label.pipeline import PseudoLabelOptions, pseudo_label
from sslmedsam2.pseudo_label.records import PseudoLabelRecord
from sslmedsam2.retrain.freeze import below_fewshot, freeze_round
from sslmedsam2.retrain.index import index_data, read_index
from sslmedsam2.retrain.page import page_or_warn
from sslmedsam2.retrain.relabel import refuse_if_nearly_all_failed, relabel_round
from sslmedsam2.retrain.select import (
    PseudoLabel,
    Selection,
    ever_trained,
    fewshot_dice,
    fewshot_labels,
    relabelled,
    select,
    weight_of_first,
)
from sslmedsam2.retrain.state import (
    RelabelRecord,
    RetrainOptions,
    RoundDir,
    WorkDir,
    decision_so_far,
    finished_figures,
    read_state,
)
from sslmedsam2.retrain.stopping import Decision, RoundFigures
from sslmedsam2.retrain.train_round import (
    check_trained,
    prepare_training,
    train_folds,
    validate_round,
)
from sslmedsam2.train.fold_scores import FoldScore
from sslmedsam2.weights.manifest import ModelEntry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrainSummary:
    """How a run ended.

    Attributes
    ----------
    rounds
        Figures of all finished rounds.
    decision
        The last one; None if no round was finished.
    model
        What was frozen; None if nothing was.
    problems
        A line for each image that could not take part.
    failures
        A line for each pseudo label that could not be made, by SAM2 or by the last round.
    warning
        Set if the network is worse than the few-shot branch that it learned from.
    withheld
        Whether nothing was frozen because of ``warning``.
    """

    rounds: tuple[RoundFigures, ...]
    decision: Decision | None
    model: ModelEntry | None
    problems: tuple[str, ...]
    failures: tuple[str, ...]
    warning: str | None
    withheld: bool
    interrupted: bool

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        failed = self.problems or self.failures or self.withheld
        return ExitCode.SOME_CASES_FAILED if failed else ExitCode.OK


def retrain(options: RetrainOptions, *, executor: Executor | None = None) -> RetrainSummary:
    """Run all stages that are not finished.

    ``executor`` processes volumes and folds; None for this process.

    Raises
    ------
    NoInputError, InputError, UsageError
        The data or options cannot be used; raised before any long stage starts.
    ModelError
        There is no such SAM2, or a checkpoint is damaged or does not fit.
    OutputError
        The work directory or the weights cannot be written.
    SslMedSam2Error
        Most images failed.
    """
    with locked(options.work_dir):
        with stop_on_signals() as stop:
            labels = plan(options, stop, executor=executor)
            if labels is None or not _retry_failures(options, stop, executor):
                return _summary(options, interrupted=True)
            while (decision := decision_so_far(options)) is None or not decision.stop:
                if not _round(options, stop, executor or ThisProcess()):
                    return _summary(options, interrupted=True)
        withheld = below_fewshot(options) is not None and not options.force
        model = None
        if options.weights_dir is not None and not withheld:
            model = freeze(options, executor=executor)
        return _summary(options, model=model)


def plan(
    options: RetrainOptions, stop: StopRequest, *, executor: Executor | None = None
) -> tuple[PseudoLabel, ...] | None:
    """Index the data, make pseudo labels and begin the first round; None if it was stopped."""
    index = index_data(options, executor=executor)
    work = WorkDir(options.work_dir)
    summary = pseudo_label(
        PseudoLabelOptions(
            support_dir=options.labelled_dir,
            query_dir=options.unlabelled_dir,
            output_dir=work.pseudo_labels,
            sam2=options.sam2,
            sequences=options.sequences,
            device=options.device,
            resume=True,
            label=options.label,
            sequence_map=options.sequence_map,
        ),
        supports=index.labelled,
        executor=executor,
    )
    if summary.interrupted or stop:
        return None
    refuse_if_nearly_all_failed(work.pseudo_labels, [record.error for record in summary.records])
    labels = begin_round(options, work.round(1))
    page_or_warn(work)
    return labels


def current_round(options: RetrainOptions) -> RoundDir:
    """Return the round that is not finished yet."""
    work = WorkDir(options.work_dir)
    return work.round(len(work.finished_rounds()) + 1)


def begin_round(options: RetrainOptions, round_dir: RoundDir) -> tuple[PseudoLabel, ...]:
    """Return the pseudo labels that a round starts from.

    If the round is not finished, also select them and write its training data.
    """
    work = WorkDir(options.work_dir)
    index = read_index(work)
    labels = fewshot_labels(work, index.queries)
    if round_dir.number > 1:
        labels = relabelled(work.round(round_dir.number - 1), labels)
    chosen = select(round_dir, labels, options=options)
    if not round_dir.outcome.is_file():
        prepare_training(round_dir, index, pseudo=chosen, options=options)
    return labels


def finish_round(
    options: RetrainOptions,
    round_dir: RoundDir,
    *,
    labels: Sequence[PseudoLabel],
    stop: StopRequest,
    executor: Executor | None = None,
) -> Decision | None:
    """Validate a trained round, relabel the images and compare them with ``labels``.

    ``labels`` are the pseudo labels that the round started from. Returns None if it was stopped.
    """
    work = WorkDir(options.work_dir)
    index = read_index(work)
    check_trained(round_dir, options)
    scores = validate_round(round_dir, index, options=options, stop=stop, executor=executor)
    if scores is None:
        return None
    network_dice = float(np.mean([score.dice for score in scores]))
    records = relabel_round(
        round_dir,
        index,
        before=labels,
        options=options,
        trained=ever_trained(round_dir, warm_start=options.warm_start),
        fewshot_weight=weight_of_first(fewshot_dice(work), network_dice),
        stop=stop,
        executor=executor,
    )
    if records is None:
        return None
    write_record(round_dir.outcome, _figures(round_dir, scores, records, labels))
    decision = decision_so_far(options)
    assert decision is not None
    _write_rounds(options, decision)
    page_or_warn(work)
    logger.info(
        "round %d: %s; best so far: %d", round_dir.number, decision.reason, decision.best_round
    )
    return decision


def freeze(options: RetrainOptions, *, executor: Executor | None = None) -> ModelEntry:
    """Score and freeze the best round.

    Raises UsageError: no round is finished, there is no folder to freeze into, or the network is
    worse than the few-shot branch and ``options.force`` is not set.
    """
    decision = decision_so_far(options)
    if decision is None or options.weights_dir is None:
        raise UsageError(
            options.work_dir if decision is None else "--weights-out",
            reason="no round is finished" if decision is None else "it is missing",
            remedy="Run the stages before" if decision is None else "Say where to freeze to",
        )
    warning = below_fewshot(options)
    if warning is not None and not options.force:
        raise UsageError(
            options.work_dir,
            reason=f"{warning}; nothing was frozen",
            remedy="Train longer or label more, or give --force to freeze it all the same",
        )
    _write_rounds(options, decision)
    model = freeze_round(options, decision, executor=executor)
    made_of = f"round {decision.best_round}, folds {', '.join(model.folds)}"
    page_or_warn(
        WorkDir(options.work_dir), frozen=f"{model.name}: {made_of}, in {options.weights_dir}"
    )
    return model


def _round(options: RetrainOptions, stop: StopRequest, executor: Executor) -> bool:
    """Run the next round; return False if it was stopped."""
    round_dir = current_round(options)
    labels = begin_round(options, round_dir)
    if stop:
        return False
    train_folds(round_dir, options, executor=executor, stop=stop)
    if stop:
        return False
    return finish_round(options, round_dir, labels=labels, stop=stop, executor=executor) is not None


def _retry_failures(options: RetrainOptions, stop: StopRequest, executor: Executor | None) -> bool:
    """Repeat what failed in the last finished round; return False if it was stopped.

    Nothing is repeated if the next round has begun: it relabels all images anyway.
    """
    finished = WorkDir(options.work_dir).finished_rounds()
    if not finished or current_round(options).path.is_dir():
        return True
    last = finished[-1]
    if not read_state(last.outcome, RoundFigures).failed:
        return True
    labels = begin_round(options, last)
    # The round was moved aside because a label was corrected, so it starts again.
    if not last.outcome.is_file():
        return True
    return finish_round(options, last, labels=labels, stop=stop, executor=executor) is not None


def _figures(
    round_dir: RoundDir,
    scores: Sequence[FoldScore],
    records: Sequence[RelabelRecord],
    labels: Sequence[PseudoLabel],
) -> RoundFigures:
    """Return the figures of a round.

    Rejected images do not count towards the change, unless they trained: a rejected image trains
    after a person has corrected its mask.
    """
    trained = read_state(round_dir.selection, Selection).trained
    rejected = {
        label.query.name
        for label in labels
        if label.candidate.verdict == "reject" and label.query.name not in trained
    }
    counted = [
        record.change_dice
        for record, label in zip(records, labels, strict=True)
        if record.change_dice is not None and label.query.name not in rejected
    ]
    return RoundFigures(
        round=round_dir.number,
        validation_dice=round(float(np.mean([score.dice for score in scores])), 4),
        validation_hausdorff_mm=round(float(np.mean([score.hausdorff_mm for score in scores])), 2),
        change_dice=round(float(np.mean(counted)), 4) if counted else None,
        changes={
            label.query.name: record.change_dice
            for record, label in zip(records, labels, strict=True)
        },
        trained=len(trained),
        waiting=sum(
            label.query.name not in trained and label.candidate.verdict == "doubtful"
            for label in labels
        ),
        rejected=len(rejected),
        failed=sum(record.error is not None for record in records),
    )


def _write_rounds(options: RetrainOptions, decision: Decision) -> None:
    """Write the summary of all rounds for users; the program does not read it."""
    work = WorkDir(options.work_dir)
    write_record(
        work.rounds,
        {
            "rounds": finished_figures(work),
            "best_round": decision.best_round,
            "ended": decision.stop,
            "reason": decision.reason,
            "fewshot_dice": fewshot_dice(work),
            "warning": below_fewshot(options),
        },
    )


def _summary(
    options: RetrainOptions, *, model: ModelEntry | None = None, interrupted: bool = False
) -> RetrainSummary:
    work = WorkDir(options.work_dir)
    warning = below_fewshot(options)
    return RetrainSummary(
        rounds=finished_figures(work),
        decision=decision_so_far(options),
        model=model,
        problems=read_index(work).problems if work.index.is_file() else (),
        failures=failures_so_far(options),
        warning=warning,
        withheld=warning is not None and options.weights_dir is not None and model is None,
        interrupted=interrupted,
    )


def failures_so_far(options: RetrainOptions) -> tuple[str, ...]:
    """Return the errors of the few-shot branch and of the last finished round."""
    work = WorkDir(options.work_dir)
    folders: list[tuple[Path, type[PseudoLabelRecord] | type[RelabelRecord]]]
    folders = [(work.pseudo_labels, PseudoLabelRecord)]
    folders += [(last.relabelled, RelabelRecord) for last in work.finished_rounds()[-1:]]
    found = (
        read_record_or_none(pseudo_label_paths(folder, query).record, kind)
        for query in (read_index(work).queries if work.index.is_file() else ())
        for folder, kind in folders
    )
    return tuple(record.error for record in found if record is not None and record.error)
