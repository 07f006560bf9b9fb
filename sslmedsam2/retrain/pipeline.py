"""The whole loop: index, pseudo labels, rounds, freeze. Each stage is kept when it was done before,
so that the same command goes on wherever it was stopped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sslmedsam2.errors import ExitCode, UsageError
from sslmedsam2.execution.in_process import InProcessRunner
from sslmedsam2.execution.interrupt import StopRequest, stop_on_signals
from sslmedsam2.execution.units import Runner
from sslmedsam2.pseudo_label.pipeline import PseudoLabelOptions, pseudo_label
from sslmedsam2.retrain.freeze import freeze_round
from sslmedsam2.retrain.index import Index, index_data, read_index
from sslmedsam2.retrain.options import RetrainOptions, from_record
from sslmedsam2.retrain.page import report_or_warn
from sslmedsam2.retrain.relabel import relabel_round
from sslmedsam2.retrain.select import (
    PseudoLabel,
    fewshot_dice,
    fewshot_labels,
    relabelled,
    select,
)
from sslmedsam2.retrain.selection import Decision, RoundFigures, weight_of_first
from sslmedsam2.retrain.state import (
    RelabelRecord,
    RoundDir,
    WorkDir,
    decision_so_far,
    finished_figures,
    read_json,
    write_json,
)
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
    """

    rounds: tuple[RoundFigures, ...]
    decision: Decision | None
    model: ModelEntry | None
    problems: tuple[str, ...]
    interrupted: bool

    @property
    def exit_code(self) -> ExitCode:
        """What the command ends with."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        return ExitCode.SOME_CASES_FAILED if self.problems else ExitCode.OK


def retrain(options: RetrainOptions, *, runner: Runner | None = None) -> RetrainSummary:
    """Do everything, or what is left of it; ``runner`` does volumes and folds, None for this
    process.

    Raises
    ------
    NoInputError, InputError, UsageError
        The set-up cannot work; said before anything long starts.
    ModelError
        There is no such SAM2, or a checkpoint is damaged or does not fit.
    OutputError
        The work directory or the weights cannot be written.
    """
    with stop_on_signals() as stop:
        labels = plan(options, stop, runner=runner)
        if labels is None:
            return _summary(options, interrupted=True)
        while (decision := decision_so_far(options)) is None or not decision.stop:
            if not _round(options, stop, runner or InProcessRunner()):
                return _summary(options, interrupted=True)
    model = freeze(options) if options.weights_dir is not None else None
    return _summary(options, model=model)


def plan(
    options: RetrainOptions, stop: StopRequest, *, runner: Runner | None = None
) -> tuple[PseudoLabel, ...] | None:
    """Index the data, make pseudo labels and plan the first round; None if it was stopped."""
    index = index_data(options)
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
        ),
        supports=index.labelled,
        runner=runner,
    )
    if summary.interrupted or stop:
        return None
    labels = fewshot_labels(work, index.queries)
    round_dir = work.round(1)
    chosen = select(round_dir, labels, options)
    if not round_dir.outcome.is_file():
        prepare_training(round_dir, index, chosen, options)
    report_or_warn(work)
    return labels


def options_of(work: WorkDir) -> RetrainOptions:
    """Read what a work directory was begun with; raises UsageError."""
    return from_record(read_json(work.options), work_dir=work.path)


def newest_labels(work: WorkDir, index: Index, *, before: int) -> tuple[PseudoLabel, ...]:
    """Return the pseudo labels that round ``before`` starts from."""
    labels = fewshot_labels(work, index.queries)
    if before == 1:
        return labels
    return relabelled(work.round(before - 1), labels)


def current_round(work: WorkDir) -> RoundDir:
    """Return the round that is not finished yet."""
    return work.round(len(work.finished_rounds()) + 1)


@dataclass(frozen=True)
class BegunRound:
    """A round that is ready to be trained, and the pseudo labels that it starts from."""

    round_dir: RoundDir
    index: Index
    labels: tuple[PseudoLabel, ...]


def begin_round(options: RetrainOptions) -> BegunRound:
    """Select and export what the unfinished round trains on, as far as that is not done."""
    work = WorkDir(options.work_dir)
    index, round_dir = read_index(work), current_round(work)
    labels = newest_labels(work, index, before=round_dir.number)
    prepare_training(round_dir, index, select(round_dir, labels, options), options)
    return BegunRound(round_dir, index, labels)


def finish_round(
    begun: BegunRound, options: RetrainOptions, stop: StopRequest, *, runner: Runner | None = None
) -> Decision | None:
    """Validate, re-predict and compare a trained round; None if it was stopped."""
    round_dir, labels = begun.round_dir, begun.labels
    check_trained(round_dir, options)
    scores = validate_round(round_dir, begun.index, options, runner=runner)
    trained = frozenset(
        choice["name"] for choice in read_json(round_dir.selection)["choices"] if choice["trains"]
    )
    dice = float(np.mean([score.dice for score in scores]))
    records = relabel_round(
        round_dir,
        begun.index,
        labels,
        options,
        trained=trained,
        fewshot_weight=weight_of_first(fewshot_dice(WorkDir(options.work_dir)), dice),
        stop=stop,
        runner=runner,
    )
    if records is None:
        return None
    write_json(round_dir.outcome, _outcome(round_dir, scores, records, labels))
    decision = decision_so_far(options)
    assert decision is not None
    _write_rounds(options, decision)
    report_or_warn(WorkDir(options.work_dir))
    logger.info(
        "round %d: %s; best so far: %d", round_dir.number, decision.reason, decision.best_round
    )
    return decision


def freeze(options: RetrainOptions) -> ModelEntry:
    """Freeze the best round.

    Raises
    ------
    UsageError
        No round is finished, or there is no folder to freeze into.
    """
    decision = decision_so_far(options)
    if decision is None or options.weights_dir is None:
        raise UsageError(
            options.work_dir if decision is None else "--weights-out",
            reason="no round is finished" if decision is None else "it is missing",
            remedy="Run the stages before" if decision is None else "Say where to freeze to",
        )
    model = freeze_round(options, decision)
    made_of = f"round {decision.best_round}, folds {', '.join(model.folds)}"
    report_or_warn(
        WorkDir(options.work_dir), frozen=f"{model.name}: {made_of}, in {options.weights_dir}"
    )
    return model


def _round(options: RetrainOptions, stop: StopRequest, runner: Runner) -> bool:
    """Do the next round; False if it was stopped."""
    begun = begin_round(options)
    if stop:
        return False
    train_folds(begun.round_dir, options, runner=runner, stop=stop)
    return not stop and finish_round(begun, options, stop, runner=runner) is not None


def _outcome(
    round_dir: RoundDir,
    scores: Sequence[FoldScore],
    records: Sequence[RelabelRecord],
    labels: Sequence[PseudoLabel],
) -> dict[str, Any]:
    """Sum a round up; rejected images, which never train, do not count towards the change."""
    counted = [
        record.change_dice
        for record, label in zip(records, labels, strict=True)
        if record.change_dice is not None and label.candidate.verdict != "reject"
    ]
    return {
        "round": round_dir.number,
        "validation_dice": round(float(np.mean([score.dice for score in scores])), 4),
        "validation_hausdorff_mm": round(
            float(np.mean([score.hausdorff_mm for score in scores])), 2
        ),
        "change_dice": round(float(np.mean(counted)), 4) if counted else None,
        "changes": {
            label.query.name: record.change_dice
            for record, label in zip(records, labels, strict=True)
        },
        "trained": sum(record.trained for record in records),
        "waiting": sum(
            not record.trained and label.candidate.verdict == "doubtful"
            for record, label in zip(records, labels, strict=True)
        ),
        "rejected": sum(label.candidate.verdict == "reject" for label in labels),
        "failed": sum(record.error is not None for record in records),
    }


def _write_rounds(options: RetrainOptions, decision: Decision) -> None:
    work = WorkDir(options.work_dir)
    write_json(
        work.rounds,
        {
            "rounds": [read_json(round_dir.outcome) for round_dir in work.finished_rounds()],
            "best_round": decision.best_round,
            "ended": decision.stop,
            "reason": decision.reason,
        },
    )


def _summary(
    options: RetrainOptions, *, model: ModelEntry | None = None, interrupted: bool = False
) -> RetrainSummary:
    work = WorkDir(options.work_dir)
    index = read_index(work) if work.index.is_file() else Index((), (), (), None)
    return RetrainSummary(
        rounds=finished_figures(work),
        decision=decision_so_far(options),
        model=model,
        problems=index.problems,
        interrupted=interrupted,
    )
