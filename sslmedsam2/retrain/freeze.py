"""Last stage: freeze the networks of the best round as a model for ``predict``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import numpy as np

from sslmedsam2.nnunet.training import trained_model_dir
from sslmedsam2.retrain.index import check_final, read_index, served_by
from sslmedsam2.retrain.options import RetrainOptions
from sslmedsam2.retrain.select import fewshot_dice
from sslmedsam2.retrain.selection import Decision
from sslmedsam2.retrain.state import WorkDir, decision_so_far, finished_figures, read_state
from sslmedsam2.train.fold_scores import FoldScore
from sslmedsam2.weights.checkpoint import average_checkpoints
from sslmedsam2.weights.freeze import freeze_model
from sslmedsam2.weights.manifest import ModelCard, ModelEntry

_AVERAGE_FOLD: Final = "all"
"""nnU-Net knows numbered folds and this one, and loads no other."""


def below_fewshot(options: RetrainOptions) -> str | None:
    """Say so if the best round's networks are worse than the few-shot branch they learned from.

    Both by their Dice on reference masks that they had not seen. None if they are not worse, or
    that is not known.
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


def freeze_round(options: RetrainOptions, decision: Decision) -> ModelEntry:
    """Freeze the best round as ``options.final`` says, with a card made from its records.

    Raises
    ------
    UsageError
        The mean of weights is asked for that have no common start.
    ModelError
        A checkpoint is missing or unusable.
    OutputError
        The model cannot be written.
    """
    assert options.weights_dir is not None
    check_final(options)
    round_dir = WorkDir(options.work_dir).round(decision.best_round)
    scores = read_state(round_dir.validation, tuple[FoldScore, ...])
    training_dir = trained_model_dir(round_dir.path)
    folds = _folds(options, training_dir, scores)
    if options.final == "best-fold":
        scores = tuple(score for score in scores if str(score.fold) in folds)
    return freeze_model(
        training_dir,
        options.weights_dir,
        name=options.name,
        sequences=served_by(options),
        folds=folds,
        half=True,
        card=_card(options, decision, scores),
    )


def _folds(
    options: RetrainOptions, training_dir: Path, scores: Sequence[FoldScore]
) -> tuple[str, ...]:
    if options.final == "ensemble":
        return tuple(str(fold) for fold in range(options.folds))
    if options.final == "best-fold":
        means = {
            fold: np.mean([score.dice for score in scores if score.fold == fold])
            for fold in range(options.folds)
        }
        return (str(max(means, key=lambda fold: means[fold])),)
    return (_average(options, training_dir),)


def _average(options: RetrainOptions, training_dir: Path) -> str:
    """Write one checkpoint with the mean of all folds' weights (model soups, arXiv:2203.05482)."""
    folders = [training_dir / f"fold_{fold}" for fold in range(options.folds)]
    average_checkpoints(
        [folder / "checkpoint_final.pth" for folder in folders],
        training_dir / f"fold_{_AVERAGE_FOLD}" / "checkpoint_final.pth",
    )
    return _AVERAGE_FOLD


def _card(options: RetrainOptions, decision: Decision, scores: Sequence[FoldScore]) -> ModelCard:
    """Describe what is frozen; ``scores`` are of its folds, each on patients it never saw."""
    work = WorkDir(options.work_dir)
    index, rounds = read_index(work), finished_figures(work)
    best = rounds[decision.best_round - 1]
    scored = "that fold" if options.final == "best-fold" else "the single folds"
    recipe = (
        f"sslmedsam2 retrain: {len(index.labelled)} labelled and {len(index.queries)} unlabelled "
        f"images, {best.trained} pseudo labels in the frozen round, {len(rounds)} round(s), "
        f"round {decision.best_round} frozen as {options.final} ({decision.reason}); "
        f"{options.folds} folds of {options.epochs} epochs of {options.iterations_per_epoch} "
        f"iterations; validation figures are of {scored}, each on patients that it did not train on"
    )
    measured = {
        "validation_images": float(len(scores)),
        "validation_dice": round(float(np.mean([score.dice for score in scores])), 4),
        "validation_hausdorff_mm": round(float(np.mean([s.hausdorff_mm for s in scores])), 2),
    }
    if (fewshot := fewshot_dice(work)) is not None:
        measured["fewshot_dice"] = round(fewshot, 4)
    return ModelCard(
        training_data=options.training_data,
        recipe=recipe,
        licence=options.licence,
        created=datetime.now(timezone.utc).date().isoformat(),
        measured=measured,
    )
