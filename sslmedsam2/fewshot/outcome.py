"""Pseudo label, evidence, estimated Dice and verdict from the predictions of the supports.

The relation of evidence to Dice is fitted on the labelled volumes: each is segmented with the
others as if it had no mask, and the result is compared with its reference mask (reverse
classification accuracy, Valindria et al. 2017, doi:10.1109/TMI.2017.2665165, as leave-one-out).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

from sslmedsam2.fewshot.slices import SliceStack, paste
from sslmedsam2.fewshot.strategy import Evidence, FewShotResult, SupportScore, Verdict
from sslmedsam2.imaging.intensity import entropy_bits
from sslmedsam2.imaging.volume import (
    LARGEST_LIVER_ML,
    LEAST_LIVER_ML,
    MaskZYX,
    mask_dice,
    mask_volume_ml,
)

_COVERAGE: Final = 0.9
_LEADS_BACK: Final = 0.65
"""Reverse Dice of a sound result, at least: 0.70 to 0.79 between volumes of one kind."""
_PLAUSIBLE: Final = 0.8
"""A single liver-sized piece that touches an end of the scan has this plausibility."""
_TRUSTED_SLOPE: Final = 1.5
"""CT or T2 labelled by either, by the shipped network: 0.9 to 1.65, and Dice about as the score."""
_SLOPE_STRENGTH: Final = 0.02
"""Variance of the score that the data must show before they outweigh ``_TRUSTED_SLOPE``."""
_EQUAL_COUNT: Final = 5
"""Cases whose Dice is their score, assumed beside those that are known."""
_EQUAL_WITHIN: Final = 0.05
"""Known cases that are farther than this from their score count for more than the assumed."""
_UNTRIED_SPREAD: Final = 0.04
"""Residual standard deviation that is assumed as firmly as three observations would show it."""
_PRIOR_COUNT: Final = 3
_TRIED_CONTRAST: Final = 0.15
_TRIED_SIMILARITY: Final = 0.18
"""From CT to T2 and back, queries up to this contrast distance and down to this similarity had the
Dice that was estimated for them."""
_ACCEPT_ABOVE: Final = 0.83
"""Of masks estimated at this and more, nine in ten have a Dice of 0.80."""
_REJECT_BELOW: Final = 0.60
_LEAST_SIMILARITY: Final = 0.05
"""Below this, and where it is negative, a query has nothing in common with the supports."""


@dataclass(frozen=True)
class SupportPrediction:
    """Prediction of one support for a query.

    Attributes
    ----------
    probability
        ``(n, h, w)``, at any resolution.
    weight, similarity, reverse_dice
        See :class:`~sslmedsam2.fewshot.strategy.SupportScore`; ``weight`` in any unit.
    """

    name: str
    probability: npt.NDArray[np.float32]
    weight: float = 1.0
    similarity: float = 0.0
    reverse_dice: float | None = None


def name_seed(*parts: object) -> int:
    """Return a seed that depends only on names, not on the order of work or the machine."""
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

    ``probability`` is ``(n, size, size)``; its size is a multiple of that of the predictions.
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
    reverse = [score.reverse_dice for score in scores if score.reverse_dice is not None]
    evidence = Evidence(
        reverse_dice=float(np.mean(reverse)) if reverse else 0.0,
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
    """Return the Dice of each support's mask with the fused one, at the masks' resolution."""
    decided = shrink(probability, predictions[0].probability.shape[-1]) > 0.5
    return [mask_dice(prediction.probability > 0.5, decided) for prediction in predictions]


def shrink(maps: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Average square maps ``(n, s, s)`` down to ``(n, size, size)``; ``s`` is a multiple."""
    n, side, _ = maps.shape
    factor = side // size
    return maps.reshape(n, size, factor, size, factor).mean((2, 4))


def largest_piece(mask_zyx: npt.NDArray[np.bool_]) -> tuple[MaskZYX, int]:
    """Return the largest component, and the number of components.

    Components smaller than a fiftieth of the largest are not counted.
    """
    labels, n = ndimage.label(mask_zyx)
    if n == 0:
        return np.zeros(mask_zyx.shape, np.uint8), 0
    sizes = np.bincount(labels.ravel())[1:]
    mask = (labels == sizes.argmax() + 1).astype(np.uint8)
    return mask, int((sizes >= sizes.max() / 50).sum())


def plausibility(
    mask_zyx: MaskZYX, *, n_pieces: int, spacing_zyx_mm: tuple[float, float, float]
) -> float:
    """Return how plausible a mask is as a liver by volume, components and position; 0 to 1."""
    if not mask_zyx.any():
        return 0.0
    volume_ml = mask_volume_ml(mask_zyx, spacing_zyx_mm=spacing_zyx_mm)
    size = min(1.0, volume_ml / LEAST_LIVER_ML, LARGEST_LIVER_ML / volume_ml)
    pieces = 1.0 / max(1, n_pieces) ** 0.25
    # A liver that is cut off by the end of the scan cannot be judged as a whole.
    cut_off = float(mask_zyx[[0, -1]].any()) * 0.2
    return size * pieces * (1 - cut_off)


@dataclass(frozen=True)
class Reliability:
    """Estimated Dice of a pseudo label, and its verdict.

    ``interval`` contains the true Dice in 90 % of cases.
    """

    estimated_dice: float
    interval: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True)
class Calibration:
    """A straight line from score to Dice, with its residual standard deviation.

    ``n_cases`` is 0 without calibration cases; then the estimate is a guess and no case is
    accepted. The line is valid up to the contrast distance ``contrast_reach`` and down to the
    similarity ``least_similarity``.
    """

    slope: float
    intercept: float
    residual: float
    n_cases: int
    contrast_reach: float = _TRIED_CONTRAST
    least_similarity: float = _TRIED_SIMILARITY


def score(evidence: Evidence) -> float:
    """Combine the evidence into one number, roughly a Dice.

    Among good results, confidence correlates best with Dice. A low reverse Dice or an implausible
    shape shows a confident failure.
    """
    misled = max(0.0, _LEADS_BACK - evidence.reverse_dice)
    misshapen = max(0.0, 1 - evidence.plausibility / _PLAUSIBLE)
    return evidence.confidence - 0.5 * misled - 0.3 * misshapen


def calibrate(cases: Sequence[tuple[Evidence, float]]) -> Calibration:
    """Fit the line to cases of known Dice.

    Few cases determine neither slope nor spread, so both are shrunk towards typical values, and the
    line towards Dice = score, unless the cases clearly contradict. The slope is never negative.
    """
    if not cases:
        return Calibration(1.0, 0.0, _UNTRIED_SPREAD, 0)
    x = np.array([score(evidence) for evidence, _ in cases])
    y = np.array([dice for _, dice in cases])
    dx, dy = x - x.mean(), y - y.mean()
    slope = float((dx @ dy + _SLOPE_STRENGTH * _TRUSTED_SLOPE) / (dx @ dx + _SLOPE_STRENGTH))
    slope = max(0.0, slope)
    offset = float((y - x).mean())
    assumed = _EQUAL_COUNT / (1 + (offset / _EQUAL_WITHIN) ** 2)
    offset *= len(cases) / (len(cases) + assumed)
    intercept = float(x.mean()) + offset - slope * float(x.mean())
    squares = float(((y - slope * x - intercept) ** 2).sum()) + _PRIOR_COUNT * _UNTRIED_SPREAD**2
    residual = float(np.sqrt(squares / (len(cases) + _PRIOR_COUNT - 1)))
    contrast_reach = max(_TRIED_CONTRAST, *(one.contrast_distance for one, _ in cases))
    least_similarity = max(0.0, min(_TRIED_SIMILARITY, *(one.similarity for one, _ in cases)))
    return Calibration(
        slope, intercept, residual, len(cases), contrast_reach, least_similarity=least_similarity
    )


def judge(evidence: Evidence, calibration: Calibration) -> Reliability:
    """Estimate the Dice of a pseudo label and return its verdict.

    A label is accepted if it is probably good, and rejected if it is probably bad or empty. Outside
    the valid range of contrast distance and similarity, the interval is wider in proportion, and a
    label is not accepted if the interval reaches the range of rejection.
    """
    if evidence.confidence == 0:
        # Empty predictions agree perfectly, so the line is not used for them.
        return Reliability(0.0, (0.0, 0.0), "reject")
    estimate = calibration.slope * score(evidence) + calibration.intercept
    degrees = max(1, calibration.n_cases + _PRIOR_COUNT - 1)
    beyond = max(
        1.0,
        evidence.contrast_distance / calibration.contrast_reach,
        calibration.least_similarity / max(evidence.similarity, _LEAST_SIMILARITY),
    )
    # The line itself has the uncertainty of the mean of its cases.
    spread = calibration.residual * np.sqrt(1 + 1 / max(1, calibration.n_cases))
    reach = float(stats.t.ppf(0.5 + _COVERAGE / 2, degrees)) * spread * beyond
    low, high = np.clip([estimate - reach, estimate + reach], 0, 1)
    estimate = float(np.clip(estimate, 0, 1))
    verdict: Verdict = "doubtful"
    if estimate < _REJECT_BELOW:
        verdict = "reject"
    elif beyond > 1 and low < _REJECT_BELOW:
        verdict = "doubtful"
    elif estimate >= _ACCEPT_ABOVE and calibration.n_cases > 0:
        verdict = "accept"
    return Reliability(estimate, (float(low), float(high)), verdict)
