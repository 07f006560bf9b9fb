"""A second look at a scan of which the network is unsure: the same with inverted contrast.

A network trained on many contrasts is wrong in other places when dark becomes bright, so that the
average of both margins is better than either, if it knows both contrasts about as well. Where the
network is sure the second look would cost time and gain nothing: measured in
`benchmarks/second_view.py`. Networks trained on one contrast
know nothing of the inverted one; whether a model looks twice is part of its calibration.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sslmedsam2.inference.confidence import promised_dice
from sslmedsam2.inference.sliding_window import Array

SURE_FROM: Final = 0.965
"""Promised Dice. Scans of a contrast the network knows lie above, most others below."""

_PROMISES_LESS: Final = 0.015
"""A second view that promises so much less is of a contrast that the network knows worse."""

_DARKEST, _BRIGHTEST = 0.005, 0.995
"""Quantiles that change places."""

_AIR: Final = 0.08
"""Share of the range below which a voxel is rather air than tissue, and stays dark."""


def average(
    one: npt.NDArray[np.float32], other: npt.NDArray[np.float32], *, promised: float
) -> npt.NDArray[np.float32]:
    """Return the mean of the margins of both views; the first where the other promises little.

    ``promised`` is the `promised_dice` of the first.
    """
    if promised_dice(other) < promised - _PROMISES_LESS:
        return one
    return np.float32(0.5) * (one + other)


def inverted(volume: Array) -> Array:
    """Invert the contrast of a z-scored volume, leave air dark, and z-score it again."""
    sample = volume[::2, ::2, ::2]
    sample = sample if isinstance(sample, np.ndarray) else sample.cpu().numpy()
    low, high = (float(value) for value in np.quantile(sample, [_DARKEST, _BRIGHTEST]))
    unit = ((volume - low) / max(high - low, 1e-6)).clip(0, 1)
    turned = (1 - unit) * (unit / _AIR).clip(0, 1)
    return (turned - turned.mean()) / max(float(turned.std()), 1e-6)
