"""Branching vessels of the liver: random trees of thinning twigs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from sslmedsam2.phantom.shapes import Field, Points, Vector

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
