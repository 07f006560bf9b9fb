"""A round's middle stages: nnU-Net's data set, one network a fold, their scores on expert masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sslmedsam2.errors import UsageError
from sslmedsam2.inference.device import choose_device
from sslmedsam2.pipelines.fold_scores import FoldScore, load_fold, score_fold
from sslmedsam2.pipelines.retraining.fold_jobs import FoldJob, FoldUnit
from sslmedsam2.pipelines.retraining.index import Index
from sslmedsam2.pipelines.retraining.options import RetrainOptions
from sslmedsam2.pipelines.retraining.work_dir import RoundDir, WorkDir, read_json, write_json
from sslmedsam2.refine.dataset import (
    TrainingImage,
    build_dataset,
    case_key,
    deal_out,
    make_plans,
    read_plans,
    repeats_for_share,
    write_plans,
    write_repeats,
    write_splits,
)
from sslmedsam2.refine.labels import TRAINED_LABELS_WITH_IGNORE
from sslmedsam2.refine.presets import planned_network
from sslmedsam2.refine.training import (
    preprocessed_dir,
    train_fold,
    trained_model_dir,
    worth_measuring,
)
from sslmedsam2.running.in_process import InProcessRunner
from sslmedsam2.running.job import Runner, Stop, all_or_error
from sslmedsam2.weights.layout import checkpoint_file

logger = logging.getLogger(__name__)


def hands(index: Index, *, n_folds: int) -> tuple[frozenset[str], ...]:
    """Deal all patients out to folds; a fold never trains on its own hand.

    Labelled patients are dealt first, so that each fold is judged by as many expert masks as the
    next. A patient with both labelled and unlabelled images is dealt once.
    """
    labelled = {image.case for image in index.labelled}
    unlabelled = {query.case for query in index.queries} - labelled
    return tuple(
        mine | more
        for mine, more in zip(
            deal_out(labelled, n_folds=n_folds), deal_out(unlabelled, n_folds=n_folds), strict=True
        )
    )


def prepare_training(
    step: RoundDir,
    index: Index,
    pseudo: Sequence[TrainingImage],
    options: RetrainOptions,
) -> None:
    """Write the round's data set and its splits; plans are made once and serve all rounds.

    Raises
    ------
    InputError, OutputError
        An image cannot be read, or the data set not be written.
    """
    plans_path = WorkDir(options.work_dir).plans
    images = [*index.labelled, *pseudo]
    if not plans_path.is_file():
        write_plans(plans_path, make_plans(images, options.preset))
    folder = build_dataset(
        images,
        preprocessed_dir=preprocessed_dir(step.path),
        preset=options.preset,
        labels=TRAINED_LABELS_WITH_IGNORE,
        plans=read_plans(plans_path),
    )
    write_splits(
        folder,
        [
            {
                "train": sorted(case_key(image) for image in images if image.case not in hand),
                "val": sorted(case_key(image) for image in index.labelled if image.case in hand),
            }
            for hand in hands(index, n_folds=options.folds)
        ],
    )
    if pseudo:
        write_repeats(folder, repeats_for_share(index.labelled, pseudo, share=options.expert_share))


def train_round(
    step: RoundDir, options: RetrainOptions, *, folds: Sequence[int] | None = None
) -> None:
    """Train the round's folds, or some of them; what is trained is kept, and what was stopped
    goes on.

    Raises
    ------
    ModelError
        The checkpoint to start from does not fit.
    UsageError
        The device, or so many GPUs, are not there.
    """
    from sslmedsam2.refine.several_gpus import check_gpus
    from sslmedsam2.refine.trainer import TrainingSettings

    device = choose_device(options.device)
    planned = planned_network(read_plans(WorkDir(options.work_dir).plans))
    check_gpus(options.gpus, device=device, batch_size=planned.batch_size)
    settings = TrainingSettings(
        epochs=options.epochs,
        iterations_per_epoch=options.iterations_per_epoch,
        contrast_probability=options.contrast_probability,
        measure_cpu=worth_measuring(options.epochs * options.iterations_per_epoch),
        deterministic=options.deterministic,
        seed=options.seed,
    )
    for fold in range(options.folds) if folds is None else folds:
        train_fold(
            step.path,
            fold=fold,
            settings=settings,
            device=device,
            warm_start=_warm_start(step, fold, options),
            gpus=options.gpus,
        )


def train_folds(step: RoundDir, options: RetrainOptions, *, runner: Runner, stop: Stop) -> None:
    """Train all folds of a round by a runner, until done or stopped.

    Raises
    ------
    SslMedSam2Error
        A fold could not be trained; the others are.
    """
    units = [FoldUnit(fold) for fold in range(options.folds)]
    with runner.open(FoldJob(step, options, _trained)) as session:
        all_or_error(session.run(units, stop=stop))


def _trained(step: RoundDir, options: RetrainOptions, unit: FoldUnit) -> None:
    train_round(step, options, folds=[unit.fold])


def _warm_start(step: RoundDir, fold: int, options: RetrainOptions) -> Path | None:
    """Return the same fold's network of the round before: it has not seen this hand either."""
    if step.number == 1 or not options.warm_start:
        return options.start
    before = WorkDir(options.work_dir).round(step.number - 1)
    return trained_model_dir(before.path) / checkpoint_file(str(fold))


def check_trained(step: RoundDir, options: RetrainOptions) -> None:
    """Raise :class:`UsageError` if a fold of the round is not trained to its end."""
    for fold in range(options.folds):
        if not (trained_model_dir(step.path) / checkpoint_file(str(fold))).is_file():
            raise UsageError(
                step.path,
                reason=f"fold {fold} is not trained yet",
                remedy="Run refine train, or retrain, to its end",
            )


def validate_round(
    step: RoundDir, index: Index, options: RetrainOptions, *, runner: Runner | None = None
) -> tuple[FoldScore, ...]:
    """Score each fold on the expert masks it never saw; kept when done.

    Raises
    ------
    ModelError, InputError
        A network or an image cannot be read.
    """
    if step.validation.is_file():
        return tuple(FoldScore(**score) for score in read_json(step.validation))
    units = [
        FoldUnit(fold, tuple(image for image in index.labelled if image.case in hand))
        for fold, hand in enumerate(hands(index, n_folds=options.folds))
    ]
    with (runner or InProcessRunner()).open(FoldJob(step, options, _scored)) as session:
        found = all_or_error(session.run(units, stop=False))
    by_fold = {unit.fold: scores for unit, scores in found}
    scores = [score for unit in units for score in by_fold[unit.fold]]
    write_json(step.validation, [asdict(score) for score in scores])
    return tuple(scores)


def _scored(step: RoundDir, options: RetrainOptions, unit: FoldUnit) -> list[FoldScore]:
    model_dir = trained_model_dir(step.path)
    segmenter = load_fold(model_dir, fold=unit.fold, device=options.device)
    return score_fold(unit.held_out, segmenter=segmenter, fold=unit.fold)
