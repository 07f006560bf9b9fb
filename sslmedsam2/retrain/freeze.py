"""Last stage: freeze the networks of the best round as a model for ``predict``."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import Executor, ThisProcess, map_units
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.records import key_of, read_record_or_none, utc_date, write_record
from sslmedsam2.inference.confidence import Calibration
from sslmedsam2.nnunet.training import final_checkpoint, trained_model_dir
from sslmedsam2.retrain.index import check_final, read_index, served_by
from sslmedsam2.retrain.select import fewshot_dice
from sslmedsam2.retrain.state import (
    RetrainOptions,
    RoundDir,
    WorkDir,
    decision_so_far,
    finished_figures,
    read_state,
)
from sslmedsam2.retrain.stopping import Decision
from sslmedsam2.retrain.train_round import FoldUnit, FoldWork, fold_units
from sslmedsam2.train.calibration import (
    LEAST_PATIENTS,
    Observation,
    add_calibration,
    fit_if_enough,
    observe_images,
)
from sslmedsam2.train.fold_scores import FoldScore, load_folds, score_fold
from sslmedsam2.weights.checkpoint import average_checkpoints
from sslmedsam2.weights.freeze import freeze_model, move_model
from sslmedsam2.weights.locate import locate_models
from sslmedsam2.weights.manifest import ModelCard, ModelEntry

logger = logging.getLogger(__name__)

_AVERAGE_FOLD: Final = "all"
"""nnU-Net knows numbered folds and this one, and loads no other."""


def below_fewshot(options: RetrainOptions) -> str | None:
    """Return a warning if the best round's networks are worse than the few-shot branch.

    Both are compared by their Dice on reference masks that they had not seen. None if the networks
    are not worse, or it is not known.
    """
    work = WorkDir(options.work_dir)
    decision, fewshot = decision_so_far(options), fewshot_dice(work)
    if decision is None or fewshot is None:
        return None
    best = finished_figures(work)[decision.best_round - 1].validation_dice
    if best >= fewshot - options.rule.tolerance:
        return None
    return (
        f"the best network (round {decision.best_round}, Dice {best:.3f} on reference masks) is "
        f"worse than the few-shot branch that it learned from (Dice {fewshot:.3f})"
    )


@dataclass(frozen=True)
class FrozenScores:
    """Scores and calibration of a frozen model.

    ``key`` is equal for the same weights and images; ``calibration`` is None if too few patients
    are labelled.
    """

    key: str
    scores: tuple[FoldScore, ...]
    calibration: Calibration | None = None


def freeze_round(
    options: RetrainOptions, decision: Decision, *, executor: Executor | None = None
) -> ModelEntry:
    """Score and freeze the best round; ``options.final`` decides which networks.

    The frozen weights are scored: in half precision, and all folds together. The model card holds
    these figures beside those of the single folds. The estimated Dice is calibrated on the
    predictions of each fold for its held-out patients.

    Raises
    ------
    UsageError
        A mean of weights without a common start is asked for, or the device does not exist.
    ModelError
        A checkpoint is missing or unusable.
    InputError
        A labelled image can no longer be read.
    OutputError
        The model cannot be written.
    """
    assert options.weights_dir is not None
    check_final(options)
    round_dir = WorkDir(options.work_dir).round(decision.best_round)
    scores = read_state(round_dir.validation, tuple[FoldScore, ...])
    folds = _folds(options, round_dir, scores)
    index = read_index(WorkDir(options.work_dir))
    images = index.labelled
    # All folds but one have trained on an image: only a single fold can be scored on unseen ones.
    if options.final == "best-fold":
        images = fold_units(index, options)[int(folds[0])].held_out
        scores = tuple(score for score in scores if str(score.fold) in folds)

    # In the work directory, where the workers of a cluster see it.
    with tempfile.TemporaryDirectory(dir=round_dir.path, prefix=".frozen-") as folder:
        unscored = replace(options, weights_dir=Path(folder))
        entry = freeze_model(
            trained_model_dir(round_dir.path),
            Path(folder),
            name=options.name,
            sequences=served_by(options),
            folds=folds,
            half=True,
            card=ModelCard("", "", "", ""),
        )
        frozen = _score_as_frozen(round_dir, entry, images, unscored, executor=executor)
        if frozen.calibration is not None:
            add_calibration(Path(folder) / entry.name, frozen.calibration, folds=folds)
        entry = replace(entry, card=_card(options, decision, scores, frozen.scores))
        return move_model(Path(folder) / entry.name, options.weights_dir, entry)


def _score_as_frozen(
    round_dir: RoundDir,
    entry: ModelEntry,
    images: tuple[ImageFile, ...],
    options: RetrainOptions,
    *,
    executor: Executor | None,
) -> FrozenScores:
    """Score and calibrate the model in ``options.weights_dir``; an earlier result is kept."""
    key = key_of([[file.sha256 for file in entry.files], [image.name for image in images]])
    found = read_record_or_none(round_dir.frozen, FrozenScores)
    if found is not None and found.key == key:
        return found
    executor, stop = executor or ThisProcess(), StopRequest()
    work = FoldWork(round_dir, options, score_frozen)
    [(_, scores)] = map_units(work, [FoldUnit(0, images)], stop=stop, executor=executor)
    units = fold_units(read_index(WorkDir(options.work_dir)), options)
    observations: list[Observation] = []
    if len({image.case for unit in units for image in unit.held_out}) >= LEAST_PATIENTS:
        observing = FoldWork(round_dir, options, observe_fold)
        by_fold = {u.fold: o for u, o in map_units(observing, units, stop=stop, executor=executor)}
        observations = [one for unit in units for one in by_fold[unit.fold]]
    found = FrozenScores(key, tuple(scores), fit_if_enough(observations))
    write_record(round_dir.frozen, found)
    return found


def score_frozen(
    _round_dir: RoundDir, options: RetrainOptions, unit: FoldUnit, _stop: StopRequest
) -> list[FoldScore]:
    """Score the model in ``options.weights_dir`` as ``predict`` would use it."""
    [model] = locate_models(options.weights_dir)
    segmenter = load_folds(model.path, folds=model.folds, device=options.device)
    return score_fold(unit.held_out, segmenter=segmenter, fold=None)


def observe_fold(
    round_dir: RoundDir, options: RetrainOptions, unit: FoldUnit, _stop: StopRequest
) -> list[Observation]:
    """Observe a fold's predictions for its held-out patients and for degraded copies of them."""
    model_dir = trained_model_dir(round_dir.path)
    segmenter = load_folds(model_dir, folds=[unit.fold], device=options.device)
    return observe_images(unit.held_out, segmenter=segmenter)


def _folds(
    options: RetrainOptions, round_dir: RoundDir, scores: Sequence[FoldScore]
) -> tuple[str, ...]:
    if options.final == "ensemble":
        return tuple(str(fold) for fold in range(options.folds))
    if options.final == "best-fold":
        means = {
            fold: np.mean([score.dice for score in scores if score.fold == fold])
            for fold in range(options.folds)
        }
        return (str(max(means, key=lambda fold: means[fold])),)
    # The mean of all folds' weights: model soups, arXiv:2203.05482.
    average_checkpoints(
        [final_checkpoint(round_dir.path, fold) for fold in range(options.folds)],
        final_checkpoint(round_dir.path, _AVERAGE_FOLD),
    )
    return (_AVERAGE_FOLD,)


def _card(
    options: RetrainOptions,
    decision: Decision,
    scores: Sequence[FoldScore],
    frozen: Sequence[FoldScore],
) -> ModelCard:
    """Return the model card; ``scores`` are those of single folds, ``frozen`` of the model."""
    work = WorkDir(options.work_dir)
    index, rounds = read_index(work), finished_figures(work)
    best = rounds[decision.best_round - 1]
    scored, seen = "that fold", "none of which it trained on"
    if options.final != "best-fold":
        scored, seen = "the single folds", "which all folds but one trained on"
    recipe = (
        f"sslmedsam2 retrain --method {options.method}: {len(index.labelled)} labelled and "
        f"{len(index.queries)} unlabelled images, {best.trained} pseudo labels in the frozen "
        f"round, {len(rounds)} round(s), "
        f"round {decision.best_round} frozen as {options.final} ({decision.reason}); "
        f"{options.folds} folds of {options.epochs} epochs of {options.iterations_per_epoch} "
        f"iterations; validation figures are of {scored}, each on patients that it never saw; "
        f"frozen figures are of this model as it is, on {len(frozen)} labelled images, {seen}"
    )
    frozen_dice = float(np.mean([score.dice for score in frozen]))
    validation_dice = float(np.mean([score.dice for score in scores]))
    if frozen_dice < validation_dice - options.rule.tolerance:
        logger.warning(
            "the frozen model has Dice %.4f on labelled images, its folds had %.4f on images that "
            "they had not seen: freeze another --final",
            frozen_dice,
            validation_dice,
        )
    measured = {
        "validation_images": float(len(scores)),
        "validation_dice": round(validation_dice, 4),
        "validation_hausdorff_mm": round(float(np.mean([s.hausdorff_mm for s in scores])), 2),
        "frozen_dice": round(frozen_dice, 4),
    }
    if (fewshot := fewshot_dice(work)) is not None:
        measured["fewshot_dice"] = round(fewshot, 4)
    return ModelCard(
        training_data=options.training_data,
        recipe=recipe,
        licence=options.licence,
        created=utc_date(),
        measured=measured,
    )
