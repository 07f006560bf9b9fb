"""Correct a few-shot prediction by what the labelled volumes show of its errors.

Each labelled volume is segmented by the others, as if it had no mask. From these predictions and
the reference masks a small classifier learns, voxel by voxel, when the few-shot branch is right:
stacked generalisation (Wolpert 1992, doi:10.1016/S0893-6080(05)80023-1). SAM2 stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sslmedsam2.fewshot.outcome import name_seed
from sslmedsam2.imaging.volume import Box, bounding_box, mask_dice

Maps = npt.NDArray[np.float32]

_NEAR_MM: Final = 35.0
"""Voxels farther than this outside the predicted organ stay outside."""
_LEAST_DICE: Final = 0.5
"""From predictions worse than this there is nothing to learn but that they are wrong."""
_VOXELS_OF_AN_EXAMPLE: Final = 12_000
_CORE: Final = 0.7
"""Voxels more probable than this show the organ's brightness."""
_EVEN: Final = 1e-3
_SMOOTHING: Final = (0.5, 1.0, 1.0)
_TREES: Final = 60
_LEAVES: Final = 15
_LEAST_VOXELS_OF_A_LEAF: Final = 200


@dataclass(frozen=True)
class Prediction:
    """A prediction of the few-shot branch, before the correction.

    Attributes
    ----------
    fused
        ``(n, size, size)``: the average over the supports.
    refined
        The same after the correction by intensities.
    lowest, highest, spread
        Over the supports, ``(n, size, size)``: smallest and largest probability, and standard
        deviation.
    slices
        The query, ``(n, size, size)``, 0 to 1.
    spacing_zyx_mm
        Distance of slices, and of pixels.
    """

    fused: Maps
    refined: Maps
    lowest: Maps
    highest: Maps
    spread: Maps
    slices: Maps
    spacing_zyx_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Example:
    """Voxels of a labelled volume that its fellows segmented.

    ``features`` is ``(m, k)``; ``inside`` ``(m,)`` tells which voxels the reference mask holds.
    """

    case: str
    features: npt.NDArray[np.float32]
    inside: npt.NDArray[np.bool_]


def example_of(prediction: Prediction, masks: Maps, *, case: str) -> Example | None:
    """Draw voxels near the predicted organ; None if the prediction is empty or bad.

    ``masks`` is the reference mask, ``(n, size, size)``, 0 or 1.
    """
    found = _describe(prediction)
    if found is None or mask_dice(prediction.refined > 0.5, masks > 0.5) < _LEAST_DICE:
        return None
    box, near, features = found
    inside = masks[box][near] > 0.5
    generator = np.random.default_rng(name_seed("correction", case))
    n = min(len(inside), _VOXELS_OF_AN_EXAMPLE)
    drawn = generator.choice(len(inside), n, replace=False)
    return Example(case, features[drawn], inside[drawn])


class Corrector:
    """Gradient-boosted trees that tell whether a voxel belongs to the organ."""

    def __init__(self, examples: Sequence[Example]) -> None:
        """Fit the trees to the examples; there must be voxels of either kind in them."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        self._trees: Any = HistGradientBoostingClassifier(
            max_iter=_TREES,
            max_leaf_nodes=_LEAVES,
            min_samples_leaf=_LEAST_VOXELS_OF_A_LEAF,
            early_stopping=False,
            random_state=0,
        )
        self._trees.fit(
            np.concatenate([example.features for example in examples]),
            np.concatenate([example.inside for example in examples]),
        )

    def correct(self, prediction: Prediction, *, share: float) -> Maps:
        """Return corrected probabilities, ``(n, size, size)``.

        ``share`` is the weight of the trees; the rest is that of the refined prediction.
        """
        found = _describe(prediction)
        if found is None:
            return prediction.refined
        box, near, features = found
        inside = np.zeros(near.shape, np.float32)
        inside[near] = self._trees.predict_proba(features)[:, 1]
        corrected = (1 - share) * prediction.refined
        corrected[box] += share * inside
        return ndimage.gaussian_filter(corrected, _SMOOTHING)


def _describe(
    prediction: Prediction,
) -> tuple[Box, npt.NDArray[np.bool_], npt.NDArray[np.float32]] | None:
    """Return a box around the predicted organ, the voxels near the organ, and their features.

    The second is a mask of the box; features are ``(m, k)``. None if nothing was predicted.
    """
    organ = bounding_box(prediction.refined > 0.5)
    if organ is None:
        return None
    spacing = prediction.spacing_zyx_mm
    margins = [int(np.ceil(_NEAR_MM / mm)) for mm in spacing]
    z, y, x = (
        slice(max(0, side.start - margin), side.stop + margin)
        for side, margin in zip(organ, margins, strict=True)
    )
    box = (z, y, x)
    refined, fused = prediction.refined[box], prediction.fused[box]
    inside = refined > 0.5
    from_border = ndimage.distance_transform_edt(inside, sampling=spacing)
    from_organ = ndimage.distance_transform_edt(~inside, sampling=spacing)
    near = from_organ < _NEAR_MM
    maps = [
        _log_odds(fused),
        _log_odds(refined),
        _log_odds(_blurred(fused, (0.7, 3, 3))),
        _log_odds(_blurred(refined, (0.7, 3, 3))),
        _log_odds(_blurred(refined, (1.5, 7, 7))),
        prediction.lowest[box],
        prediction.highest[box],
        prediction.spread[box],
        *_brightness(prediction.slices[box], refined),
        *_places(inside),
        from_border - from_organ,
    ]
    return box, near, np.stack([values[near] for values in maps], 1).astype(np.float32)


def _brightness(slices: Maps, refined: Maps) -> list[Maps]:
    """Return how far voxels and their surroundings differ from the organ's usual brightness."""
    core = refined > _CORE
    values = slices[core if core.any() else refined > 0.5]
    middle = np.median(values)
    unit = np.median(np.abs(values - middle)) + _EVEN
    mean = _blurred(slices, (0, 2, 2))
    variance = _blurred(slices * slices, (0, 2, 2)) - mean * mean
    return [
        (slices - middle) / unit,
        (_blurred(slices, (0, 1, 1)) - middle) / unit,
        (_blurred(slices, (0.5, 3, 3)) - middle) / unit,
        np.sqrt(variance.clip(0)) / unit,
    ]


def _places(inside: npt.NDArray[np.bool_]) -> list[Maps]:
    """Return how far voxels are from the organ's centre along z, y, x, in its own extents."""
    axes = []
    for places, size in zip(np.nonzero(inside), inside.shape, strict=True):
        axes.append(((np.arange(size) - places.mean()) / (places.std() + 1)).astype(np.float32))
    return list(np.meshgrid(*axes, indexing="ij"))


def _blurred(maps: Maps, sigmas: tuple[float, float, float]) -> Maps:
    return ndimage.gaussian_filter(maps, sigmas)


def _log_odds(probability: Maps) -> Maps:
    return np.log((probability + _EVEN) / (1 - probability + _EVEN))
