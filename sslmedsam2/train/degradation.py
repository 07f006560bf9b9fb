"""Degraded copies of scans, on some of which a good network fails."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sslmedsam2.imaging.volume import ArrayZYX, block_means

ORIGINAL: Final = "original"


@dataclass(frozen=True)
class Scan:
    """A canonical image with the reference mask of its liver."""

    array_zyx: ArrayZYX
    liver_zyx: npt.NDArray[np.bool_]
    spacing_zyx_mm: tuple[float, float, float]


def degraded(scan: Scan, *, kind: str, seed: str) -> Scan:
    """Return a copy degraded by one of `DEGRADATIONS`, or the scan itself for ``original``."""
    if kind == ORIGINAL:
        return scan
    return DEGRADATIONS[kind](scan, random_of(seed))


def random_of(name: str) -> np.random.Generator:
    """Return a random generator that depends only on the name."""
    return np.random.default_rng(zlib.crc32(name.encode("utf-8", "backslashreplace")))


def _range(scan: Scan) -> tuple[float, float]:
    """Return the 1st percentile and the distance from there to the 99th."""
    low, high = (float(v) for v in np.percentile(scan.array_zyx[::2, ::2, ::2], (1, 99)))
    return low, max(high - low, 1e-6)


def _with(scan: Scan, array_zyx: np.ndarray) -> Scan:
    return replace(scan, array_zyx=np.ascontiguousarray(array_zyx, np.float32))


def _repainted(scan: Scan, random: np.random.Generator) -> Scan:
    n_knots = int(random.integers(4, 9))
    knots = random.random(n_knots)
    if random.random() < 0.5:
        knots = np.sort(knots)[:: random.choice([1, -1])]
    return _through(scan, np.linspace(0, 1, n_knots), knots)


def _inverted(scan: Scan, _: np.random.Generator) -> Scan:
    return _through(scan, np.array([0.0, 1.0]), np.array([1.0, 0.0]))


def _through(scan: Scan, knots: np.ndarray, values: np.ndarray) -> Scan:
    """Map intensities by a curve on [0, 1]; air stays dark."""
    low, span = _range(scan)
    unit = np.clip((scan.array_zyx - low) / span, 0, 1)
    return _with(scan, low + span * np.interp(unit, knots, values) * np.clip(unit / 0.1, 0, 1))


def _faint(scan: Scan, random: np.random.Generator) -> Scan:
    """Shift the liver to about the brightness of its surroundings."""
    low, span = _range(scan)
    ring = ndimage.binary_dilation(scan.liver_zyx, iterations=6) & ~scan.liver_zyx
    ring &= scan.array_zyx > low + 0.1 * span
    if not ring.any():
        return scan
    step = np.median(scan.array_zyx[ring]) - np.median(scan.array_zyx[scan.liver_zyx])
    sigma = [2 / mm for mm in scan.spacing_zyx_mm]
    soft = ndimage.gaussian_filter(scan.liver_zyx.astype(np.float32), sigma)
    return _with(scan, scan.array_zyx + soft * np.float32(step * random.uniform(0.6, 1.2)))


def _blurred(scan: Scan, random: np.random.Generator) -> Scan:
    sigma_mm = random.uniform(3, 12)
    sigma = [sigma_mm / mm for mm in scan.spacing_zyx_mm]
    return _with(scan, ndimage.gaussian_filter(scan.array_zyx, sigma))


def _noisy(scan: Scan, random: np.random.Generator) -> Scan:
    """Add Rician noise, that of magnitude images."""
    low, span = _range(scan)
    sigma = random.uniform(0.08, 0.5) * span
    real = scan.array_zyx - low + random.normal(0, sigma, scan.array_zyx.shape)
    return _with(scan, low + np.hypot(real, random.normal(0, sigma, scan.array_zyx.shape)))


def _cropped(scan: Scan, random: np.random.Generator) -> Scan:
    """Crop the scan within the liver, from above, below or a side."""
    axis = int(random.choice([0, 0, 2]))
    others = tuple(other for other in range(3) if other != axis)
    along = np.flatnonzero(scan.liver_zyx.any(axis=others))
    cut = int(along[0] + random.uniform(0.2, 0.7) * (along[-1] - along[0]))
    part = [slice(None)] * 3
    part[axis] = slice(cut, None) if random.random() < 0.5 else slice(0, max(cut, 4))
    box = tuple(part)
    liver = np.ascontiguousarray(scan.liver_zyx[box])
    return replace(_with(scan, scan.array_zyx[box]), liver_zyx=liver)


def _biased(scan: Scan, random: np.random.Generator) -> Scan:
    """Multiply with a smooth field of brightness."""
    low, _ = _range(scan)
    coarse = [-(-length // 8) for length in scan.array_zyx.shape]
    field = ndimage.gaussian_filter(random.normal(size=coarse), 2)
    field /= max(float(np.abs(field).max()), 1e-6)
    scale = [n / m for n, m in zip(scan.array_zyx.shape, coarse, strict=True)]
    field = np.exp(random.uniform(0.8, 2.2) * ndimage.zoom(field, scale, order=1))
    return _with(scan, low + (scan.array_zyx - low) * field)


def _coarse(scan: Scan, random: np.random.Generator) -> Scan:
    """Average blocks of voxels, so that slices are thicker or pixels larger."""
    blocks = ((int(random.integers(2, 4)), 1, 1), (1, 3, 3), (1, 5, 5), (2, 3, 3))
    block = blocks[int(random.integers(4))]
    array, soft = (
        block_means(one.astype(np.float32), block) for one in (scan.array_zyx, scan.liver_zyx)
    )
    z, y, x = (mm * step for mm, step in zip(scan.spacing_zyx_mm, block, strict=True))
    return Scan(array, soft >= 0.5, (z, y, x))


DEGRADATIONS: Final[dict[str, Callable[[Scan, np.random.Generator], Scan]]] = {
    "repainted": _repainted,
    "faint": _faint,
    "inverted": _inverted,
    "blurred": _blurred,
    "noisy": _noisy,
    "cropped": _cropped,
    "biased": _biased,
    "coarse": _coarse,
}
"""Each kind of degradation, by name."""
