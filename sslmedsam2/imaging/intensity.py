"""Checks and corrections of intensities: padding, outliers, label maps, CT."""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sslmedsam2.imaging.stored import repair
from sslmedsam2.imaging.volume import ArrayZYX

ABDOMINAL_WINDOW_HU: Final = (-160.0, 240.0)
"""The usual soft-tissue display window; a CT outside it is air, bone or metal."""

_AIR_HU: Final = -900.0
_FAT_HU: Final = (-150.0, -50.0)
_BODY_FROM_HU: Final = -500.0
_LEAST_FAT: Final = 0.015
"""Fat as a share of what is not air or lung. In an MR, whose padding near -1000 looks like air,
only voxels blurred between padding and image have such values: less than 0.5 %."""

_SOFT_TISSUE_HU: Final = (10.0, 200.0)
"""A CT without fat holds nothing else, bone aside; an MR always has dark voxels."""

_PADDING_GAP: Final = 0.25
"""Padding lies this far below the next value, as a part of the range of the rest (its 0.5th to
99.5th percentile). """

_LEAST_PADDING: Final = 1e-4
"""Part of the voxels; fewer are outliers."""

_OUTLIER_STEP: Final = 15.0
"""From one of the percentiles below to the next, distances from the median grow by a factor of at
most 3.8 in 45 real MR and CT volumes; a larger factor than this is an outlier."""

_CLIPPED_TO: Final = 4.0
_OUTLIER_PERCENTILES: Final = (90.0, 99.0, 99.9, 100.0)
_FEW_VALUES: Final = 64
_FLAT_SHARE: Final = 0.8
"""Part of neighbouring voxels, background aside, that are exactly equal: above 0.9 in masks, up to
0.5 in real scans of 256 grey levels."""


def looks_like_hounsfield(array_zyx: ArrayZYX) -> bool:
    """Return whether an image is a CT: air near -1000, and fat near -100 or only soft tissue."""
    sample = array_zyx[::2, ::4, ::4]
    if np.quantile(sample, 0.02) > _AIR_HU:
        return False
    body = sample[sample > _BODY_FROM_HU]
    if not body.size:
        return False
    low, high = _FAT_HU
    if ((body > low) & (body < high)).mean() >= _LEAST_FAT:
        return True
    darkest, brightest = np.quantile(body, (0.05, 0.9))
    return bool(darkest >= _SOFT_TISSUE_HU[0] and brightest <= _SOFT_TISSUE_HU[1])


def window_if_hounsfield(
    array_zyx: ArrayZYX, *, modality: str | None = None
) -> tuple[ArrayZYX, bool]:
    """Clip a CT to the abdominal window and return it with True; return an MR with False.

    Without clipping, air at -1000 HU and bone would dominate the z-score. ``modality`` is DICOM's
    code; None to decide by the values.
    """
    is_ct = looks_like_hounsfield(array_zyx) if modality is None else modality == "CT"
    if not is_ct:
        return array_zyx, False
    return np.clip(array_zyx, *ABDOMINAL_WINDOW_HU), True


def looks_like_labels(array_zyx: ArrayZYX) -> bool:
    """Return whether an image is a mask or label map: two values, or a few in flat areas."""
    sample = array_zyx[::2, ::2, ::2]
    values, counts = np.unique(sample, return_counts=True)
    if values.size > _FEW_VALUES:
        return False
    if values.size <= 2 and np.unique(array_zyx).size <= 2:
        return True
    background = values[counts.argmax()]
    one, other = array_zyx[:, :, :-1], array_zyx[:, :, 1:]
    is_inside = (one != background) | (other != background)
    pairs = np.count_nonzero(is_inside)
    return bool(pairs) and float(((one == other) & is_inside).sum() / pairs) >= _FLAT_SHARE


def set_padding_apart(array_zyx: ArrayZYX, is_padding: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    """Set padding, in place, to the background: 0, or the lowest other value if below 0.

    Padding within the range of the image, or close to the background, is not changed. Returns
    notes.
    """
    if is_padding.all() or not is_padding.any():
        return ()
    lowest = float(array_zyx.min(where=~is_padding, initial=np.inf))
    highest = float(array_zyx.max(where=~is_padding, initial=-np.inf))
    padding = array_zyx[is_padding]
    background = min(lowest, 0.0)
    margin = _PADDING_GAP * (highest - lowest)
    if not (padding.max() < background - margin or padding.min() > highest):
        return ()
    array_zyx[is_padding] = background
    note = f"{padding.size} voxels of padding ({padding.min():g}) were set to {background:g}"
    return (repair("padding", note),)


def clean_intensities(array_zyx: ArrayZYX) -> tuple[str, ...]:
    """Clip outliers and set padding to background, in place; return notes.

    The voxels of ``array_zyx`` must be finite. A sound image is not changed.
    """
    return (*_clip_outliers(array_zyx), *_find_padding(array_zyx))


def _clip_outliers(array_zyx: ArrayZYX) -> tuple[str, ...]:
    """Clip voxels that are many times farther from the median than nearly all others."""
    lowest, highest = float(array_zyx.min()), float(array_zyx.max())
    sample = array_zyx[::2, ::4, ::4]
    background = float(np.median(sample))
    inside = sample[sample != background]
    if not inside.size:
        return ()
    centre = float(np.median(inside))
    distances = np.percentile(np.abs(inside.astype(np.float64) - centre), _OUTLIER_PERCENTILES[:-1])
    farthest = max(highest - centre, centre - lowest)
    steps = [*distances.tolist(), farthest]
    for near, far in itertools.pairwise(steps):
        if near > 0 and far > _OUTLIER_STEP * near:
            limits = (centre - _CLIPPED_TO * near, centre + _CLIPPED_TO * near)
            count = int(np.count_nonzero((array_zyx < limits[0]) | (array_zyx > limits[1])))
            np.clip(array_zyx, *limits, out=array_zyx)
            note = (
                f"values up to {farthest:.3g} from the median {centre:.3g} were clipped: "
                f"{count} voxels to {limits[0]:.3g} to {limits[1]:.3g}"
            )
            return (repair("outliers", note),)
    return ()


def _find_padding(array_zyx: ArrayZYX) -> tuple[str, ...]:
    """Set to background one exact value that lies far below all others."""
    lowest = array_zyx.min()
    # The padding of a CT is clipped to its window later.
    if lowest >= 0 or looks_like_hounsfield(array_zyx):
        return ()
    is_lowest = array_zyx == lowest
    if np.count_nonzero(is_lowest) < _LEAST_PADDING * array_zyx.size or is_lowest.all():
        return ()
    sample, mask = array_zyx[::2, ::4, ::4], is_lowest[::2, ::4, ::4]
    rest = sample[~mask]
    if not rest.size:
        return ()
    next_value = float(array_zyx.min(where=~is_lowest, initial=np.inf))
    low, high = np.percentile(rest, (0.5, 99.5))
    if next_value - float(lowest) <= _PADDING_GAP * float(high - low):
        return ()
    return set_padding_apart(array_zyx, is_lowest)


_STATISTICS_PERCENTILES: Final = (5, 25, 50, 75, 95)


def intensity_statistics(
    array_zyx: ArrayZYX, mask_zyx: npt.NDArray[np.uint8]
) -> dict[str, float] | None:
    """Return mean, standard deviation and percentiles inside a mask, in the image's units.

    The names are ``mean``, ``sd``, ``p5``, ``p25``, ``p50``, ``p75`` and ``p95``; None if the mask
    is empty.
    """
    inside = array_zyx[mask_zyx > 0].astype(np.float64)
    if not inside.size:
        return None
    percentiles = np.percentile(inside, _STATISTICS_PERCENTILES)
    named = {f"p{n}": value for n, value in zip(_STATISTICS_PERCENTILES, percentiles, strict=True)}
    figures = {"mean": inside.mean(), "sd": inside.std(), **named}
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def entropy_bits(probability: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the binary entropy of each probability, 0 to 1 bit."""
    p = probability.clip(1e-7, 1 - 1e-7).astype(np.float64)
    return (-(p * np.log2(p) + (1 - p) * np.log2(1 - p))).astype(np.float32)


def log_ratio(inside: npt.NDArray[Any], outside: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return by how much more of one histogram than of the other is in each bin.

    It is the natural logarithm of the ratio of both shares, which are smoothed. A bin of which
    neither has much says little.
    """
    ratio = np.log(_smooth_share(inside)) - np.log(_smooth_share(outside))
    return ratio.astype(np.float32)


def _smooth_share(counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return a smooth histogram of sum 1; flat where there is nothing to count."""
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), 1.5)
    smooth += 1e-3 * max(smooth.sum(), 1.0)
    return smooth / smooth.sum()
