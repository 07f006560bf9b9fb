"""Whether a mask looks like the liver of an abdominal scan.

The limits are measured by ``benchmarks/plausibility.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sslmedsam2.imaging.volume import ArrayZYX, MaskZYX


@dataclass(frozen=True)
class LiverTraits:
    """What tells a liver from other things that a network calls one; canonical axes.

    Attributes
    ----------
    volume_ml
        Of the mask.
    centre_x, centre_y
        Of the mask, as parts of the body's extent: 0 is the patient's right, and the front.
    extent_mm
        Of the mask's box along z, y, x.
    fill
        Part of that box that the mask fills.
    share
        Part of the body, in the slices of the mask, that the mask fills.
    border
        Part of the mask's slices and columns that lie on a side face of the volume.
    spread
        Interquartile range of the image in the mask, over the same in the body: small where the
        mask is one tissue of several.
    contrast
        Distance of the medians of the mask and of the rest of the body, over the body's
        interquartile range.
    roughness
        Median difference of neighbours in a slice, over the body's interquartile range.
    confidence
        Mean foreground probability of what the network calls liver; 0 where it is not known.
    components
        How many pieces the network gave.
    """

    volume_ml: float
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
    z, y, x = (np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    box = tuple(slice(int(i[0]), int(i[-1]) + 1) for i in (z, y, x))
    body = _body(array_zyx)
    slices = slice(int(z[0]), int(z[-1]) + 1)
    body_here = body[slices] | inside[slices]
    by, bx = (np.flatnonzero(body_here.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    centre_y = (
        np.average(np.arange(inside.shape[1]), weights=inside.sum(axis=(0, 2))) - by[0]
    ) / len(by)
    centre_x = (
        np.average(np.arange(inside.shape[2]), weights=inside.sum(axis=(0, 1))) - bx[0]
    ) / len(bx)
    values = array_zyx[body | inside]
    low, high = np.percentile(values, (25, 75))
    scale = max(float(high - low), 1e-6)
    liver = array_zyx[inside]
    quarter, three_quarters = np.percentile(liver, (25, 75))
    rest = array_zyx[body & ~inside]
    steps = np.abs(np.diff(array_zyx, axis=2))[inside[:, :, 1:] & inside[:, :, :-1]]
    n = int(inside.sum())
    side = sum(int(inside[:, i].sum()) + int(inside[:, :, i].sum()) for i in (0, -1))
    lengths = [(s.stop - s.start) * mm for s, mm in zip(box, spacing_zyx_mm, strict=True)]
    return LiverTraits(
        volume_ml=n * float(np.prod(spacing_zyx_mm)) / 1000,
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
    )


def _body(array_zyx: ArrayZYX) -> np.ndarray:
    """Return the voxels brighter than a fifth of the way from the air to the bright tissue."""
    low, high = np.percentile(array_zyx[::2, ::2, ::2], (1, 98))
    return array_zyx > low + 0.2 * (high - low)
