"""From an anatomy to voxels: brightness, sampling on a grid, partial volume, texture and noise.

The table of brightness, relative to a full scale of about 1, follows the well-known appearance of
tissues: fat-suppressed T2 (fluid brightest, spleen brighter than liver), fat-suppressed T1 gradient
echo (liver and pancreas brighter than spleen, fluid dark), diffusion weighting at b = 800 (spleen
and kidney bright, fluid and vessels dark) and the phases after a hepatobiliary agent (arterial GED1
to hepatobiliary GED4: liver brightest, its vessels dark).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from sslmedsam2.errors import UsageError
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, MaskZYX
from sslmedsam2.phantom.anatomy import Anatomy
from sslmedsam2.phantom.organs import is_part_of_liver, tissue_layers
from sslmedsam2.phantom.shapes import Points

SEQUENCES = ("T2", "T1", "DWI_800", "GED1", "GED2", "GED3", "GED4")
_TABLE: Mapping[str, tuple[float, ...]] = {
    #                   T2    T1   DWI   GED1  GED2  GED3  GED4
    "skin":            (0.22, 0.30, 0.05, 0.30, 0.32, 0.32, 0.30),
    "fat":             (0.19, 0.22, 0.05, 0.20, 0.20, 0.20, 0.24),
    "muscle":          (0.20, 0.44, 0.13, 0.36, 0.40, 0.40, 0.42),
    "cortical_bone":   (0.07, 0.12, 0.03, 0.12, 0.12, 0.12, 0.12),
    "marrow":          (0.32, 0.32, 0.14, 0.30, 0.34, 0.34, 0.32),
    "disc":            (0.45, 0.36, 0.14, 0.28, 0.30, 0.30, 0.30),
    "csf":             (1.05, 0.14, 0.10, 0.14, 0.14, 0.14, 0.14),
    "cord":            (0.62, 0.38, 0.48, 0.36, 0.38, 0.38, 0.36),
    "lung":            (0.03, 0.05, 0.02, 0.06, 0.06, 0.06, 0.06),
    "heart_muscle":    (0.36, 0.42, 0.12, 0.55, 0.60, 0.56, 0.46),
    "heart_blood":     (0.26, 0.34, 0.04, 0.95, 0.72, 0.60, 0.46),
    "vessel_wall":     (0.40, 0.38, 0.08, 0.50, 0.55, 0.50, 0.42),
    "aorta":           (0.20, 0.28, 0.03, 1.05, 0.72, 0.60, 0.44),
    "cava":            (0.24, 0.30, 0.04, 0.50, 0.70, 0.60, 0.44),
    "liver":           (0.43, 0.60, 0.36, 0.50, 0.68, 0.74, 0.82),
    "portal_vein":     (0.80, 0.36, 0.08, 0.48, 0.88, 0.66, 0.46),
    "hepatic_vein":    (0.74, 0.36, 0.08, 0.40, 0.84, 0.64, 0.45),
    "gallbladder_wall": (0.42, 0.42, 0.20, 0.42, 0.46, 0.44, 0.40),
    "bile":            (1.06, 0.30, 0.16, 0.24, 0.24, 0.26, 0.34),
    "spleen":          (0.80, 0.42, 0.95, 0.78, 0.72, 0.62, 0.52),
    "kidney_cortex":   (0.84, 0.50, 0.74, 0.98, 0.88, 0.78, 0.64),
    "kidney_medulla":  (0.96, 0.38, 0.70, 0.50, 0.80, 0.80, 0.58),
    "pancreas":        (0.42, 0.62, 0.34, 0.70, 0.64, 0.58, 0.52),
    "stomach_wall":    (0.44, 0.44, 0.20, 0.55, 0.56, 0.52, 0.46),
    "stomach_content": (0.88, 0.26, 0.12, 0.22, 0.22, 0.22, 0.22),
    "bowel_wall":      (0.48, 0.44, 0.22, 0.52, 0.54, 0.50, 0.44),
    "chyme":           (0.66, 0.34, 0.18, 0.28, 0.28, 0.28, 0.28),
    "fluid":           (0.98, 0.20, 0.12, 0.18, 0.18, 0.18, 0.18),
    "stool":           (0.28, 0.40, 0.12, 0.36, 0.36, 0.36, 0.36),
    "gas":             (0.03, 0.04, 0.02, 0.04, 0.04, 0.04, 0.04),
}  # fmt: skip

# Relative strength of the mottle inside a tissue; 0.05 where a tissue is not named.
_MOTTLE: Mapping[str, float] = {
    "fat": 0.10, "chyme": 0.20, "stool": 0.45, "bowel_wall": 0.15, "stomach_content": 0.22,
    "lung": 0.5, "heart_blood": 0.25, "heart_muscle": 0.15, "muscle": 0.14, "marrow": 0.12,
    "pancreas": 0.15, "kidney_medulla": 0.12, "csf": 0.03, "bile": 0.03, "fluid": 0.06,
    "aorta": 0.25, "cava": 0.25,
}  # fmt: skip
_DEFAULT_MOTTLE = 0.05


@dataclass(frozen=True)
class Appearance:
    """What the scanner adds to one sequence.

    ``full_scale`` is the stored value of relative brightness 1, ``noise`` the standard deviation
    of each channel of the complex noise and ``blur_mm`` the in-plane Gaussian sigma.
    """

    full_scale: float
    noise: float
    blur_mm: float


_APPEARANCES: Mapping[str, Appearance] = {
    "T2": Appearance(full_scale=300, noise=0.006, blur_mm=0.7),
    "T1": Appearance(full_scale=260, noise=0.007, blur_mm=0.7),
    "DWI_800": Appearance(full_scale=150, noise=0.015, blur_mm=2.0),
}
# The dynamic phases share one protocol.
_DYNAMIC = Appearance(full_scale=220, noise=0.009, blur_mm=0.6)


# Heights inside a slice, in slice thicknesses, over which partial volume is averaged. The middle
# one is the voxel centre, where the mask is sampled.
_SUB_SLICES = (-0.33, 0.0, 0.33)
_MIDDLE = 1
_CENTRE_XYZ_MM = (0.0, 0.0, -92.0)


def axial_grid(
    *,
    shape_zyx: tuple[int, int, int],
    spacing_zyx_mm: tuple[float, float, float],
    direction_xyz: npt.NDArray[np.float64] | None = None,
) -> Geometry:
    """Build a grid centred on the axis of the body, at the height of the liver."""
    direction = np.eye(3) if direction_xyz is None else direction_xyz
    half_extent_xyz = np.array(
        [(n - 1) / 2 * step for n, step in zip(shape_zyx, spacing_zyx_mm, strict=True)][::-1]
    )
    origin = np.array(_CENTRE_XYZ_MM) - direction @ half_extent_xyz
    return Geometry(
        shape_zyx=shape_zyx,
        spacing_zyx_mm=spacing_zyx_mm,
        origin_xyz_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction_xyz=direction,
    )


def render_sequence(
    anatomy: Anatomy, sequence: str, *, grid: Geometry, seed: int
) -> tuple[ArrayZYX, MaskZYX]:
    """Scan an anatomy.

    Parameters
    ----------
    anatomy
        What is scanned; shared by all sequences of a case.
    sequence
        One of ``SEQUENCES``.
    grid
        The voxel grid, in any orientation.
    seed
        Of the tissue values, texture, shading and noise.

    Returns
    -------
    tuple of arrays
        The image, ``[z, y, x]`` float32 >= 0, and the liver mask, ``[z, y, x]`` of 0 and 1, both
        on the grid.

    Raises UsageError: the sequence is unknown.
    """
    if sequence not in SEQUENCES:
        raise UsageError(
            sequence,
            reason="not a sequence the phantom knows",
            remedy=f"Use one of {', '.join(SEQUENCES)}",
        )
    rng = np.random.default_rng([seed, anatomy.seed, SEQUENCES.index(sequence)])
    column = SEQUENCES.index(sequence)
    brightness = {
        tissue: row[column] * float(rng.uniform(0.94, 1.06)) for tissue, row in _TABLE.items()
    }
    texture = _texture(grid, rng=rng)
    image = np.zeros(grid.shape_zyx, dtype=np.float32)
    mask = np.zeros(grid.shape_zyx, dtype=np.uint8)
    for index in range(grid.shape_zyx[0]):
        image[index], mask[index] = _render_slice(
            anatomy, brightness, grid=grid, index=index, texture=texture[index]
        )
    return _acquire(image, sequence, grid=grid, rng=rng), mask


def _slice_points(grid: Geometry, index: int) -> Points:
    """World positions of one slice at each sub-slice height, as arrays (sub-slice, y, x)."""
    _, rows, columns = grid.shape_zyx
    step_z, step_y, step_x = grid.spacing_zyx_mm
    k = (np.asarray(_SUB_SLICES)[:, None, None] + index) * step_z
    j = (np.arange(rows) * step_y)[None, :, None]
    i = (np.arange(columns) * step_x)[None, None, :]
    direction = grid.direction_xyz
    x, y, z = (
        (
            grid.origin_xyz_mm[axis]
            + direction[axis, 0] * i
            + direction[axis, 1] * j
            + direction[axis, 2] * k
        ).astype(np.float32)
        for axis in range(3)
    )
    return Points(x, y, z)


def _render_slice(
    anatomy: Anatomy,
    brightness: dict[str, float],
    *,
    grid: Geometry,
    index: int,
    texture: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    points = _slice_points(grid, index)
    edge_mm = max(grid.spacing_zyx_mm[1:])
    value = np.zeros(points.x_mm.shape, dtype=np.float32)
    liver = np.zeros(points.x_mm.shape[1:], dtype=bool)
    for tissue, distance in tissue_layers(anatomy, points):
        cover = np.clip(0.5 - distance / edge_mm, 0.0, 1.0)
        paint = brightness[tissue] * (1.0 + _MOTTLE.get(tissue, _DEFAULT_MOTTLE) * texture)
        value += cover * (paint - value)
        inside = distance[_MIDDLE] < 0
        liver = liver | inside if is_part_of_liver(tissue) else liver & ~inside
    return value.mean(axis=0), liver


def _texture(grid: Geometry, *, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Mottle of zero mean and unit variance: grain of about 3 mm over clouds of about 12 mm."""
    total = np.zeros(grid.shape_zyx, dtype=np.float32)
    for size_mm, weight in ((3.0, 0.75), (12.0, 0.66)):
        white = rng.standard_normal(grid.shape_zyx, dtype=np.float32)
        smooth = gaussian_filter(white, [size_mm / step / 2.0 for step in grid.spacing_zyx_mm])
        total += weight * smooth / smooth.std()
    return total


def _acquire(
    image: npt.NDArray[np.float32], sequence: str, *, grid: Geometry, rng: np.random.Generator
) -> ArrayZYX:
    """Blur in plane, shade by the coils, add Rician noise and scale to stored values."""
    traits = _APPEARANCES.get(sequence, _DYNAMIC)
    _, step_y, step_x = grid.spacing_zyx_mm
    blurred = gaussian_filter(image, (0.0, traits.blur_mm / step_y, traits.blur_mm / step_x))
    shaded = blurred * _coil_shading(grid.shape_zyx, rng=rng)
    real = shaded + traits.noise * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = traits.noise * rng.standard_normal(image.shape, dtype=np.float32)
    return (traits.full_scale * np.hypot(real, imaginary)).astype(np.float32)


def _coil_shading(
    shape_zyx: tuple[int, int, int], *, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A smooth gain around 1: a random quadratic of the position, at most about 25 % off."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape_zyx), indexing="ij", sparse=True)
    terms = (x, y, z, x * x - 0.33, y * y - 0.33, z * z - 0.33, x * y)
    exponent = sum(
        weight * term for weight, term in zip(rng.uniform(-0.1, 0.1, 7), terms, strict=True)
    )
    return np.exp(exponent).astype(np.float32)
