"""Coarse scans of a grey abdomen with a bright liver, for the model of ``tiny_models``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np

SPACING_ZYX_MM = (7.0, 4.0, 4.0)
# Array axes x, y, z of the canonical orientation grow to left, posterior, superior.
CANONICAL_AFFINE_RAS = np.array(
    [[-4.0, 0, 0, 150], [0, -4.0, 0, 130], [0, 0, 7.0, -90], [0, 0, 0, 1]]
)


def abdomen(*, seed: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return canonical ``[z, y, x]`` voxels and the liver's mask; a bright spot lies elsewhere."""
    image, liver = _abdomen(seed)
    return image.copy(), liver.copy()


@cache
def _abdomen(seed: int) -> tuple[np.ndarray, np.ndarray]:
    # At the model's 8 mm no axis ends half-way between two sizes, where rounding would decide.
    shape = (26, 70, 80)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = (y / 0.7) ** 2 + (x / 0.8) ** 2 < 1
    liver = ((z - 0.1) / 0.6) ** 2 + ((y + 0.05) / 0.4) ** 2 + ((x + 0.35) / 0.35) ** 2 < 1
    spot = (z + 0.6) ** 2 + y**2 + (x - 0.5) ** 2 < 0.03
    noise = np.random.default_rng(seed).normal(0, 4, size=shape)
    return (80 * body + 150 * (liver | spot) + noise + 20).astype(np.float32), liver.astype("u1")


def write_scan(
    path: Path,
    array_zyx: np.ndarray | None = None,
    *,
    dtype: type = np.int16,
    affine_ras: np.ndarray = CANONICAL_AFFINE_RAS,
    trailing_axis: bool = False,
) -> Path:
    """Write voxels as NIfTI, by default the abdomen in its canonical orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array_zyx = abdomen()[0] if array_zyx is None else array_zyx
    voxels = np.rint(array_zyx.transpose(2, 1, 0)).astype(dtype)
    image = nib.Nifti1Image(voxels[..., None] if trailing_axis else voxels, affine_ras)
    image.set_qform(affine_ras, code=1)
    image.set_sform(affine_ras, code=1)
    nib.save(image, path)
    return path
