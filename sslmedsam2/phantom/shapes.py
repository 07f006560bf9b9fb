"""Solids and vessel trees as signed distances in millimetres: negative inside, positive outside.

Distances are approximate away from the surface, which is all that painting with soft edges needs.
Coordinates are LPS millimetres with the origin under the top of the liver's dome: x grows to the
patient's left, y to posterior, z to superior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Field = npt.NDArray[np.float32]
Vector = tuple[float, float, float]

_MARGIN_MM = 4.0
"""Points this far above or below an ellipsoid may still be painted by its soft edge."""


@dataclass(frozen=True)
class Points:
    """Where to evaluate shapes: three arrays of one common shape, in millimetres."""

    x_mm: Field
    y_mm: Field
    z_mm: Field


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid turned about the z axis by ``turn_deg`` (from x towards y)."""

    centre: Vector
    radii: Vector
    turn_deg: float = 0.0

    def may_touch(self, points: Points) -> bool:
        """Return whether any point lies at the ellipsoid's height; a cheap reason to skip it."""
        reach_mm = self.radii[2] + _MARGIN_MM
        low, high = float(points.z_mm.min()), float(points.z_mm.max())
        return low - reach_mm < self.centre[2] < high + reach_mm

    def grown(self, margin_mm: float) -> Ellipsoid:
        """The same ellipsoid with each radius larger by ``margin_mm`` (smaller if negative)."""
        radii = tuple(max(radius + margin_mm, 0.5) for radius in self.radii)
        return Ellipsoid(self.centre, (radii[0], radii[1], radii[2]), self.turn_deg)

    def distance(self, points: Points) -> Field:
        """Signed distance: the implicit function divided by the length of its gradient."""
        # Python floats: a NumPy scalar would turn the float32 arrays into float64.
        turn = math.radians(self.turn_deg)
        cos, sin = math.cos(turn), math.sin(turn)
        radius_u, radius_v, radius_w = self.radii
        dx, dy = points.x_mm - self.centre[0], points.y_mm - self.centre[1]
        u = (cos * dx + sin * dy) / radius_u
        v = (cos * dy - sin * dx) / radius_v
        w = (points.z_mm - self.centre[2]) / radius_w
        u2, v2, w2 = u * u, v * v, w * w
        level = np.sqrt(u2 + v2 + w2)
        slope = np.sqrt(u2 / radius_u**2 + v2 / radius_v**2 + w2 / radius_w**2)
        distance = level * (level - 1.0) / np.maximum(slope, 1e-6)
        return distance.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Tube:
    """A chain of cylinders with round ends through ``nodes``, with one radius per node."""

    nodes: tuple[Vector, ...]
    radii: tuple[float, ...]

    def distance(self, points: Points) -> Field:
        """Signed distance to the nearest link; the radius runs linearly along a link."""
        links = zip(self.nodes[:-1], self.nodes[1:], self.radii[:-1], self.radii[1:], strict=True)
        result: Field | None = None
        for start, end, radius_start, radius_end in links:
            ax, ay, az = (e - s for s, e in zip(start, end, strict=True))
            dx, dy, dz = points.x_mm - start[0], points.y_mm - start[1], points.z_mm - start[2]
            along = (dx * ax + dy * ay + dz * az) / (ax * ax + ay * ay + az * az)
            along = np.clip(along, 0.0, 1.0)
            gap = np.sqrt((dx - along * ax) ** 2 + (dy - along * ay) ** 2 + (dz - along * az) ** 2)
            gap -= radius_start + along * (radius_end - radius_start)
            result = gap if result is None else np.minimum(result, gap)
        if result is None:
            raise ValueError("a tube needs at least two nodes")
        return result


def plane(points: Points, *, through: Vector, outward: Vector) -> Field:
    """Signed distance to the half space that lies against ``outward`` (any length)."""
    length = math.hypot(*outward)
    nx, ny, nz = (component / length for component in outward)
    offset = nx * through[0] + ny * through[1] + nz * through[2]
    return points.x_mm * nx + points.y_mm * ny + points.z_mm * nz - offset


def union(first: Field, second: Field, *, rounding_mm: float) -> Field:
    """Join two shapes; the crease between them is filled over about ``rounding_mm``."""
    blend = np.maximum(rounding_mm - np.abs(first - second), 0.0) / rounding_mm
    return np.minimum(first, second) - 0.25 * rounding_mm * blend * blend


def intersection(first: Field, second: Field, *, rounding_mm: float) -> Field:
    """Keep what two shapes share; the edge is blunted over about ``rounding_mm``."""
    return -union(-first, -second, rounding_mm=rounding_mm)


_FAR_MM = 50.0
_SEARCH_MM = 12.0
_STEP_MM = 1.5


@dataclass(frozen=True)
class VesselTree:
    """A tree as beads along its centre lines: positions (N, 3) as x, y, z and radii (N,)."""

    beads_xyz_mm: npt.NDArray[np.float64]
    radii_mm: npt.NDArray[np.float64]

    def distance(self, points: Points, *, where: npt.NDArray[np.bool_]) -> Field:
        """Signed distance at the points chosen by ``where``; far away elsewhere."""
        result = np.full(where.shape, _FAR_MM, dtype=np.float32)
        chosen = np.stack([points.x_mm[where], points.y_mm[where], points.z_mm[where]], axis=-1)
        gap, bead = cKDTree(self.beads_xyz_mm).query(chosen, distance_upper_bound=_SEARCH_MM)
        near = np.isfinite(gap)
        signed = np.full(gap.shape, _FAR_MM, dtype=np.float32)
        signed[near] = gap[near] - self.radii_mm[bead[near]]
        result[where] = signed
        return result


def portal_tree(rng: np.random.Generator) -> VesselTree:
    """The portal vein: a trunk at the hilum, a right and a left branch, and their twigs."""
    hilum = np.array([-30.0, -8.0, -84.0])
    fork = np.array([-42.0, -14.0, -70.0])
    beads = [_beads(hilum, fork, 6.0, 5.5)]
    beads += _grow(rng, fork, direction=(-1.0, 0.25, -0.1), length_mm=34, radius_mm=5.2, depth=5)
    beads += _grow(rng, fork, direction=(0.7, -0.7, 0.25), length_mm=34, radius_mm=4.4, depth=4)
    return _tree(beads)


def hepatic_veins(rng: np.random.Generator, *, cava_x_mm: float) -> VesselTree:
    """Three veins that meet the cava below the dome, and their twigs."""
    mouth = np.array([cava_x_mm - 3.0, 0.0, -24.0])
    beads: list[npt.NDArray[np.float64]] = []
    for direction in ((-1.0, 0.05, -0.35), (-0.5, -0.8, -0.4), (0.6, -0.8, -0.2)):
        beads += _grow(rng, mouth, direction=direction, length_mm=38, radius_mm=4.6, depth=4)
    return _tree(beads)


def _grow(
    rng: np.random.Generator,
    start: npt.NDArray[np.float64],
    *,
    direction: Vector,
    length_mm: float,
    radius_mm: float,
    depth: int,
) -> list[npt.NDArray[np.float64]]:
    heading = np.asarray(direction) + 0.15 * rng.normal(size=3)
    heading /= np.linalg.norm(heading)
    end = start + heading * length_mm * rng.uniform(0.85, 1.15)
    beads = [_beads(start, end, radius_mm, 0.8 * radius_mm)]
    if depth > 0:
        side = np.cross(heading, rng.normal(size=3))
        side /= np.linalg.norm(side)
        for sign in (-1.0, 1.0):
            twig = heading + sign * rng.uniform(0.35, 0.75) * side
            beads += _grow(
                rng,
                end,
                direction=(float(twig[0]), float(twig[1]), float(twig[2])),
                length_mm=0.78 * length_mm,
                radius_mm=0.74 * radius_mm,
                depth=depth - 1,
            )
    return beads


def _beads(
    start: npt.NDArray[np.float64],
    end: npt.NDArray[np.float64],
    radius_start_mm: float,
    radius_end_mm: float,
) -> npt.NDArray[np.float64]:
    count = max(int(np.linalg.norm(end - start) / _STEP_MM), 2)
    along = np.linspace(0.0, 1.0, count)[:, None]
    radii = radius_start_mm + along * (radius_end_mm - radius_start_mm)
    return np.concatenate([start + along * (end - start), radii], axis=1)


def _tree(beads: list[npt.NDArray[np.float64]]) -> VesselTree:
    rows = np.concatenate(beads)
    return VesselTree(rows[:, :3], rows[:, 3])
