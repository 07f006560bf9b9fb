"""Correcting a pseudo label by the query's own intensities.

Propagation knows where an organ should be; the query itself shows how bright it is. The voxels that
are probably inside and those around it that are probably outside give two histograms, and their
ratio moves each voxel's odds. No support takes part, so it works in any contrast.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sslmedsam2.fewshot.slices import AIR_BELOW

_BINS: Final = 48
_ROUNDS: Final = 2
_STRENGTH: Final = 1.0
"""Weight of the ratio beside the propagated odds."""
_NEAR_SIGMA: Final = (1.5, 6.0, 6.0)
"""How far around the organ (slices, pixels, pixels) its surroundings reach."""
_NEAR: Final = 0.03
_SMOOTHING: Final = (0.7, 1.2, 1.2)
_TINY: Final = 1e-4


def refine_by_intensity(
    probability: npt.NDArray[np.float32], pictures: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return corrected probabilities; both arrays are ``(n, size, size)``, pictures in [0, 1].

    Where nothing is probably inside, there is nothing to learn from and they come back as they are.
    """
    if not (probability > 0.5).any():
        return probability
    bins = np.clip(ndimage.gaussian_filter(pictures, (0.5, 0.8, 0.8)) * _BINS, 0, _BINS - 1)
    bins = bins.astype(np.int64)
    body = pictures > AIR_BELOW
    odds = np.log(probability + _TINY) - np.log(1 - probability + _TINY)
    refined = probability
    for _ in range(_ROUNDS):
        near = ndimage.gaussian_filter(refined, _NEAR_SIGMA) > _NEAR
        inside = _histogram(bins, refined * (refined > 0.5) * body)
        outside = _histogram(bins, (1 - refined) * near * body)
        ratio = np.log(inside) - np.log(outside)
        moved = 1 / (1 + np.exp(-(odds + _STRENGTH * ratio[bins])))
        refined = ndimage.gaussian_filter(moved, _SMOOTHING).astype(np.float32)
    return refined


def _histogram(bins: npt.NDArray[np.int64], weights: npt.NDArray) -> npt.NDArray[np.float64]:
    """Return a smooth histogram of sum 1; flat where there is nothing to count."""
    counts = np.bincount(bins.ravel(), weights.ravel(), minlength=_BINS)
    counts = ndimage.gaussian_filter1d(counts, 1.5)
    counts += 1e-3 * max(counts.sum(), 1.0)
    return counts / counts.sum()
