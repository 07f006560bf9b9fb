"""Estimated Dice of a mask, from the certainty of the network.

The evidence is computed from the margin that decides the mask. Its relation to Dice is fitted on
scans with reference masks (:mod:`sslmedsam2.train.calibration`) and stored beside the weights as
``confidence.json``. It is valid for these weights only, and is not used with others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.records import read_record_or_none, sha256_file
from sslmedsam2.imaging.volume import MaskZYX, bounding_box, faces
from sslmedsam2.inference.postprocessing import component_at
from sslmedsam2.weights.model_files import CONFIDENCE_FILE, checkpoint_file

if TYPE_CHECKING:
    from sslmedsam2.inference.model_folder import ModelSpec

logger = logging.getLogger(__name__)

FEATURES: Final = ("expected", "kept", "side")
"""The names in the order of `Evidence.features`."""

_FAR_BACKGROUND: Final = -6.0
"""Smaller margins are left out, so that ``exact`` and ``fast`` give the same evidence."""
_LEAST, _MOST = 0.01, 0.995
_DOUBT_SIGMA_MM: Final = 8.0
_FILTER_ENDS: Final = 4.0
_NEAR_VOXELS: Final = 3
_CHECKED_BELOW: Final = 0.8
"""Estimated Dice below which a person should look at the mask."""


@dataclass(frozen=True)
class Evidence:
    """Signs of the quality of a mask, computed from its margin.

    Attributes
    ----------
    expected_dice
        Expected Dice if each voxel were liver with the probability that the network gives it: twice
        the sum of probabilities in the mask, over the sum of all probabilities plus the size of the
        mask. Before small components are removed.
    kept_share
        Share of the foreground, on the model's grid, in the component of the mask.
    side_share
        Share of the mask's voxels on a face of the volume.
    """

    expected_dice: float
    kept_share: float
    side_share: float

    def features(self) -> npt.NDArray[np.float64]:
        """Return the features of the linear fit; all but the last increase with Dice."""
        return np.array([logit(self.expected_dice), self.kept_share, self.side_share])


@dataclass(frozen=True)
class Certainty:
    """Certainty of a network about a mask.

    Attributes
    ----------
    evidence
        Input of the estimated Dice.
    mean_confidence
        Mean foreground probability over the foreground.
    doubtful
        Place in or near the mask with most undecided voxels, as shares of the margin's axes.
    """

    evidence: Evidence
    mean_confidence: float
    doubtful: tuple[float, float, float]


@dataclass(frozen=True)
class DiceEstimate:
    """An estimated Dice, and an interval meant to hold the true one in 90 % of scans or more."""

    dice: float
    interval: tuple[float, float]

    @property
    def is_to_check(self) -> bool:
        """Whether a person should look at the mask."""
        return self.dice < _CHECKED_BELOW


@dataclass(frozen=True)
class Calibration:
    """``confidence.json``: relation of the evidence of one model to Dice.

    Attributes
    ----------
    checkpoints
        SHA-256 of the checkpoints that it is valid for, by their names in the model folder.
    intercept, weights
        Linear fit of the logit of Dice; one weight for each of ``features``.
    spread
        Intercept and slope of the logarithm of the typical error, linear in the fitted logit.
    side_spread
        Slope of that logarithm in the square root of `Evidence.side_share`: what the scan does not
        show cannot be judged.
    fitted_range
        Range of fitted logits; outside it the typical error is constant.
    offsets
        Ends of the interval relative to the fitted logit, in units of the typical error.
    volumes, patients
        Size of the fit; degraded copies count as volumes.
    spearman, coverage
        Correlation of estimated and true Dice, and coverage of the interval, on left-out patients.
    sure_from
        Scans with a smaller expected Dice were also segmented with inverted contrast, see
        :mod:`sslmedsam2.inference.second_view`; 0 for none.
    """

    checkpoints: Mapping[str, str]
    features: tuple[str, ...]
    intercept: float
    weights: tuple[float, ...]
    spread: tuple[float, float]
    fitted_range: tuple[float, float]
    offsets: tuple[float, float]
    volumes: int
    patients: int
    spearman: float
    coverage: float
    sure_from: float = 0.0
    side_spread: float = 0.0

    def estimate(self, evidence: Evidence) -> DiceEstimate:
        """Return the estimated Dice with its interval, rounded to three digits."""
        fitted = self.intercept + float(np.dot(self.weights, evidence.features()))
        intercept, slope = self.spread
        size = intercept + slope * np.clip(fitted, *self.fitted_range)
        error = float(np.exp(size + self.side_spread * evidence.side_share**0.5))
        below, above = self.offsets
        low, middle, high = (expit(fitted + error * offset) for offset in (below, 0.0, above))
        return DiceEstimate(round(middle, 3), (round(low, 3), round(high, 3)))


def read_calibration(spec: ModelSpec) -> Calibration | None:
    """Read the calibration of a model; None without one, or if it cannot be used."""
    found = read_record_or_none(spec.path / CONFIDENCE_FILE, Calibration)
    if found is None:
        return None
    if found.features != FEATURES:
        logger.warning(
            "%s: %s is of another version; not used. Fit it anew by weights calibrate",
            spec.path.name,
            CONFIDENCE_FILE,
        )
        return None
    names = [checkpoint_file(fold, spec.path) for fold in spec.folds]
    present = {name: spec.sha256.get(name) or sha256_file(spec.path / name) for name in names}
    if dict(found.checkpoints) != present:
        logger.warning("%s: %s is of other weights; not used", spec.path.name, CONFIDENCE_FILE)
        return None
    return found


def certainty_of(
    margin: npt.NDArray[np.float32],
    mask_zyx: MaskZYX,
    *,
    mask: MaskZYX,
    spacing_mm: tuple[float, float, float],
) -> Certainty | None:
    """Return the certainty of a margin on the model's grid; None without a mask.

    ``mask_zyx`` is the mask after clean-up, ``mask`` the same on the model's grid, ``spacing_mm``
    the spacing along its axes.
    """
    foreground = margin > 0
    n_foreground, n_mask = int(np.count_nonzero(foreground)), int(np.count_nonzero(mask_zyx))
    if not n_foreground or not n_mask:
        return None
    probability = probability_of(margin)
    positive = float(probability[foreground].sum())
    kept = component_at(foreground.view(np.uint8), mask)
    evidence = Evidence(
        expected_dice=_expected(probability, margin, positive, n_foreground),
        kept_share=int(np.count_nonzero(kept)) / n_foreground,
        side_share=sum(int(np.count_nonzero(face)) for face in faces(mask_zyx)) / n_mask,
    )
    doubtful = _most_doubtful(probability, kept, spacing_mm=spacing_mm)
    return Certainty(evidence, positive / n_foreground, doubtful)


def expected_dice(margin: npt.NDArray[np.float32]) -> float:
    """Return `Evidence.expected_dice`; 0 if the margin is positive nowhere."""
    probability = probability_of(margin)
    inside = probability[margin > 0]
    return _expected(probability, margin, float(inside.sum()), inside.size) if inside.size else 0.0


def _expected(
    probability: npt.NDArray[np.float32],
    margin: npt.NDArray[np.float32],
    positive: float,
    n_foreground: int,
) -> float:
    near = float(probability[margin > _FAR_BACKGROUND].sum())
    return 2 * positive / (near + n_foreground)


def _most_doubtful(
    probability: npt.NDArray[np.float32],
    mask: MaskZYX,
    *,
    spacing_mm: tuple[float, float, float],
) -> tuple[float, float, float]:
    from scipy import ndimage

    sigmas = [_DOUBT_SIGMA_MM / mm for mm in spacing_mm]
    # The filter at a voxel near the mask reaches this many voxels.
    reach = [_NEAR_VOXELS + int(_FILTER_ENDS * sigma + 0.5) for sigma in sigmas]
    box = bounding_box(mask)
    assert box is not None
    around = tuple(
        slice(max(0, side.start - n), side.stop + n) for side, n in zip(box, reach, strict=True)
    )
    near = ndimage.binary_dilation(mask[around], iterations=_NEAR_VOXELS)
    undecided = probability[around] * (1 - probability[around])
    smooth = ndimage.gaussian_filter(undecided, sigmas, truncate=_FILTER_ENDS)
    smooth[~near] = 0
    within = np.unravel_index(int(smooth.argmax()), smooth.shape)
    place = [side.start + index for side, index in zip(around, within, strict=True)]
    a, b, c = ((index + 0.5) / size for index, size in zip(place, mask.shape, strict=True))
    return float(a), float(b), float(c)


def logit(dice: float) -> float:
    """Return the logit of a Dice that is held between 0.01 and 0.995."""
    share = min(max(dice, _LEAST), _MOST)
    return float(np.log(share / (1 - share)))


def expit(value: float) -> float:
    """Return the inverse of the logit."""
    return float(1 / (1 + np.exp(-value)))


def probability_of(margin: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probability of liver for each voxel of a margin."""
    # Beyond 30 single precision has only 0 and 1.
    return np.reciprocal(1 + np.exp(-np.clip(margin, -30, 30)), dtype=np.float32)
