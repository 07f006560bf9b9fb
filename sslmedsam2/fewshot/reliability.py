"""From evidence to an estimated Dice with an interval, and a verdict.

The labelled volumes show how evidence relates to Dice: each is segmented with the others as if it
had no mask, and the result is compared with its reference mask (reverse classification accuracy,
Valindria et al. 2017, doi:10.1109/TMI.2017.2665165, as leave-one-out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from sslmedsam2.fewshot.strategy import Evidence, Verdict

_COVERAGE: Final = 0.9
_LEADS_BACK: Final = 0.65
"""Reverse Dice of a sound result, at least: 0.70 to 0.79 between volumes of one kind."""
_TRUSTED_SLOPE: Final = 1.0
_SLOPE_STRENGTH: Final = 0.02
"""Variance of the score that the data must show before they outweigh ``_TRUSTED_SLOPE``."""
_UNTRIED_SPREAD: Final = 0.12
"""Residual standard deviation that is assumed as firmly as two observations would show it."""
_PRIOR_COUNT: Final = 2
_ACCEPT_ABOVE: Final = 0.80
_SAME_CONTRAST: Final = 0.06
"""Contrast distance that any calibration covers: see `sslmedsam2.fewshot.harmonise`."""
_REJECT_BELOW: Final = 0.60
_LEAST_SIMILARITY: Final = 0.05
"""Below this, and where it is negative, a query has nothing in common with the supports."""


@dataclass(frozen=True)
class Reliability:
    """Estimated Dice of a pseudo label, and its verdict.

    ``interval`` holds the true Dice in nine cases of ten.
    """

    estimated_dice: float
    interval: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True)
class Calibration:
    """A straight line from score to Dice, with its residual standard deviation.

    ``n_cases`` is 0 where there was nothing to calibrate on; then the estimate is a guess and no
    case is accepted. ``contrast_reach`` is the largest contrast distance among the cases, and
    ``least_similarity`` the lowest similarity: the line was not tried beyond them.
    """

    slope: float
    intercept: float
    residual: float
    n_cases: int
    contrast_reach: float = _SAME_CONTRAST
    least_similarity: float = 0.0


def score(evidence: Evidence) -> float:
    """Combine the evidence into one number, roughly a Dice.

    Confidence orders good results best. A low reverse Dice and an implausible shape reveal a
    confident failure.
    """
    misled = max(0.0, _LEADS_BACK - evidence.reverse_dice)
    return evidence.confidence - 0.5 * misled - 0.3 * (1 - evidence.plausibility)


def calibrate(cases: Sequence[tuple[Evidence, float]]) -> Calibration:
    """Fit the line to cases of known Dice.

    Few cases do not determine a slope: it is shrunk towards 1, and the spread towards a large one.
    More evidence never counts against a case, whatever a few cases seem to show.
    """
    if not cases:
        return Calibration(_TRUSTED_SLOPE, 0.0, _UNTRIED_SPREAD, 0)
    x = np.array([score(evidence) for evidence, _ in cases])
    y = np.array([dice for _, dice in cases])
    dx, dy = x - x.mean(), y - y.mean()
    slope = float((dx @ dy + _SLOPE_STRENGTH * _TRUSTED_SLOPE) / (dx @ dx + _SLOPE_STRENGTH))
    slope = max(0.0, slope)
    intercept = float(y.mean() - slope * x.mean())
    squares = float(((y - slope * x - intercept) ** 2).sum()) + _PRIOR_COUNT * _UNTRIED_SPREAD**2
    residual = float(np.sqrt(squares / (len(cases) + _PRIOR_COUNT)))
    contrast_reach = max(_SAME_CONTRAST, *(one.contrast_distance for one, _ in cases))
    least_similarity = max(0.0, min(one.similarity for one, _ in cases))
    return Calibration(
        slope, intercept, residual, len(cases), contrast_reach, least_similarity=least_similarity
    )


def judge(evidence: Evidence, calibration: Calibration) -> Reliability:
    """Estimate the Dice of a pseudo label and return its verdict.

    Accepted is what is probably good; rejected what is probably bad, or where nothing was found.
    A query of a contrast that no calibration case had, or less similar to the supports than any of
    them, gets a wider interval, in proportion to its distance, and is not accepted where that
    interval reaches down to what is rejected.
    """
    if evidence.confidence == 0:
        # Supports that find nothing agree perfectly; no line may make anything of that.
        return Reliability(0.0, (0.0, 0.0), "reject")
    estimate = calibration.slope * score(evidence) + calibration.intercept
    degrees = max(1, calibration.n_cases + _PRIOR_COUNT - 1)
    beyond = max(
        1.0,
        evidence.contrast_distance / calibration.contrast_reach,
        calibration.least_similarity / max(evidence.similarity, _LEAST_SIMILARITY),
    )
    reach = float(stats.t.ppf(0.5 + _COVERAGE / 2, degrees)) * calibration.residual * beyond
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
