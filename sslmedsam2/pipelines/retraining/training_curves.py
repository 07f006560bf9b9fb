"""How each fold's training went, out of the log that nnU-Net keeps in its checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from sslmedsam2.errors import ModelError
from sslmedsam2.pipelines.retraining.work_dir import RoundDir
from sslmedsam2.refine.training import trained_model_dir
from sslmedsam2.reporting.retrain_page_data import FoldTraining
from sslmedsam2.weights.checkpoint import read_checkpoint
from sslmedsam2.weights.layout import checkpoint_file

logger = logging.getLogger(__name__)

_LATEST: Final = "checkpoint_latest.pth"
"""Of a training that goes on, or was stopped."""


def read_trainings(step: RoundDir, *, n_folds: int) -> tuple[FoldTraining, ...]:
    """Read the curves of the folds that have a checkpoint; a damaged one is passed over."""
    if not step.path.is_dir():
        return ()
    found = (_training(trained_model_dir(step.path), fold) for fold in range(n_folds))
    return tuple(training for training in found if training is not None)


def _training(model_dir: Path, fold: int) -> FoldTraining | None:
    final = model_dir / checkpoint_file(str(fold))
    path = final if final.is_file() else final.with_name(_LATEST)
    if not path.is_file():
        return None
    try:
        log = read_checkpoint(path)["logging"]
        return FoldTraining(
            fold,
            train_loss=_figures(log["train_losses"]),
            held_out_loss=_figures(log["val_losses"]),
            held_out_dice=_figures(log["mean_fg_dice"]),
            learning_rate=_figures(log["lrs"]),
        )
    except (ModelError, LookupError, TypeError, ValueError) as error:
        logger.warning("%s: its training curves cannot be read (%s)", path, error)
        return None


def _figures(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
