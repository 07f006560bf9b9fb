"""Abdomens for tests: a grey one with a bright liver, and one for scanners of any geometry."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np

from sslmedsam2.imaging.volume import Geometry

SPACING_ZYX_MM = (7.0, 4.0, 4.0)
# Array axes x, y, z of the canonical orientation grow to left, posterior, superior.
CANONICAL_AFFINE_RAS = np.array(
    [[-4.0, 0, 0, 150], [0, -4.0, 0, 130], [0, 0, 7.0, -90], [0, 0, 0, 1]]
)

SMALL_AFFINE_RAS = np.array([[-8.0, 0, 0, 150], [0, -8.0, 0, 130], [0, 0, 21.0, -90], [0, 0, 0, 1]])
"""Of `small_abdomen`."""


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


def small_abdomen(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(9, 35, 40)`` voxels of an `abdomen` and the liver's mask."""
    image, mask = abdomen(seed=seed)
    return image[::3, ::2, ::2], mask[::3, ::2, ::2]


def centred_grid(
    shape_zyx: tuple[int, int, int] = (18, 56, 70),
    *,
    spacing_zyx_mm: tuple[float, float, float] = (10.0, 5.0, 5.0),
    centre_xyz_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    direction_xyz: np.ndarray | None = None,
) -> Geometry:
    """Place a grid by its centre; by default it is canonical and about the patient of `render`."""
    direction = np.eye(3) if direction_xyz is None else direction_xyz
    extent = (np.array(shape_zyx[::-1]) - 1) * np.array(spacing_zyx_mm[::-1])
    x, y, z = np.array(centre_xyz_mm) - direction @ extent / 2
    return Geometry(shape_zyx, spacing_zyx_mm, (float(x), float(y), float(z)), direction)


def render(
    geometry: Geometry, *, seed: int = 0, inverted: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return an abdomen's image and liver as a scanner of this geometry stores them.

    The patient lies about the origin of LPS millimetres: a body 300 mm wide and 200 mm deep, with
    a liver on its right, a spleen and a bright spine; ``seed`` makes the patient and the noise.
    """
    generator = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in geometry.shape_zyx), indexing="ij")
    steps_xyz = np.array(geometry.spacing_zyx_mm[::-1])
    index_xyz = np.stack([x, y, z], -1) * steps_xyz
    points = index_xyz @ geometry.direction_xyz.T + np.array(geometry.origin_xyz_mm)
    size = 1 + 0.06 * generator.standard_normal(3)

    def inside(centre: tuple, radii: tuple) -> np.ndarray:
        return (((points - np.array(centre)) / (np.array(radii) * size)) ** 2).sum(-1) < 1

    body = inside((0, 0, 0), (150, 100, 400))
    liver = inside((-60, -10, 10), (70, 60, 55))
    spleen = inside((85, 25, 25), (30, 35, 40))
    spine = inside((0, 70, 0), (20, 20, 400))
    image = (
        90.0 * body + 60 * liver - 40 * spleen + 140 * (spine & body) + 40 * (points[..., 2] / 85)
    )
    image = np.where(body, np.clip(image, 20, 300), 0)
    if inverted:
        image = np.where(body, 320 - image, 0)
    noise = generator.normal(0, 3, image.shape)
    return np.where(body, image + noise, 0).clip(0).astype(np.float32), liver.astype(np.uint8)


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
