"""From an anatomy to voxels: sampling on a grid, partial volume, texture, shading and noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from sslmedsam2.errors import UsageError
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, MaskZYX
from sslmedsam2.phantom.anatomy import Anatomy
from sslmedsam2.phantom.contrast import SEQUENCES, appearance, mottle, tissue_brightness
from sslmedsam2.phantom.organs import is_part_of_liver, tissue_layers
from sslmedsam2.phantom.shapes import Points

# Heights inside a slice, in slice thicknesses, over which partial volume is averaged. The middle
# one is the voxel centre, where the mask is sampled.
_SUB_SLICES = (-0.33, 0.0, 0.33)
_MIDDLE = 1


def axial_grid(
    *,
    shape_zyx: tuple[int, int, int],
    spacing_zyx_mm: tuple[float, float, float],
    centre_xyz_mm: tuple[float, float, float] = (0.0, 0.0, -92.0),
    direction_xyz: npt.NDArray[np.float64] | None = None,
) -> Geometry:
    """Build a grid centred on a point of the anatomy; the default centre is the liver's height."""
    direction = np.eye(3) if direction_xyz is None else direction_xyz
    half_extent_xyz = np.array(
        [(n - 1) / 2 * step for n, step in zip(shape_zyx, spacing_zyx_mm, strict=True)][::-1]
    )
    origin = np.asarray(centre_xyz_mm) - direction @ half_extent_xyz
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
        One of ``contrast.SEQUENCES``.
    grid
        The voxel grid, in any orientation.
    seed
        Of the tissue values, texture, shading and noise.

    Returns
    -------
    tuple of arrays
        The image, ``[z, y, x]`` float32 >= 0, and the liver mask, ``[z, y, x]`` of 0 and 1, both
        on the grid.

    Raises
    ------
    UsageError
        If the sequence is unknown.
    """
    if sequence not in SEQUENCES:
        raise UsageError(
            sequence,
            reason="not a sequence the phantom knows",
            remedy=f"Use one of {', '.join(SEQUENCES)}",
        )
    rng = np.random.default_rng([seed, anatomy.seed, SEQUENCES.index(sequence)])
    brightness = tissue_brightness(sequence, rng=rng)
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
        paint = brightness[tissue] * (1.0 + mottle(tissue) * texture)
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
    traits = appearance(sequence)
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
