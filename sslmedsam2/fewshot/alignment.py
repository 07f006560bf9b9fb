"""Which slice of a support corresponds to a slice of the query.

Single slices of two abdomens are easily confused, and so are whole stacks. The masks of the
supports show where their organ begins and ends, so all supports are aligned to each other first;
then one position of the query is searched that fits all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from sslmedsam2.fewshot.store import EncodedVolume
from sslmedsam2.fewshot.strategy import Query, Support
from sslmedsam2.imaging.orientation import apply_reorientation, to_native
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, MaskZYX, Reorientation

_LEAST_OVERLAP: Final = 0.6
"""Share of the shorter stack that must have a partner."""
_LEAST_VOTERS: Final = 0.5
"""Share of the supports that must overlap that much."""
_STEP_MM: Final = 4.0


@dataclass(frozen=True)
class Place:
    """Position of a support's organ along z: middle and height, in mm."""

    middle_mm: float
    height_mm: float


@dataclass(frozen=True)
class Partners:
    """The support slice for each query slice, ``(n_query,)``, and their mean similarity."""

    indices: npt.NDArray[np.int64]
    similarity: float


def find_place(masks: npt.NDArray[np.float32], z_mm: npt.NDArray[np.floating]) -> Place:
    """Return where the organ of masks ``(n, h, w)`` lies along ``z_mm``, ``(n,)``."""
    inside = z_mm[np.flatnonzero(masks.any((1, 2)))]
    return Place(float(inside[0] + inside[-1]) / 2, max(float(inside[-1] - inside[0]), 1.0))


def align(
    query: EncodedVolume,
    supports: Sequence[tuple[EncodedVolume, Place]],
    *,
    centre: npt.NDArray[np.float32],
) -> list[Partners]:
    """Find partners in all supports for one position of the query's organ.

    ``centre`` is what all descriptors have in common. Each support is stretched along z so that
    its organ has the supports' mean height. Slices beyond a support's ends get its end slices.
    """
    height_mm = float(np.mean([place.height_mm for _, place in supports]))
    similarities = [
        _unit(query.descriptors - centre) @ _unit(support.descriptors - centre).T
        for support, _ in supports
    ]
    best_score, best = (
        -np.inf,
        [Partners(np.zeros(query.n_slices, np.int64), -1.0) for _ in supports],
    )
    for middle_mm in np.arange(query.z_mm[0], query.z_mm[-1] + _STEP_MM, _STEP_MM):
        found = [
            _partners(query, support, place, similarity, middle_mm=middle_mm, height_mm=height_mm)
            for (support, place), similarity in zip(supports, similarities, strict=True)
        ]
        votes = [partners.similarity for partners in found if partners.similarity > -1]
        if len(votes) < _LEAST_VOTERS * len(supports):
            continue
        if np.mean(votes) > best_score:
            best_score, best = float(np.mean(votes)), found
    return best


def _partners(
    query: EncodedVolume,
    support: EncodedVolume,
    place: Place,
    similarity: npt.NDArray[np.float32],
    *,
    middle_mm: float,
    height_mm: float,
) -> Partners:
    """Pair slices as if the query's organ were at ``middle_mm``; similarity -1 for no overlap."""
    z_mm = place.middle_mm + (query.z_mm - middle_mm) * place.height_mm / height_mm
    step_mm = float(support.z_mm[1] - support.z_mm[0]) if support.n_slices > 1 else 1.0
    indices = np.rint(z_mm / step_mm).astype(np.int64)
    inside = (indices >= 0) & (indices < support.n_slices)
    mean = -1.0
    if inside.sum() >= _LEAST_OVERLAP * min(query.n_slices, support.n_slices):
        mean = float(similarity[np.flatnonzero(inside), indices[inside]].mean())
    return Partners(indices.clip(0, support.n_slices - 1), mean)


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


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
