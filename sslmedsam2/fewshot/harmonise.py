"""Match the contrast of a query to that of the supports, where they differ.

The slices of the supports are encoded once for all queries, so the query is changed: its histogram
is matched to that of the supports, as it is and inverted. The caller chooses the version on which
the supports agree best.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from sslmedsam2.fewshot.slices import AIR_BELOW

Slices = npt.NDArray[np.float32]
Quantiles = npt.NDArray[np.float64]

AS_IS: Final = "as is"
MATCHED: Final = "matched"
INVERTED: Final = "inverted"

_LEVELS: Final = np.linspace(0, 1, 65)
SAME_CONTRAST: Final = 0.06
"""Mean difference of quantiles up to which two volumes count as one contrast: between two T2
volumes of one scanner it is 0.02 to 0.05, to the same volume inverted 0.2 and more."""


def body_quantiles(slices: Slices) -> Quantiles:
    """Return 65 evenly spaced quantiles of the pixels that are not air; zeros if all are air."""
    inside = slices[slices > AIR_BELOW]
    return np.quantile(inside, _LEVELS) if inside.size else np.zeros(len(_LEVELS))


def contrast_distance(one: Quantiles, other: Quantiles) -> float:
    """Return the mean difference of quantiles: the first Wasserstein distance."""
    return float(np.abs(one - other).mean())


def appearances(slices: Slices, reference: Quantiles) -> Mapping[str, Slices]:
    """Return the query's slices in each contrast to try, by name.

    A query of the supports' own contrast is left as it is.
    """
    own = body_quantiles(slices)
    if contrast_distance(own, reference) <= SAME_CONTRAST:
        return {AS_IS: slices}
    inverted = np.where(slices > AIR_BELOW, 1 - slices, slices)
    return {
        AS_IS: slices,
        MATCHED: _matched(slices, reference),
        INVERTED: _matched(inverted, reference),
    }


def _matched(slices: Slices, reference: Quantiles) -> Slices:
    """Match the histogram of the body to the reference quantiles."""
    own = body_quantiles(slices)
    inside = slices > AIR_BELOW
    return np.where(inside, np.interp(slices, own, reference), slices).astype(np.float32)


_BINS: Final = 48
_ROUNDS: Final = 2
_STRENGTH: Final = 1.0
"""Weight of the ratio beside the propagated odds."""
_GREY_SIGMA: Final = (0.5, 0.8, 0.8)
_NEAR_SIGMA: Final = (1.5, 6.0, 6.0)
"""How far around the organ (slices, pixels, pixels) its surroundings reach."""
_NEAR: Final = 0.03
_SMOOTHING: Final = (0.7, 1.2, 1.2)
_TINY: Final = 1e-4


def refine_by_intensity(
    probability: npt.NDArray[np.float32], slices: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return corrected probabilities; both arrays are ``(n, size, size)``, slices in [0, 1].

    Where nothing is probably inside, there is nothing to learn from and they come back as they are.
    """
    if not (probability > 0.5).any():
        return probability
    bins = np.clip(ndimage.gaussian_filter(slices, _GREY_SIGMA) * _BINS, 0, _BINS - 1)
    bins = bins.astype(np.int64)
    body = slices > AIR_BELOW
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
    return _smooth_share(np.bincount(bins.ravel(), weights.ravel(), minlength=_BINS))


def _smooth_share(counts: npt.NDArray) -> npt.NDArray[np.float64]:
    """Return a smooth histogram of sum 1; flat where there is nothing to count."""
    counts = ndimage.gaussian_filter1d(counts, 1.5)
    counts += 1e-3 * max(counts.sum(), 1.0)
    return counts / counts.sum()


def refine_on_gpu(probability: Tensor, slices: Tensor) -> Tensor:
    """Do what :func:`refine_by_intensity` does where the tensors are, equal but for rounding."""
    if not (probability > 0.5).any():
        return probability
    bins = (_smoothed(slices, _GREY_SIGMA) * _BINS).clamp(0, _BINS - 1).to(torch.uint8)
    body = slices > AIR_BELOW
    odds = torch.log(probability + _TINY) - torch.log(1 - probability + _TINY)
    refined = probability
    for _ in range(_ROUNDS):
        near = _smoothed(refined, _NEAR_SIGMA) > _NEAR
        weights = refined * (refined > 0.5) * body, (1 - refined) * near * body
        # Not by torch.bincount, whose sums differ from run to run.
        counts = [
            (weight * (bins == level)).sum(dtype=torch.float64)
            for weight in weights
            for level in range(_BINS)
        ]
        inside, outside = torch.stack(counts).cpu().numpy().reshape(2, _BINS)
        ratio = (
            torch.from_numpy(np.log(_smooth_share(inside)) - np.log(_smooth_share(outside)))
            .float()
            .to(bins.device)
        )
        moved = torch.sigmoid(odds + _STRENGTH * ratio[bins.long()])
        refined = _smoothed(moved, _SMOOTHING)
    return refined


def _smoothed(volume: Tensor, sigmas: tuple[float, float, float]) -> Tensor:
    """Filter as ``ndimage.gaussian_filter`` does: a GPU is quickest by one product an axis."""
    for axis, sigma in enumerate(sigmas):
        matrix = _gaussian_matrix(volume.shape[axis], sigma, volume.device)
        volume = torch.tensordot(matrix, volume, dims=([1], [axis])).movedim(0, axis)
    return volume


@lru_cache(maxsize=16)
def _gaussian_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    """Return the filter of one axis, its reflected border included, as ``(size, size)``."""
    matrix = ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0)
    return torch.from_numpy(matrix).float().to(device)
