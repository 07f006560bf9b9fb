"""Which slice of a support corresponds to a slice of the query.

Single slices of two abdomens are easily confused, and so are whole stacks. The masks of the
supports show where their organ begins and ends, so all supports are aligned to each other first;
then positions of the query are searched that fit all of them. The comparison uses how the
slices change along the body: that is alike in CT and MR, where the slices themselves are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from sslmedsam2.fewshot.store import DescribedVolume
from sslmedsam2.fewshot.strategy import Query, Support
from sslmedsam2.imaging.orientation import apply_reorientation, to_native
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, MaskZYX, Reorientation

_AROUND_MM: Final = 40.0
"""How far beyond the organ's ends a support is compared: farther, scans cover different parts of
the body."""
_LEAST_SLICES: Final = 3
"""Pairs of slices that show a change along the body."""
_STEP_MM: Final = 4.0
_APART_MM: Final = 30.0
"""Between two positions that are offered."""


@dataclass(frozen=True)
class Place:
    """Position of a support's organ along z: middle and height, in mm."""

    middle_mm: float
    height_mm: float


@dataclass(frozen=True)
class Partners:
    """The support slice for each query slice, ``(n_query,)``, and their correlation."""

    indices: npt.NDArray[np.int64]
    similarity: float


def find_place(masks: npt.NDArray[np.float32], z_mm: npt.NDArray[np.floating]) -> Place:
    """Return where the organ of masks ``(n, h, w)`` lies along ``z_mm``, ``(n,)``."""
    inside = z_mm[np.flatnonzero(masks.any((1, 2)))]
    return Place(float(inside[0] + inside[-1]) / 2, max(float(inside[-1] - inside[0]), 1.0))


def align(
    query: DescribedVolume, supports: Sequence[tuple[DescribedVolume, Place]], *, n_places: int = 1
) -> list[list[Partners]]:
    """Find partners in all supports for each of the likeliest positions of the query's organ.

    The likeliest comes first; there may be fewer than ``n_places``. Slices beyond a support's ends
    get its end slices.
    """
    height_mm = float(np.mean([place.height_mm for _, place in supports]))
    # A scan may end within the organ, even before its middle.
    low_mm, high_mm = -height_mm / 2, float(query.z_mm[-1]) + height_mm / 2
    tried = []
    for middle_mm in np.arange(low_mm, high_mm + _STEP_MM, _STEP_MM):
        found, scores = [], []
        for support, place in supports:
            z_mm = place.middle_mm + query.z_mm - middle_mm
            partners, covered = _partners(query, support, place, z_mm)
            found.append(partners)
            scores.append(partners.similarity * np.sqrt(covered))
        # Every support counts at every position; one that covers nothing there counts as 0.
        tried.append((float(np.mean(scores)), middle_mm, found))
    tried.sort(key=lambda one: -one[0])
    offered: list[tuple[float, list[Partners]]] = []
    for _, middle_mm, found in tried:
        if all(abs(middle_mm - other_mm) >= _APART_MM for other_mm, _ in offered):
            offered.append((middle_mm, found))
        if len(offered) == n_places:
            break
    return [found for _, found in offered]


def _partners(
    query: DescribedVolume, support: DescribedVolume, place: Place, z_mm: npt.NDArray[np.floating]
) -> tuple[Partners, float]:
    """Pair the query slices with those at ``z_mm`` of the support, ``(n_query,)``.

    Also return the share of the compared part of the body, in mm, that both scans show.
    """
    step_mm = float(support.z_mm[1] - support.z_mm[0]) if support.n_slices > 1 else 1.0
    indices = np.rint(z_mm / step_mm).astype(np.int64)
    reach_mm = place.height_mm / 2 + _AROUND_MM
    low_mm = max(place.middle_mm - reach_mm, -step_mm / 2)
    high_mm = min(place.middle_mm + reach_mm, float(support.z_mm[-1]) + step_mm / 2)
    inside = (z_mm >= low_mm) & (z_mm <= high_mm)
    query_step_mm = (z_mm[-1] - z_mm[0]) / (query.n_slices - 1) if query.n_slices > 1 else 1.0
    most = min(query.n_slices, (high_mm - low_mm) / query_step_mm)
    indices = indices.clip(0, support.n_slices - 1)
    similarity = 0.0
    if inside.sum() >= min(_LEAST_SLICES, query.n_slices):
        similarity = _correlation(query.descriptors[inside], support.descriptors[indices[inside]])
    return Partners(indices, similarity), min(1.0, float(inside.sum()) / max(most, 1.0))


def _correlation(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Return the correlation of two series of descriptors ``(n, d)``.

    Each loses its mean over these slices, which holds what the two scans differ in everywhere,
    such as the contrast. Of fewer than three slices, whose mean is all there is, it is the cosine.
    """
    if len(one) >= _LEAST_SLICES:
        one, other = one - one.mean(0), other - other.mean(0)
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / max(norms, 1e-6)


def on_query_grid(support: Support, query: Query) -> tuple[ArrayZYX, MaskZYX]:
    """Resample a support's image and mask to the query's canonical grid; 0 where it has nothing.

    Both files must be of one patient in one position, as the sequences of one examination are.
    """
    turn = query.image.reorientation
    own = support.image.reorientation
    image = _resampled(support.image.array_zyx, own, support.geometry, query.geometry)
    share = _resampled(support.mask_zyx.astype(np.float32), own, support.geometry, query.geometry)
    mask = (share > 0.5).astype(np.uint8)
    return apply_reorientation(image, turn), apply_reorientation(mask, turn)


def _resampled(
    canonical_zyx: npt.NDArray,
    reorientation: Reorientation,
    geometry: Geometry,
    target: Geometry,
) -> npt.NDArray[np.float32]:
    moving = sitk.GetImageFromArray(to_native(canonical_zyx, reorientation))
    _place(moving, geometry)
    grid = sitk.Image([int(n) for n in target.shape_zyx[::-1]], sitk.sitkUInt8)
    _place(grid, target)
    return sitk.GetArrayFromImage(
        sitk.Resample(moving, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    )


def _place(image: sitk.Image, geometry: Geometry) -> None:
    image.SetSpacing([float(step) for step in geometry.spacing_zyx_mm[::-1]])
    image.SetOrigin([float(value) for value in geometry.origin_xyz_mm])
    image.SetDirection(geometry.direction_xyz.ravel().tolist())
