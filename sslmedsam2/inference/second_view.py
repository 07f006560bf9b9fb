"""A second view of a scan of which the network is unsure: the scan with inverted contrast.

A network trained on many contrasts makes errors in other places if the contrast is inverted, so the
average of both margins is better than either, if the network knows both contrasts about equally
well. If the network is sure, a second view takes time and improves nothing (measured in
`benchmarks/second_view.py`). A network trained on one contrast does not know the inverted one, so
the calibration of a model decides whether it gets a second view.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sslmedsam2.inference.confidence import expected_dice
from sslmedsam2.inference.sliding_window import Array, to_numpy

SURE_FROM: Final = 0.97
"""Expected Dice. Most scans with a contrast that the network knows are above, most others below."""

_MUCH_LESS: Final = 0.008
"""The network knows the contrast of the second view less well if its expected Dice is this much
smaller."""

_DARKEST, _BRIGHTEST = 0.005, 0.995
"""Quantiles that become 0 and 1."""

_AIR: Final = 0.08
"""Voxels below this share of the intensity range are probably air, and stay dark."""


def average(
    one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the mean of the margins of both views, or the first if the other's is much less sure.

    See `expected_dice`.
    """
    if expected_dice(other) < expected_dice(one) - _MUCH_LESS:
        return one
    return np.float32(0.5) * (one + other)


def unit_brightness(volume: Array) -> Array:
    """Return a volume with its brightness moved to 0 to 1; outliers are clipped."""
    sample = to_numpy(volume[::2, ::2, ::2])
    low, high = (float(value) for value in np.quantile(sample, [_DARKEST, _BRIGHTEST]))
    return ((volume - low) / max(high - low, 1e-6)).clip(0, 1)


def inverted(volume: Array) -> Array:
    """Invert the contrast of a z-scored volume, leave air dark, and z-score it again."""
    unit = unit_brightness(volume)
    turned = (1 - unit) * (unit / _AIR).clip(0, 1)
    return (turned - turned.mean()) / max(float(turned.std()), 1e-6)
