"""A volume that stays on a GPU from its normalised voxels to its margin.

It goes in once and the margin comes out, where otherwise each patch would go in and its margin come
out. The results are those of :mod:`resampling` and :mod:`sliding_window` to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sslmedsam2.inference.resampling import Matrix, Resampler
from sslmedsam2.inference.sliding_window import SURELY_BACKGROUND, Canvas, MarginNetwork


class GpuCanvas(Canvas):
    """A canvas whose volume, weights and sums lie on the GPU; its networks are torch's."""

    _library: Any = torch

    def _pad(self, volume: Tensor, pads: list[tuple[int, int]]) -> Tensor:
        return torch.nn.functional.pad(volume, [n for pad in reversed(pads) for n in pad])

    def _placed(self, weights: npt.NDArray[np.float32]) -> Tensor:
        return _there(weights, self._padded.device)

    def _predict(self, network: MarginNetwork, patches: Any) -> Any:
        return network.predict(patches)  # type: ignore[attr-defined]

    def margin(self) -> Any:
        """Return the average margin of the volume without its padding, on the GPU."""
        mean = torch.where(self._norm > 0, self.total / self._norm, float(SURELY_BACKGROUND))
        return mean[self._inner].contiguous()


def pinned(volume: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a copy in page-locked memory, from which a GPU reads quickest; or what came.

    A copy from there must be waited for: with one under way, torch asks the GPU when it frees the
    memory, and if the card has failed by then, that ends the process.
    """
    try:
        return torch.from_numpy(volume).pin_memory().numpy()
    except RuntimeError:
        # The limit on locked memory, or a card that broke: the network will meet that one itself.
        return volume


def resample(
    volume: npt.NDArray[np.float32], resampler: Resampler | None, *, device: str | torch.device
) -> Tensor:
    """Take a float32 volume to the GPU and resample it there, as ``resampling.resample`` does.

    None leaves it on its grid.
    """
    there = torch.from_numpy(volume).to(device)
    if resampler is None:
        return there
    if resampler.order <= 1:
        return _apply(there, resampler.matrices)
    thick = resampler.thick_axis
    if thick is None:
        return _apply(there, resampler.matrices).clamp(there.min(), there.max())
    others = tuple(axis for axis in range(3) if axis != thick)
    least, most = there.amin(others, keepdim=True), there.amax(others, keepdim=True)
    in_plane = _apply(there, [m if a != thick else None for a, m in enumerate(resampler.matrices)])
    along = [m if a == thick else None for a, m in enumerate(resampler.matrices)]
    return _apply(in_plane.clamp(least, most), along)


def _apply(volume: Tensor, matrices: Iterable[Matrix | None]) -> Tensor:
    """Apply a matrix an axis, the most shrinking first to keep the intermediates small."""
    there = [
        (axis, _there(matrix, volume.device))
        for axis, matrix in enumerate(matrices)
        if matrix is not None
    ]
    for axis, matrix in sorted(there, key=lambda pair: pair[1].shape[0] / pair[1].shape[1]):
        volume = torch.tensordot(matrix, volume, dims=([1], [axis])).movedim(0, axis)
    return volume.contiguous()


_KEPT: dict[tuple[int, torch.device], tuple[Matrix, Tensor]] = {}


def _there(matrix: Matrix, device: torch.device) -> Tensor:
    """Return a matrix on the device, where those of recent volumes are kept."""
    key = id(matrix), device
    if key not in _KEPT:
        if len(_KEPT) >= 64:
            _KEPT.clear()
        # The array is kept too: as long as it lives, no other has its identity.
        _KEPT[key] = matrix, torch.from_numpy(np.ascontiguousarray(matrix)).to(device)
    return _KEPT[key][1]
