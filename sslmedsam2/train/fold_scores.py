"""Score the network of a fold on the reference masks that it was not trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.errors import ModelError
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.volume import CanonicalVolume
from sslmedsam2.inference.device import Device
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.nnunet.dataset import load_labelled
from sslmedsam2.nnunet.plans import LIVER
from sslmedsam2.submission.metrics import diagonal_mm, measure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldScore:
    """Score of a network on one image.

    ``fold`` is None for a model of several folds, or of their mean; otherwise the fold was not
    trained on the case. If no liver was found, the distances are the diagonal of the scan, as in
    ``evaluate``.
    """

    case: str
    sequence: str
    fold: int | None
    dice: float
    hausdorff_mm: float
    hausdorff95_mm: float


def load_folds(
    model_dir: Path, *, folds: Iterable[int | str], device: Device, sure_from: float | None = None
) -> CanonicalSegmenter:
    """Load one fold, or several whose margins are averaged, as ``predict``; raises ModelError."""
    spec = read_model_spec(model_dir, folds=tuple(map(str, folds)))
    return CanonicalSegmenter(spec, EngineOptions(device=device, sure_from=sure_from))


def score_fold(
    images: Sequence[ImageFile], *, segmenter: CanonicalSegmenter, fold: int | None
) -> list[FoldScore]:
    """Score a network on images with reference masks; raises InputError and ModelError."""
    scores = []
    for image in images:
        scores.append(_score(image, segmenter=segmenter, fold=fold))
        name = "frozen model" if fold is None else f"fold {fold}"
        logger.info("%s, %s %s: Dice %.4f", name, image.case, image.sequence, scores[-1].dice)
    return scores


def _score(image: ImageFile, *, segmenter: CanonicalSegmenter, fold: int | None) -> FoldScore:
    truth = load_labelled(image)
    volume = CanonicalVolume(truth.image_zyx, truth.spacing_zyx_mm)
    try:
        found = segmenter.segment(volume).mask_zyx
    except ModelError as error:
        raise error.about(image.name) from error
    metrics = measure(found, truth.labels_zyx == LIVER, spacing_zyx_mm=truth.spacing_zyx_mm)
    distances = metrics.hausdorff_mm, metrics.hausdorff95_mm
    if not found.any():
        distances = (diagonal_mm(found.shape, spacing_zyx_mm=truth.spacing_zyx_mm),) * 2
    return FoldScore(
        case=image.case,
        sequence=image.sequence_or_volume,
        fold=fold,
        dice=round(metrics.dice, 4),
        hausdorff_mm=round(distances[0], 2),
        hausdorff95_mm=round(distances[1], 2),
    )
