"""A round's first stage: choose pseudo labels, and write the masks that it trains on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sslmedsam2.imaging.reading import read_mask, read_volume
from sslmedsam2.imaging.writing import write_labels
from sslmedsam2.pipelines.retraining.index import Query
from sslmedsam2.pipelines.retraining.labels import PseudoLabel
from sslmedsam2.pipelines.retraining.options import RetrainOptions
from sslmedsam2.pipelines.retraining.work_dir import (
    RoundDir,
    WorkDir,
    key_of,
    read_json,
    write_json,
)
from sslmedsam2.refine.dataset import TrainingImage
from sslmedsam2.refine.labels import IGNORE, UNSURE_LIVER
from sslmedsam2.refine.selection import choose, none_of, training_labels

logger = logging.getLogger(__name__)


def select(
    step: RoundDir, labels: Sequence[PseudoLabel], options: RetrainOptions
) -> tuple[TrainingImage, ...]:
    """Choose, write the training masks, and return what trains beside the expert masks.

    A selection that was made from the same labels is kept. If they have changed, by hand for
    instance, whatever the round had made of them goes.

    Raises
    ------
    InputError, OutputError
        A pseudo label cannot be read, or a training mask not be written.
    """
    candidates = [label.candidate for label in labels]
    if options.experts_first and step.number == 1:
        choices = none_of(candidates)
    else:
        choices = choose(candidates, agreement_needed=options.agreement_needed)
    chosen = [label for label, choice in zip(labels, choices, strict=True) if choice.trains]
    key = key_of(
        [
            options.ignore_above,
            [asdict(choice) for choice in choices],
            [label.key for label in labels],
        ]
    )
    if step.selection.is_file() and read_json(step.selection)["key"] == key:
        return tuple(_training_image(step, label.query) for label in chosen)
    if step.path.exists():
        logger.warning("%s is made anew: the labels it starts from have changed", step.path)
    # Later rounds go too: they came from this one. The last goes first, so that a kill in between
    # leaves no gap, behind which none would be found.
    for outdated in (*reversed(WorkDir(step.path.parent).rounds_after(step)), step):
        shutil.rmtree(outdated.path, ignore_errors=True)
    ignored = {label.query.name: _write_training_mask(step, label, options) for label in chosen}
    write_json(
        step.selection,
        {
            "key": key,
            "choices": [
                {**asdict(choice), "ignored": ignored.get(choice.name)} for choice in choices
            ],
        },
    )
    logger.info("round %d: %d of %d pseudo labels train", step.number, len(chosen), len(labels))
    return tuple(_training_image(step, label.query) for label in chosen)


def _training_image(step: RoundDir, query: Query) -> TrainingImage:
    return TrainingImage(
        case=query.case,
        sequence=query.training_sequence,
        image_path=query.path,
        mask_path=_training_mask_path(step, query),
        organs_path=None,
        pseudo=True,
    )


def _training_mask_path(step: RoundDir, query: Query) -> Path:
    return step.training_masks / query.case / f"{query.training_sequence}_train.nii.gz"


def _write_training_mask(step: RoundDir, label: PseudoLabel, options: RetrainOptions) -> float:
    """Write what one pseudo label trains on, and return the share of voxels that are ignored."""
    mask = read_mask(label.paths.mask)
    uncertainty_zyx = read_volume(label.paths.uncertainty).array_zyx
    if label.candidate.mended:
        uncertainty_zyx = np.zeros_like(uncertainty_zyx)
    labels = training_labels(mask.array_zyx, uncertainty_zyx, ignore_above=options.ignore_above)
    write_labels(labels, like=mask, path=_training_mask_path(step, label.query))
    return round(float(np.isin(labels, (IGNORE, UNSURE_LIVER)).mean()), 5)
