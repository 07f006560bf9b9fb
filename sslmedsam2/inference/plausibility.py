"""Whether a mask looks like the liver of an abdominal scan.

The limits are measured by ``benchmarks/plausibility.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sslmedsam2.imaging.volume import (
    LARGEST_LIVER_ML,
    LEAST_LIVER_ML,
    ArrayZYX,
    MaskZYX,
    bounding_box,
)

_TOO_MANY = 2
"""A single trait is out of its range in good masks too; see benchmarks/RESULTS.md."""

_ON_THE_LEFT = "on the patient's left"
"""Enough alone: livers are on the right. The image is likelier mirrored than the patient is."""

_THICK = 1.5
"""Slices are thicker than pixels are wide by at least this factor."""

_LEAST_RANGE = 0.15
"""The interquartile range of a body counts as at least this part of the whole range, or the noise
of a body of one grey would count as structure."""

_LARGEST_WHOLE = 2**24
"""Voxels; of larger volumes every fourth voxel is looked at, for the sake of memory."""


@dataclass(frozen=True)
class LiverTraits:
    """Measurements that distinguish a liver from other segmented structures; canonical axes.

    Attributes
    ----------
    centre_x, centre_y
        Of the mask, as parts of the body's extent: 0 is the patient's right, and the front.
    extent_mm
        Of the mask's box along z, y, x.
    fill
        Part of that box that the mask fills.
    share
        Part of the body, in the slices of the mask, that the mask fills.
    border
        Part of the mask's slices and columns that lie on a side face of the volume. The first and
        the last slice are no side faces.
    spread
        Interquartile range of the image in the mask, over the same in the body (the scale of the
        next two as well): small where the mask is one tissue of several.
    contrast
        Distance of the medians of the mask and of the rest of the body, over the body's
        interquartile range.
    roughness
        Median difference of neighbours in a slice, over the body's interquartile range.
    confidence
        Mean foreground probability over the foreground; 0 if unknown.
    components
        How many pieces the network gave.
    slice_axis
        Along which the slices are stacked: 0 axial (or no clear one), 1 coronal, 2 sagittal. A
        stack may begin and end anywhere in the liver.
    """

    centre_x: float
    centre_y: float
    extent_mm: tuple[float, float, float]
    fill: float
    share: float
    border: float
    spread: float
    contrast: float
    roughness: float
    confidence: float
    components: int
    slice_axis: int = 0


def liver_traits(
    mask_zyx: MaskZYX,
    array_zyx: ArrayZYX,
    *,
    spacing_zyx_mm: tuple[float, float, float],
    confidence: float | None,
    components: int,
) -> LiverTraits:
    """Measure a mask that is not empty on its image, both ``[z, y, x]`` and canonical."""
    inside = mask_zyx > 0
    box = bounding_box(inside)
    assert box is not None
    air, bright = np.percentile(array_zyx[::2, ::2, ::2], (1, 98))
    # A fifth of the way from the air to the bright tissue.
    body = array_zyx > air + 0.2 * (bright - air)
    body |= inside
    body_here = body[box[0]]
    by, bx = (np.flatnonzero(body_here.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    along_y, along_x = inside.sum(axis=(0, 2)), inside.sum(axis=(0, 1))
    centre_y = (np.average(np.arange(len(along_y)), weights=along_y) - by[0]) / len(by)
    centre_x = (np.average(np.arange(len(along_x)), weights=along_x) - bx[0]) / len(bx)
    step = 1 if array_zyx.size <= _LARGEST_WHOLE else 2
    thinned = (slice(None), slice(None, None, step), slice(None, None, step))
    low, high = np.percentile(array_zyx[thinned][body[thinned]], (25, 75))
    scale = max(float(high - low), _LEAST_RANGE * float(bright - air), 1e-6)
    near, array_near = inside[box], array_zyx[box]
    liver = array_near[near]
    quarter, three_quarters = np.percentile(liver, (25, 75))
    rest = array_zyx[thinned][body[thinned] & ~inside[thinned]]
    steps = np.abs(np.diff(array_near, axis=2))[near[:, :, 1:] & near[:, :, :-1]]
    n = int(inside.sum())
    slice_axis = _slice_axis(spacing_zyx_mm)
    side = sum(
        int(inside.take(i, axis=axis).sum())
        for axis in (1, 2)
        if axis != slice_axis
        for i in (0, -1)
    )
    lengths = [(s.stop - s.start) * mm for s, mm in zip(box, spacing_zyx_mm, strict=True)]
    return LiverTraits(
        centre_x=float(centre_x),
        centre_y=float(centre_y),
        extent_mm=(lengths[0], lengths[1], lengths[2]),
        fill=n / float(np.prod([s.stop - s.start for s in box])),
        share=n / max(1, int(body_here.sum())),
        border=side / n,
        spread=float(three_quarters - quarter) / scale,
        contrast=abs(float(np.median(liver)) - float(np.median(rest))) / scale
        if rest.size
        else 0.0,
        roughness=float(np.median(steps)) / scale if steps.size else 0.0,
        confidence=confidence or 0.0,
        components=components,
        slice_axis=slice_axis,
    )


def _slice_axis(spacing_zyx_mm: tuple[float, float, float]) -> int:
    """Return the axis of far larger spacing than the others, which is that of the slices."""
    axis = int(np.argmax(spacing_zyx_mm))
    return axis if spacing_zyx_mm[axis] > _THICK * sorted(spacing_zyx_mm)[1] else 0


def has_usual_volume(volume_ml: float) -> bool:
    """Tell whether a mask is as large as livers are; if not, that alone is to be checked."""
    return LEAST_LIVER_ML <= volume_ml <= LARGEST_LIVER_ML


def implausible_traits(traits: LiverTraits) -> tuple[str, ...]:
    """Return the traits that are unlike a liver, in a few words each; see `is_implausible`."""
    stack = traits.slice_axis
    whole_mm = [mm for axis, mm in enumerate(traits.extent_mm) if axis == 0 or axis != stack]
    found = {
        f"mean foreground probability {traits.confidence:.2f}": traits.confidence < 0.94,
        _ON_THE_LEFT: stack != 2 and traits.centre_x > 0.55,
        "not on the patient's right": stack != 2
        and (traits.centre_x < 0.15 or 0.42 < traits.centre_x <= 0.55),
        "far in front or behind": stack != 1 and not 0.3 <= traits.centre_y <= 0.62,
        "too large a part of the body": traits.share > 0.45,
        "not one tissue": traits.spread > 0.7,
        "no smooth tissue": traits.roughness > 0.2,
        "another shape": not 0.18 <= traits.fill <= 0.55,
        "too short on one axis": min(whole_mm) < 70,
        "cut off at the side": traits.border > 0.01,
        f"{traits.components} pieces": traits.components > 5,
    }
    return tuple(name for name, is_so in found.items() if is_so)


def is_implausible(found: tuple[str, ...]) -> bool:
    """Return whether what `implausible_traits` found is too much for a liver of a usual scan."""
    return len(found) >= _TOO_MANY or _ON_THE_LEFT in found
