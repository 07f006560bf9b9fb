"""Episodes from labelled scans for the pretraining of SAM2: every organ but the liver.

Synthetic volumes have smooth organs of invented texture. These episodes have real texture and real
neighbours: given slices of some patients with the mask of one or two organs, find them in another
patient. **The liver is never a target**, so that few-shot results on livers are still those of a
network that was never asked to find one. Contrast is drawn at random, as in SynthSeg (Billot et al.
2023, doi:10.1016/j.media.2023.102789), so that a CT's anatomy stands for that of any sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from sslmedsam2.fewshot.slices import cut_masks, cut_slices
from sslmedsam2.fewshot.synthetic import Episode, RandomDraws, as_scanned
from sslmedsam2.imaging.labelled import N_ORGANS
from sslmedsam2.imaging.volume import CanonicalVolume, MaskZYX

_LIVER: Final = 1
_ATTEMPTS: Final = 8
_ENOUGH_PIXELS: Final = 0.004
"""Smallest share of a query slice that a target covers."""
_LEAST_SLICES: Final = 3
"""An organ that fewer slices show is no target."""
_BODY_ABOVE: Final = 0.05
_TWO_ORGANS: Final = 0.35
"""Share of episodes whose target is two organs together: larger, and of two textures."""
_ROAMING: Final = 0.3
"""Share of episodes in which bodies are turned, shifted and mirrored, as in synthetic ones."""
_CROSS_CONTRAST: Final = 0.2
"""Share of the other episodes in which the query has another contrast than its supports."""
_OUTSIDE: Final = 0.12
"""Share of supports beyond the end of the target: they show what to leave empty."""
_STEP_MM: Final = (2.5, 9.0)
"""Range of distances between the slices of a query."""
_CURVE_BINS: Final = 256


@dataclass(frozen=True)
class OrganVolume:
    """The slices of a labelled scan, foot to head.

    Attributes
    ----------
    images
        uint8 ``(n, 1, size, size)``, 255 is 1.
    organs
        uint8, the same shape: 0 to 13, where 1 is the liver.
    step_mm
        Distance between two slices.
    extents
        By organ, its lowest and highest slice.
    pixels
        How many pixels each organ has in all, ``(14,)``; 0 for what is no target.
    """

    images: Tensor
    organs: Tensor
    step_mm: float
    extents: dict[int, tuple[int, int]]
    pixels: Tensor


def cut_organs(image: CanonicalVolume, organs_zyx: MaskZYX, *, size: int) -> OrganVolume:
    """Cut a scan and its map of organs, as few-shot segmentation cuts its volumes."""
    stack = cut_slices(image, size=size)
    organs = np.zeros(stack.slices.shape, np.uint8)
    pixels = np.zeros(N_ORGANS + 1)
    extents = {}
    for organ in range(1, N_ORGANS + 1):
        mask = organs_zyx == organ
        shown = np.flatnonzero(mask.any((1, 2)))
        if len(shown) < _LEAST_SLICES:
            continue
        low, high = int(shown[0]), int(shown[-1])
        found = cut_masks(mask[low : high + 1], stack.crop, size=size) > 0
        organs[low : high + 1][found] = organ
        if organ != _LIVER:
            extents[organ] = (low, high)
            pixels[organ] = found.sum()
    return OrganVolume(
        images=torch.from_numpy(np.rint(stack.slices * 255).astype(np.uint8))[:, None],
        organs=torch.from_numpy(organs)[:, None],
        step_mm=image.spacing_zyx_mm[0],
        extents=extents,
        pixels=torch.from_numpy(pixels).float(),
    )


def draw_organ_episode(
    volumes: Sequence[OrganVolume], *, seed: int, n_support: int, n_query: int
) -> Episode:
    """Draw one episode of at least two volumes; the same arguments give the same tensors."""
    draws = RandomDraws(seed)
    for _ in range(_ATTEMPTS):
        episode = _draw(volumes, draws, n_support=n_support, n_query=n_query)
        shown = episode.query_masks.mean().item() > _ENOUGH_PIXELS
        if shown and episode.support_masks.any():
            break
    return episode


def _draw(
    volumes: Sequence[OrganVolume], draws: RandomDraws, *, n_support: int, n_query: int
) -> Episode:
    query = volumes[draws.integer(0, len(volumes) - 1)]
    target = _draw_target(query, draws)
    height = draws.number(-0.85, 0.85) * (1.3 if draws.chance(0.2) else 1.0)
    step = max(1, round(draws.number(*_STEP_MM) / query.step_mm))
    step = step if draws.chance(0.5) else -step
    at = _index_at(query, target, height)
    query_indices = [at + step * k for k in range(n_query)]

    roaming = draws.chance(_ROAMING)
    look = _draw_look(draws)
    foreign = _draw_look(draws) if not roaming and draws.chance(_CROSS_CONTRAST) else look
    warp = draws.number(0.2, 1.0)
    own_place = _draw_place(warp, draws, roaming=roaming)
    queries, query_organs = _render(query, query_indices, own_place, foreign, draws)

    images, organs = [], []
    for _ in range(n_support):
        if foreign is look and draws.chance(0.1):
            support, place = query, own_place
        else:
            support = volumes[draws.integer(0, len(volumes) - 1)]
            place = _draw_place(warp, draws, roaming=roaming)
        if draws.chance(_OUTSIDE):
            where = draws.number(1.05, 1.5) * (1 if draws.chance(0.5) else -1)
        else:
            where = height + 0.15 * draws.normal(1).item()
        image, labels = _render(support, [_index_at(support, target, where)], place, look, draws)
        images.append(image)
        organs.append(labels)
    flip = draws.chance(0.5)
    parts = (
        torch.cat(images),
        _mask(torch.cat(organs), target),
        queries,
        _mask(query_organs, target),
    )
    return Episode(*(part.flip(-1) if flip else part for part in parts))


def _mask(organs: Tensor, target: tuple[int, ...]) -> Tensor:
    return torch.isin(organs, organs.new_tensor(target)).float()


def _draw_target(volume: OrganVolume, draws: RandomDraws) -> tuple[int, ...]:
    """Choose one organ or two, large ones more often; never the liver."""
    number = 2 if draws.chance(_TWO_ORGANS) and len(volume.extents) > 1 else 1
    drawn = torch.multinomial(volume.pixels.sqrt(), number, generator=draws.generator)
    return tuple(drawn.tolist())


def _index_at(volume: OrganVolume, target: tuple[int, ...], height: float) -> int:
    """Return a slice of a target: -1 is its lowest, 1 its highest.

    Of two organs the height is that of the first. Where the volume lacks it, the height is that
    of the volume.
    """
    low, high = volume.extents.get(target[0], (0, len(volume.images) - 1))
    return round((low + high) / 2 + height * (high - low) / 2)


def _draw_place(warp: float, draws: RandomDraws, *, roaming: bool) -> Tensor:
    """Draw where a body lies: sampling positions ``(1, size, size, 2)``, at a coarse size."""
    turn = 0.06 * warp * draws.normal(1).item()
    scale = (0.06 * warp * draws.normal(2)).exp()
    shift = 0.04 * warp * draws.normal(2)
    if roaming:
        turn += 0.35 * draws.normal(1).item()
        mirror = torch.tensor([-1.0 if draws.chance(0.3) else 1.0 for _ in range(2)])
        scale = scale * mirror * (0.12 * draws.normal(2)).exp()
        shift = shift + 0.15 * draws.normal(2)
    cos, sin = math.cos(turn), math.sin(turn)
    affine = torch.tensor([[cos, -sin], [sin, cos]]) * scale
    bend = 0.035 * warp * draws.normal(1, 2, 5, 5)
    grid = nnf.affine_grid(
        torch.cat([affine, shift[:, None]], 1)[None], [1, 1, 32, 32], align_corners=False
    )
    return grid + nnf.interpolate(bend, size=(32, 32), mode="bicubic").permute(0, 2, 3, 1)


@dataclass(frozen=True)
class _Look:
    """A contrast: a curve of intensities, and an offset for each organ."""

    curve: Tensor
    shift: Tensor
    blur: bool


def _draw_look(draws: RandomDraws) -> _Look:
    identity = torch.linspace(0, 1, _CURVE_BINS)
    knots = draws.uniform(0, 1, draws.integer(4, 8))
    if draws.chance(0.6):
        knots, _ = knots.sort(descending=draws.chance(0.3))
    random = nnf.interpolate(knots[None, None], _CURVE_BINS, mode="linear", align_corners=True)
    curve = torch.lerp(identity, random.flatten(), draws.number(0, 1))
    if draws.chance(0.85):
        curve = curve * (identity / 0.1).clamp_max(1)  # Air stays dark.
    shift = 0.25 * draws.normal(N_ORGANS + 1) * draws.number(0, 1)
    shift[0] = 0
    return _Look(curve, shift, blur=draws.chance(0.3))


def _render(
    volume: OrganVolume, indices: list[int], place: Tensor, look: _Look, draws: RandomDraws
) -> tuple[Tensor, Tensor]:
    """Return images in [0, 1] and organs, each ``(n, 1, size, size)``; other than the last time."""
    chosen = torch.tensor(indices).clamp(0, len(volume.images) - 1)
    size = volume.images.shape[-1]
    grid = nnf.interpolate(place.permute(0, 3, 1, 2), size=(size, size), mode="bilinear")
    grid = grid.permute(0, 2, 3, 1).expand(len(indices), -1, -1, -1)
    unit = nnf.grid_sample(volume.images[chosen].float() / 255, grid, align_corners=False)
    organs = nnf.grid_sample(
        volume.organs[chosen].float(), grid, mode="nearest", align_corners=False
    ).long()
    table = look.curve + 0.02 * draws.normal(1).item()
    added = look.shift + 0.03 * draws.normal(len(look.shift)) * (look.shift != 0)
    painted = table[(unit * (_CURVE_BINS - 1)).long()] + nnf.avg_pool2d(added[organs], 3, 1, 1)
    if look.blur:
        painted = nnf.avg_pool2d(painted, 3, 1, 1)
    body = unit > _BODY_ABOVE
    return as_scanned(torch.where(body, painted, painted.clamp(0, 1)), body, draws), organs
