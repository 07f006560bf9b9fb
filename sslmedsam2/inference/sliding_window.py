"""nnU-Net's sliding window over one margin channel.

A binary nnU-Net has two output channels and decides by the larger; that is the sign of their
difference, the *margin*. Gaussian averaging, mirroring, fold averaging and linear resampling all
commute with the difference, so only one channel is ever computed and stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

_GAUSSIAN_SIGMA = 1 / 8
"""Width of nnU-Net's importance weighting, as a share of the patch."""

Patch = npt.NDArray[np.float32]


class MarginNetwork(Protocol):
    """One frozen network: patches ``(batch, 1, *patch)`` in, margins of the same shape out."""

    def __call__(self, patches: Patch) -> Patch:
        """Return ``liver logit - background logit`` for each voxel."""
        ...


def window_starts(size: int, *, patch: int, step: float) -> list[int]:
    """Return where nnU-Net puts windows along one axis: evenly, no further apart than ``step``."""
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    if count == 1:
        return [0]
    return [int(np.round((size - patch) / (count - 1) * index)) for index in range(count)]


def slide(
    volume: npt.NDArray[np.float32],
    networks: Sequence[MarginNetwork],
    *,
    patch_size: tuple[int, int, int],
    step: float,
    mirror_axes: tuple[int, ...],
    batch_size: int,
) -> npt.NDArray[np.float32]:
    """Return the margin for each voxel of a prepared volume.

    Parameters
    ----------
    volume
        Any shape; padded with zeros around where it is smaller than the patch.
    networks
        The folds, whose margins are averaged.
    mirror_axes
        Axes of the volume (0, 1, 2); every combination is predicted and averaged.
    batch_size
        Windows and their mirrors that go through a network together.
    """
    padded, inner = _pad_to(volume, patch_size)
    weights = gaussian(patch_size)
    total = np.zeros(padded.shape, np.float32)
    norm = np.zeros(padded.shape, np.float32)
    flips = mirror_combinations(mirror_axes)
    windows = list(_windows(padded.shape, patch_size, step))
    share = np.float32(1 / (len(flips) * len(networks)))
    tasks = [(window, flip) for window in windows for flip in flips]
    for start in range(0, len(tasks), batch_size):
        group = tasks[start : start + batch_size]
        patches = np.stack([np.flip(padded[window], flip) for window, flip in group])[:, None]
        for network in networks:
            for (window, flip), margin in zip(group, network(patches)[:, 0], strict=True):
                total[window] += np.flip(margin, flip) * (weights * share)
    for window in windows:
        norm[window] += weights
    total /= norm
    return np.ascontiguousarray(total[inner])


def mirror_combinations(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return all subsets of the axes, the empty one (no mirroring) first."""
    return [
        subset for size in range(len(axes) + 1) for subset in itertools.combinations(axes, size)
    ]


@lru_cache(maxsize=4)
def gaussian(patch_size: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Return nnU-Net's importance map: a Gaussian about the patch's centre, never zero.

    nnU-Net filters a unit impulse; that is the outer product of three filtered 1-D impulses. It
    then stores the map in half precision, which is repeated here, since it moves the weights.
    """
    from scipy import ndimage

    profiles = []
    for size in patch_size:
        impulse = np.zeros(size)
        impulse[size // 2] = 1
        sigma = size * _GAUSSIAN_SIGMA
        profiles.append(ndimage.gaussian_filter1d(impulse, sigma, mode="constant", cval=0))
    product = np.einsum("i,j,k->ijk", *profiles)
    stored = (product / product.max() * 10).astype(np.float16)
    stored[stored == 0] = stored[stored > 0].min()
    return stored.astype(np.float32)


def _windows(
    shape: tuple[int, ...], patch_size: tuple[int, int, int], step: float
) -> Iterator[tuple[slice, slice, slice]]:
    starts = [
        window_starts(size, patch=patch, step=step)
        for size, patch in zip(shape, patch_size, strict=True)
    ]
    for corner in itertools.product(*starts):
        a, b, c = (slice(i, i + n) for i, n in zip(corner, patch_size, strict=True))
        yield a, b, c


def _pad_to(
    volume: npt.NDArray[np.float32], patch_size: tuple[int, int, int]
) -> tuple[npt.NDArray[np.float32], tuple[slice, ...]]:
    """Pad with zeros to at least the patch, the odd voxel behind; return the way back too."""
    missing = [max(0, patch - size) for size, patch in zip(volume.shape, patch_size, strict=True)]
    before = [n // 2 for n in missing]
    inner = tuple(slice(b, b + size) for b, size in zip(before, volume.shape, strict=True))
    if not any(missing):
        return volume, inner
    pads = [(b, n - b) for b, n in zip(before, missing, strict=True)]
    return np.pad(volume, pads), inner
