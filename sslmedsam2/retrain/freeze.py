"""The last stage: the best round's networks become a model that ``predict`` serves."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from sslmedsam2.nnunet.training import trained_model_dir
from sslmedsam2.retrain.index import check_final, read_index
from sslmedsam2.retrain.options import RetrainOptions
from sslmedsam2.retrain.selection import Decision
from sslmedsam2.retrain.state import WorkDir, read_json
from sslmedsam2.weights.checkpoint import average_checkpoints
from sslmedsam2.weights.freeze import freeze_model
from sslmedsam2.weights.manifest import ANY_SEQUENCE, ModelCard, ModelEntry

_AVERAGE = "average"


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
    scores = read_json(round_dir.validation)
    training_dir = trained_model_dir(round_dir.path)
    return freeze_model(
        training_dir,
        options.weights_dir,
        name=options.name,
        sequences=options.sequences or (ANY_SEQUENCE,),
        folds=_folds(options, training_dir, scores),
        half=True,
        card=_card(options, decision, scores),
    )


def _folds(
    options: RetrainOptions, training_dir: Path, scores: list[dict[str, Any]]
) -> tuple[str, ...]:
    if options.final == "ensemble":
        return tuple(str(fold) for fold in range(options.folds))
    if options.final == "best-fold":
        means = {
            fold: np.mean([score["dice"] for score in scores if score["fold"] == fold])
            for fold in range(options.folds)
        }
        return (str(max(means, key=lambda fold: means[fold])),)
    return (_average(options, training_dir),)


def _average(options: RetrainOptions, training_dir: Path) -> str:
    """Write one checkpoint with the mean of all folds' weights (model soups, arXiv:2203.05482)."""
    folders = [training_dir / f"fold_{fold}" for fold in range(options.folds)]
    average_checkpoints(
        [folder / "checkpoint_final.pth" for folder in folders],
        training_dir / f"fold_{_AVERAGE}" / "checkpoint_final.pth",
    )
    return _AVERAGE


def _card(options: RetrainOptions, decision: Decision, scores: list[dict[str, Any]]) -> ModelCard:
    work = WorkDir(options.work_dir)
    index, rounds = read_index(work), read_json(work.rounds)["rounds"]
    best = rounds[decision.best_round - 1]
    recipe = (
        f"sslmedsam2 retrain: {len(index.labelled)} labelled and {len(index.queries)} unlabelled "
        f"images, {best['trained']} pseudo labels in the frozen round, {len(rounds)} round(s), "
        f"round {decision.best_round} frozen as {options.final} ({decision.reason}); "
        f"{options.folds} folds of {options.epochs} epochs of {options.iterations_per_epoch} "
        "iterations"
    )
    measured = {
        "validation_images": float(len(scores)),
        "validation_dice": best["validation_dice"],
        "validation_hausdorff_mm": best["validation_hausdorff_mm"],
    }
    return ModelCard(
        training_data=options.training_data,
        recipe=recipe,
        licence=options.licence,
        created=datetime.now(timezone.utc).date().isoformat(),
        measured=measured,
    )
