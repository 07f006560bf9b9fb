"""``train``: labelled volumes to cross-validated, frozen weights.

Cross-validation folds come first; each is scored on the cases it never saw. Then one network is
trained on every case, warm-started from the first fold, and that one is frozen: the folds' scores
say what the recipe is worth, the final network has seen all the data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.errors import UsageError
from sslmedsam2.evaluation.metrics import measure
from sslmedsam2.imaging.atomic import write_text_atomic
from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.refine.dataset import (
    TrainingImage,
    alternating_splits,
    build_dataset,
    case_key,
    load_labelled,
    write_splits,
)
from sslmedsam2.refine.labels import LIVER
from sslmedsam2.refine.plans import CompactPreset
from sslmedsam2.refine.training import preprocessed_dir, train_fold, trained_model_dir

if TYPE_CHECKING:
    from sslmedsam2.refine.trainer import TrainingSettings

logger = logging.getLogger(__name__)

FINAL_FOLD = "all"
_AS_IS = Reorientation(axes=(0, 1, 2), flipped_axes=())


@dataclass(frozen=True)
class TrainOptions:
    """What ``train`` is asked to do.

    Attributes
    ----------
    data_dir
        Case folders with ``<SEQ>.nii.gz``, ``mask_<SEQ>.nii.gz`` and, optionally,
        ``organs_<SEQ>.nii.gz``.
    folds
        Cross-validation folds; 0 trains the final network only.
    epochs, final_epochs
        Length of each fold and of the final network.
    weights_dir
        Where to freeze the final network under ``name``; None to leave it in ``work_dir``.
    """

    data_dir: Path
    work_dir: Path
    folds: int = 2
    epochs: int = 28
    final_epochs: int = 18
    iterations_per_epoch: int = 50
    device: str = "cpu"
    weights_dir: Path | None = None
    name: str = "liver"
    training_data: str = "not stated"
    licence: str = "not stated"


@dataclass(frozen=True)
class FoldScore:
    """How a fold's network did on one case that it never saw."""

    case: str
    fold: int
    dice: float
    hausdorff_mm: float
    hausdorff95_mm: float


def train(options: TrainOptions) -> tuple[FoldScore, ...]:
    """Train, score, freeze; every finished part is kept when the command is run again.

    Returns the cross-validation scores, which are also written to
    ``work_dir/cross_validation.json``.

    Raises
    ------
    UsageError
        Too few labelled images, or fewer than ``folds``.
    InputError, ModelError
        See the rooms ``refine`` and ``weights``.
    """
    images = _training_images(options)
    folder = build_dataset(
        images, preprocessed_dir=preprocessed_dir(options.work_dir), preset=CompactPreset()
    )
    splits = alternating_splits([case_key(image) for image in images], n_folds=options.folds)
    write_splits(folder, splits)
    settings = _settings(options)
    for fold in range(options.folds):
        train_fold(options.work_dir, fold=fold, settings=settings, device=options.device)
    scores = _cross_validate(images, splits=splits, options=options)
    first = trained_model_dir(options.work_dir) / "fold_0" / "checkpoint_final.pth"
    train_fold(
        options.work_dir,
        fold=FINAL_FOLD,
        settings=replace(settings, epochs=options.final_epochs),
        device=options.device,
        warm_start=first if options.folds else None,
    )
    if options.weights_dir is not None:
        _freeze(options, scores=scores, n_images=len(images))
    return scores


def _training_images(options: TrainOptions) -> list[TrainingImage]:
    images = [TrainingImage(**asdict(series)) for series in find_labelled_series(options.data_dir)]
    if options.folds and len(images) < 2 * options.folds:
        raise UsageError(
            options.data_dir,
            reason=f"{len(images)} labelled image(s) are too few for {options.folds} folds",
            remedy="Lower --folds, or add case folders with <SEQ>.nii.gz and mask_<SEQ>.nii.gz",
        )
    return images


def _settings(options: TrainOptions) -> TrainingSettings:
    from sslmedsam2.refine.trainer import TrainingSettings

    return TrainingSettings(
        epochs=options.epochs, iterations_per_epoch=options.iterations_per_epoch
    )


def _cross_validate(
    images: Sequence[TrainingImage],
    *,
    splits: Sequence[dict[str, list[str]]],
    options: TrainOptions,
) -> tuple[FoldScore, ...]:
    from sslmedsam2.inference.model_folder import read_model_spec
    from sslmedsam2.inference.segmenter import EngineOptions, LiverSegmenter

    by_key = {case_key(image): image for image in images}
    scores = []
    for fold, split in enumerate(splits):
        spec = replace(read_model_spec(trained_model_dir(options.work_dir)), folds=(str(fold),))
        segmenter = LiverSegmenter(spec, EngineOptions(device="auto"))
        for key in split["val"]:
            truth = load_labelled(by_key[key])
            volume = CanonicalVolume(truth.image_zyx, truth.spacing_zyx_mm, _AS_IS)
            found = measure(
                segmenter.segment(volume).mask_zyx,
                truth.labels_zyx == LIVER,
                spacing_zyx_mm=truth.spacing_zyx_mm,
            )
            scores.append(
                FoldScore(
                    case=by_key[key].case,
                    fold=fold,
                    dice=round(found.dice, 4),
                    hausdorff_mm=round(found.hausdorff_mm, 2),
                    hausdorff95_mm=round(found.hausdorff95_mm, 2),
                )
            )
            logger.info("fold %d, %s: Dice %.4f", fold, key, found.dice)
    text = json.dumps([asdict(score) for score in scores], indent=1)
    write_text_atomic(options.work_dir / "cross_validation.json", text + "\n")
    return tuple(scores)


def _freeze(options: TrainOptions, *, scores: Sequence[FoldScore], n_images: int) -> None:
    from sslmedsam2.weights.freeze import freeze_model
    from sslmedsam2.weights.manifest import ANY_SEQUENCE, ModelCard

    assert options.weights_dir is not None
    measured = {}
    if scores:
        measured = {
            "cross_validation_cases": float(len(scores)),
            "cross_validation_dice": float(np.mean([score.dice for score in scores])),
            "cross_validation_hausdorff_mm": float(np.mean([s.hausdorff_mm for s in scores])),
        }
    recipe = (
        f"sslmedsam2 train: compact preset, {n_images} labelled images, {options.folds} folds of "
        f"{options.epochs} epochs, final network of {options.final_epochs} epochs, "
        f"{options.iterations_per_epoch} iterations each"
    )
    freeze_model(
        trained_model_dir(options.work_dir),
        options.weights_dir,
        name=options.name,
        sequences=(ANY_SEQUENCE,),
        folds=(FINAL_FOLD,),
        half=True,
        card=ModelCard(
            training_data=options.training_data,
            recipe=recipe,
            licence=options.licence,
            created=datetime.now(timezone.utc).date().isoformat(),
            measured={name: round(value, 4) for name, value in measured.items()},
        ),
    )
