"""Match the contrast of a query to that of the supports, where they differ.

The slices of the supports are encoded once for all queries, so the query is changed: its histogram
is matched to that of the supports, unchanged and inverted. The caller chooses the version on which
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
from sslmedsam2.imaging.intensity import log_ratio

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

    A query with the contrast of the supports is not changed.
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
_CORE: Final = 0.7
"""Voxels more probable than this show how brightness drifts across the organ."""
_LEAST_CORE: Final = 500
"""Voxels, at least, that show a drift."""
_OUTLYING: Final = 2.0
"""Median deviations from the median, beyond which a voxel is not of the organ's kind."""
_NEAR_SIGMA: Final = (1.5, 6.0, 6.0)
"""How far around the organ (slices, pixels, pixels) its surroundings reach."""
_NEAR: Final = 0.03
_SMOOTHING: Final = (0.7, 1.2, 1.2)
_TINY: Final = 1e-4
_WEIGHT_STEPS: Final = 2**16


def refine_by_intensity(probability: Tensor, slices: Tensor) -> Tensor:
    """Return corrected probabilities; both tensors are ``(n, size, size)``, slices in [0, 1].

    The drift of brightness across the organ is taken out. Then a pixel's odds are multiplied by
    how much more often its brightness occurs inside the organ than around it. Where nothing is
    probably inside, there is nothing to learn from and the probabilities come back as they are.
    """
    if not (probability > 0.5).any():
        return probability
    body = slices > AIR_BELOW
    bins = (
        (_without_drift(slices, (probability > _CORE) & body) * _BINS)
        .clamp(0, _BINS - 1)
        .to(torch.uint8)
    )
    odds = torch.logit(probability, eps=_TINY)
    refined = probability
    for _ in range(_ROUNDS):
        near = _smoothed(refined, _NEAR_SIGMA) > _NEAR
        inside = refined * (refined > 0.5) * body
        ratio = _log_ratio(bins, inside, (1 - refined) * near * body)
        refined = _smoothed(torch.sigmoid(odds + ratio[bins.long()]), _SMOOTHING)
    return refined


def _without_drift(slices: Tensor, core: Tensor) -> Tensor:
    """Return the slices as if the organ's ``core`` were evenly bright.

    Its drift is a quadratic of the place. Beyond the core's bounding box it is that of the border.
    """
    values = slices[core].double()
    if len(values) < _LEAST_CORE:
        return slices
    # Without what differs from the organ, such as a strip of its surroundings.
    middle = values.median()
    deviation = (values - middle).abs()
    usual = deviation <= _OUTLYING * deviation.median()
    values, places = values[usual], core.nonzero()[usual]
    low, high = places.amin(0), places.amax(0)
    scale = (high - low).clamp(min=1)
    terms = torch.stack(_quadratic(*((places - low) / scale).double().unbind(1)))
    equations = torch.cat([terms @ terms.T, (terms @ values)[:, None]], 1).cpu().numpy()
    # A core of one slice leaves the terms of z undetermined.
    factors = np.linalg.lstsq(equations[:, :-1], equations[:, -1], rcond=1e-6)[0]
    axes = [
        ((torch.arange(n, device=core.device) - low[k]) / scale[k]).clamp(0, 1)
        for k, n in enumerate(core.shape)
    ]
    grid = _quadratic(*torch.meshgrid(*axes, indexing="ij"))
    drift = sum(float(factor) * term for factor, term in zip(factors, grid, strict=True))
    return slices - drift + values.mean().float()


def _quadratic(z: Tensor, y: Tensor, x: Tensor) -> list[Tensor]:
    return [torch.ones_like(z), z, y, x, z * z, y * y, x * x, z * y, z * x, y * x]


def _log_ratio(bins: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Return for each bin by how much more of the one weights is in it than of the other."""
    # Whole numbers: a GPU adds in any order, and of those the sum is the same.
    weights = (torch.stack([inside, outside]) * _WEIGHT_STEPS).round().double()
    places = torch.stack([bins.long(), bins.long() + _BINS])
    counts = torch.bincount(places.flatten(), weights.flatten(), minlength=2 * _BINS)
    ratio = log_ratio(*counts.cpu().numpy().reshape(2, _BINS) / _WEIGHT_STEPS)
    return torch.from_numpy(ratio).to(bins.device)


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
