"""nnU-Net's sliding window over one margin channel.

A binary nnU-Net has two output channels and takes the larger, which is the sign of their
difference, the *margin*. Gaussian averaging, mirroring, fold averaging and linear resampling all
commute with the difference, so only one channel is computed and stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import ModelError
from sslmedsam2.imaging.volume import Box
from sslmedsam2.inference.postprocessing import keep_largest

_GAUSSIAN_SIGMA = 1 / 8
"""Width of nnU-Net's importance weighting, as a share of the patch."""

_RIM = 1 / 4
"""Share of the patch, on either side, in which a window sees too little context to be relied on
alone. At most a quarter, because cores of windows that overlap by half must not leave gaps."""

_WORTHWHILE_SHARE = 0.0005
"""A window is not run for less liver than this share of the patch."""

SURELY_BACKGROUND = np.float32(-20.0)

Patch = npt.NDArray[np.float32]
Array = Any
"""A numpy array on a CPU, a torch tensor on a GPU; float32."""


def to_numpy(array: Array) -> npt.NDArray[np.float32]:
    """Return an array as numpy on the CPU; a numpy array is returned as it is."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


class MarginNetwork(Protocol):
    """One frozen network: patches ``(batch, 1, *patch)`` in, margins of the same shape out."""

    def __call__(self, patches: Patch) -> Patch:
        """Return ``liver logit - background logit`` for each voxel."""
        ...


def window_starts(size: int, *, patch: int, step: float) -> list[int]:
    """Return nnU-Net's window positions along one axis: even, at most ``step`` apart."""
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    if count == 1:
        return [0]
    return [int(np.round((size - patch) / (count - 1) * index)) for index in range(count)]


@dataclass(frozen=True)
class WindowPlan:
    """How windows are placed and run.

    Attributes
    ----------
    patch_size
        The network's input, along the volume's axes.
    step
        Largest distance between windows, as a share of the patch.
    mirror_axes
        Axes of the volume (0, 1, 2); every combination is predicted and averaged.
    batch_size
        Windows and their mirrors that go through a network together.
    """

    patch_size: tuple[int, int, int]
    step: float
    mirror_axes: tuple[int, ...]
    batch_size: int


def slide(volume: Array, networks: Sequence[MarginNetwork], plan: WindowPlan) -> Array:
    """Return the margin for each voxel of a prepared volume, as nnU-Net computes it.

    The volume may have any shape; it is padded with zeros where it is smaller than the patch. The
    margins of the networks (the folds) are averaged. A torch tensor on a GPU is worked on there,
    and the margin is one too.

    Raises ModelError: a network gives values that are not finite.
    """
    if isinstance(volume, np.ndarray):
        canvas = Canvas(volume, networks, plan)
    else:
        from sslmedsam2.inference.on_gpu import GpuCanvas

        canvas = GpuCanvas(volume, networks, plan)
    canvas.run(canvas.windows)
    return canvas.margin()


def slide_from(
    volume: npt.NDArray[np.float32],
    networks: Sequence[MarginNetwork],
    plan: WindowPlan,
    *,
    start: tuple[float, float, float],
    enough_voxels: float = 1,
) -> npt.NDArray[np.float32]:
    """Return the margin near the liver, running only the windows needed for it.

    Only one connected liver is kept afterwards, so windows are run outwards from it: first the one
    nearest to ``start`` (shares of the volume's axes), then the one whose core (the window without
    its rim) contains most of the liver that is in no core yet, until little is left. Until
    ``enough_voxels`` of liver are found, further windows are run in order of distance, because a
    small component may be a stray one. Voxels that no window covers are background.

    Raises ModelError: as :func:`slide`.
    """
    canvas = Canvas(volume, networks, plan)
    target = [share * size for share, size in zip(start, canvas.shape, strict=True)]
    waiting = sorted(canvas.windows, key=lambda window: window.distance_to(target))
    relied_on = np.zeros(canvas.shape, bool)
    trifle = _WORTHWHILE_SHARE * float(np.prod(plan.patch_size))
    while waiting:
        liver = keep_largest((canvas.total > 0).view(np.uint8))
        found = int(liver.sum())
        liver[relied_on] = 0
        gains = [int(liver[window.core].sum()) for window in waiting]
        best = int(np.argmax(gains))
        if gains[best] <= trifle:
            if found >= enough_voxels:
                break
            best = 0
        window = waiting.pop(best)
        canvas.run([window])
        relied_on[window.core] = True
    return canvas.margin()


@dataclass(frozen=True)
class _Window:
    """Where a patch lies, and its core: without the rim, but up to the volume's border."""

    place: Box
    core: Box

    def distance_to(self, target: Sequence[float]) -> float:
        centre = [(side.start + side.stop) / 2 for side in self.place]
        return sum((a - b) ** 2 for a, b in zip(centre, target, strict=True))


class Canvas:
    """The padded volume, float32 of any shape, and the weighted margins added up so far."""

    _library: Any = np

    def __init__(self, volume: Array, networks: Sequence[MarginNetwork], plan: WindowPlan) -> None:
        pads, self._inner = padding(tuple(volume.shape), plan.patch_size)
        self._padded = self._pad(volume, pads) if any(map(any, pads)) else volume
        self._weights = self._placed(gaussian(plan.patch_size))
        self.total, self._norm = (self._library.zeros_like(self._padded) for _ in range(2))
        self._networks, self._plan = networks, plan
        self.shape = tuple(self._padded.shape)
        self.windows = list(_windows(self.shape, plan.patch_size, plan.step))

    def _pad(self, volume: Array, pads: list[tuple[int, int]]) -> Array:
        return np.pad(volume, pads)

    def _placed(self, weights: npt.NDArray[np.float32]) -> Array:
        """Return the weights on the device of the volume."""
        return weights

    def _predict(self, network: MarginNetwork, patches: Array) -> Array:
        return network(patches)

    def run(self, windows: Sequence[_Window]) -> None:
        """Predict these windows and add them up."""
        library = self._library
        flips = mirror_combinations(self._plan.mirror_axes)
        share = np.float32(1 / (len(flips) * len(self._networks)))
        tasks = [(window.place, flip) for window in windows for flip in flips]
        for start in range(0, len(tasks), self._plan.batch_size):
            group = tasks[start : start + self._plan.batch_size]
            patches = library.stack([library.flip(self._padded[at], flip) for at, flip in group])
            for network in self._networks:
                margins = self._predict(network, patches[:, None])[:, 0]
                if not library.isfinite(margins).all():
                    place = next(
                        at
                        for (at, _), margin in zip(group, margins, strict=True)
                        if not library.isfinite(margin).all()
                    )
                    sides = ", ".join(f"{side.start} to {side.stop}" for side in place)
                    raise ModelError(
                        f"patch [{sides}]",
                        reason="the network gives values that are not finite, also in single"
                        " precision",
                        remedy="Check the intensities of the image and the weights of the model",
                    )
                for (place, flip), margin in zip(group, margins, strict=True):
                    self.total[place] += library.flip(margin, flip) * (self._weights * share)
        for window in windows:
            self._norm[window.place] += self._weights

    def margin(self) -> Array:
        """Return the average margin of the volume without its padding."""
        covered = self._norm > 0
        total = np.divide(self.total, self._norm, out=self.total, where=covered)
        total[~covered] = SURELY_BACKGROUND
        return np.ascontiguousarray(total[self._inner])


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
) -> Iterator[_Window]:
    sides = []
    for size, patch in zip(shape, patch_size, strict=True):
        rim = int(patch * _RIM)
        sides.append(
            [
                (
                    slice(at, at + patch),
                    slice(at + rim if at else 0, at + patch - (rim if at + patch < size else 0)),
                )
                for at in window_starts(size, patch=patch, step=step)
            ]
        )
    for (z, core_z), (y, core_y), (x, core_x) in itertools.product(*sides):
        yield _Window(place=(z, y, x), core=(core_z, core_y, core_x))


def padding(
    shape: tuple[int, ...], patch_size: tuple[int, int, int]
) -> tuple[list[tuple[int, int]], tuple[slice, ...]]:
    """Return the padding of each axis to at least the patch, and the slices that remove it.

    An odd voxel is added at the end.
    """
    missing = [max(0, patch - size) for size, patch in zip(shape, patch_size, strict=True)]
    pads = [(n // 2, n - n // 2) for n in missing]
    return pads, tuple(slice(b, b + size) for (b, _), size in zip(pads, shape, strict=True))
