"""From the predictions of the supports to a pseudo label: mask, uncertainty and evidence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sslmedsam2.fewshot.slices import SliceStack, paste
from sslmedsam2.fewshot.strategy import Evidence, FewShotResult, SupportScore
from sslmedsam2.imaging.intensity import entropy_bits
from sslmedsam2.imaging.volume import MaskZYX, mask_volume_ml

_LIVER_ML: Final = (500.0, 4000.0)
"""Volumes outside this range are rare in adults."""


@dataclass(frozen=True)
class SupportPrediction:
    """Prediction of one support for a query.

    Attributes
    ----------
    probability
        ``(n, h, w)``, at any resolution.
    object_score
        ``(n,)``, the probability that the slice holds the object.
    weight, similarity, reverse_dice
        See :class:`~sslmedsam2.fewshot.strategy.SupportScore`; ``weight`` in any unit.
    """

    name: str
    probability: npt.NDArray[np.float32]
    object_score: npt.NDArray[np.float32]
    weight: float = 1.0
    similarity: float = 0.0
    reverse_dice: float | None = None


def name_seed(*parts: object) -> int:
    """Return a seed that follows from names alone, in any order of work and on any machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def conclude(
    stack: SliceStack,
    predictions: Sequence[SupportPrediction],
    *,
    probability: npt.NDArray[np.float32],
    encoder_calls: int,
    seconds: Mapping[str, float],
) -> FewShotResult:
    """Resample the fused ``probability`` to the volume's grid and compute the evidence.

    It is ``(n, size, size)``, as fine as the predictions' maps or a multiple of that.
    """
    on_grid = paste(probability, stack).clip(0, 1)
    mask, n_pieces = largest_piece(on_grid > 0.5)
    total = sum(prediction.weight for prediction in predictions)
    scores = tuple(
        SupportScore(
            name=prediction.name,
            weight=prediction.weight / total,
            similarity=prediction.similarity,
            agreement=agreement,
            reverse_dice=prediction.reverse_dice,
        )
        for prediction, agreement in zip(
            predictions, agreements(predictions, probability), strict=True
        )
    )
    present = _decided(predictions, probability).any((1, 2))
    object_score = np.average(
        [prediction.object_score for prediction in predictions],
        axis=0,
        weights=[prediction.weight for prediction in predictions],
    )
    reverse = [score.reverse_dice for score in scores if score.reverse_dice is not None]
    evidence = Evidence(
        reverse_dice=float(np.mean(reverse)) if reverse else 0.0,
        agreement=float(np.mean([score.agreement for score in scores])),
        object_score=float(object_score[present].mean()) if present.any() else 0.0,
        confidence=float(on_grid[mask > 0].mean()) if mask.any() else 0.0,
        plausibility=plausibility(mask, n_pieces=n_pieces, spacing_zyx_mm=stack.spacing_zyx_mm),
    )
    warnings = () if mask.any() else ("empty: no slice shows the object",)
    return FewShotResult(
        probability_zyx=on_grid,
        uncertainty_zyx=entropy_bits(on_grid),
        mask_zyx=mask,
        evidence=evidence,
        supports=scores,
        encoder_calls=encoder_calls,
        seconds=dict(seconds),
        warnings=warnings,
    )


def agreements(
    predictions: Sequence[SupportPrediction], probability: npt.NDArray[np.float32]
) -> list[float]:
    """Return the Dice of each support's mask with the fused one."""
    decided = _decided(predictions, probability)
    return [mask_dice(prediction.probability > 0.5, decided) for prediction in predictions]


def _decided(
    predictions: Sequence[SupportPrediction], probability: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Return the fused mask as coarse as the predictions' maps."""
    return shrink(probability, predictions[0].probability.shape[-1]) > 0.5


def shrink(maps: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Average square maps ``(n, s, s)`` down to ``(n, size, size)``; ``s`` is a multiple."""
    n, side, _ = maps.shape
    factor = side // size
    return maps.reshape(n, size, factor, size, factor).mean((2, 4))


def largest_piece(mask_zyx: npt.NDArray[np.bool_]) -> tuple[MaskZYX, int]:
    """Return the largest connected piece and how many pieces of note there were.

    A piece of note has at least a fiftieth of the largest one's voxels.
    """
    labels, n = ndimage.label(mask_zyx)
    if n == 0:
        return np.zeros(mask_zyx.shape, np.uint8), 0
    sizes = np.bincount(labels.ravel())[1:]
    mask = (labels == sizes.argmax() + 1).astype(np.uint8)
    return mask, int((sizes >= sizes.max() / 50).sum())


def mask_dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Return the Dice overlap; 1 for two empty masks."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2.0 * int((a & b).sum()) / total


def plausibility(
    mask_zyx: MaskZYX, *, n_pieces: int, spacing_zyx_mm: tuple[float, float, float]
) -> float:
    """Return how plausible a mask is as a liver by volume, components and position; 0 to 1."""
    if not mask_zyx.any():
        return 0.0
    volume_ml = mask_volume_ml(mask_zyx, spacing_zyx_mm=spacing_zyx_mm)
    low, high = _LIVER_ML
    size = min(1.0, volume_ml / low, high / volume_ml)
    pieces = 1.0 / max(1, n_pieces) ** 0.25
    # A liver that is cut off by the end of the scan cannot be judged as a whole.
    cut_off = float(mask_zyx[[0, -1]].any()) * 0.2
    return size * pieces * (1 - cut_off)
