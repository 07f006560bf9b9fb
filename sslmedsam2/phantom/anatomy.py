"""Dimensions of one synthetic abdomen, drawn from a seed.

The layout follows the textbook arrangement of an adult upper abdomen. All dimensions are
parameters with a random spread; no voxel of a real scan is used. Positions are LPS millimetres
with the origin on the midline, at mid-depth of the trunk, at the height of the liver's dome.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sslmedsam2.phantom.shapes import (
    Ellipsoid,
    Field,
    Points,
    Tube,
    Vector,
    VesselTree,
    hepatic_veins,
    portal_tree,
)


@dataclass(frozen=True)
class Trunk:
    """The body's outline and its nested walls (a superellipse that changes with height)."""

    half_width_mm: float
    half_depth_mm: float
    fat_mm: float
    muscle_mm: float

    def distance(self, points: Points, *, inset_mm: float = 0.0) -> Field:
        """Signed distance to the skin, or to a wall ``inset_mm`` below it."""
        # The belly is flatter than the chest, and the back has a furrow along the spine.
        below = np.clip(-points.z_mm / 200.0, -0.2, 1.2)
        anterior = self.half_depth_mm * (1.0 - 0.22 * below * np.abs(below))
        posterior = self.half_depth_mm * (0.97 - 0.06 * below)
        depth = np.where(points.y_mm < 0, anterior, posterior) - inset_mm
        # Fat is thin at the flanks and thick in front.
        width = self.half_width_mm * (1.0 - 0.03 * below) - 0.75 * inset_mm
        furrow = 9.0 * np.exp(-((points.x_mm / 22.0) ** 2)) * (points.y_mm > 0)
        y = points.y_mm + furrow * np.clip(points.y_mm / 60.0, 0.0, 1.0)
        level = (np.abs(points.x_mm / width) ** 2.35 + np.abs(y / depth) ** 2.35) ** (1 / 2.35)
        radius = np.sqrt(points.x_mm**2 + y**2)
        return (radius * (1.0 - 1.0 / np.maximum(level, 0.05))).astype(np.float32)


@dataclass(frozen=True)
class Waves:
    """A smooth displacement: a few plane waves with random direction, length and phase."""

    wave_vectors: tuple[Vector, ...]
    amplitudes_mm: tuple[Vector, ...]
    phases: tuple[float, ...]

    def displace(self, points: Points) -> Points:
        """Move each point by the sum of the waves."""
        x, y, z = points.x_mm.copy(), points.y_mm.copy(), points.z_mm.copy()
        waves = zip(self.wave_vectors, self.amplitudes_mm, self.phases, strict=True)
        for (kx, ky, kz), (ax, ay, az), phase in waves:
            wave = np.sin(kx * points.x_mm + ky * points.y_mm + kz * points.z_mm + phase)
            x += ax * wave
            y += ay * wave
            z += az * wave
        return Points(x, y, z)


@dataclass(frozen=True)
class Anatomy:
    """All measures of one abdomen; ``organs.tissue_layers`` turns them into shapes.

    ``bowels`` holds the outline of each loop of gut and what fills it.
    """

    seed: int
    trunk: Trunk
    waves: Waves
    right_dome: Ellipsoid
    left_dome: Ellipsoid
    left_tip: Vector
    right_tip_z_mm: float
    spine_y_mm: float
    spleen: Ellipsoid
    stomach: Ellipsoid
    right_kidney: Ellipsoid
    left_kidney: Ellipsoid
    gallbladder: Ellipsoid
    heart: Ellipsoid
    cava: Tube
    aorta: Tube
    pancreas: Tube
    duodenum: Tube
    bowels: tuple[tuple[Ellipsoid, str], ...]
    portal: VesselTree
    hepatic: VesselTree


def make_anatomy(seed: int) -> Anatomy:
    """Draw one abdomen; the same seed always gives the same one."""
    rng = np.random.default_rng([seed, 1])

    def near(value: float, spread: float) -> float:
        return float(value + spread * rng.uniform(-1.0, 1.0))

    half_width, half_depth = near(154, 7), near(114, 8)
    spine_y = near(26, 5)
    right_dome = Ellipsoid(
        (near(-60, 3), near(-4, 4), -76.0), (near(92, 3), near(92, 4), near(76, 2))
    )
    left_dome = Ellipsoid(
        (near(55, 4), near(-8, 4), near(-92, 5)), (near(92, 3), near(92, 4), near(72, 4))
    )
    cava_x = near(-20, 3)
    return Anatomy(
        seed=seed,
        trunk=Trunk(half_width, half_depth, fat_mm=near(12, 4), muscle_mm=near(12, 2)),
        waves=_random_waves(rng),
        right_dome=right_dome,
        left_dome=left_dome,
        left_tip=(near(52, 12), near(-66, 6), 0.0),
        right_tip_z_mm=near(-148, 14),
        spine_y_mm=spine_y,
        spleen=Ellipsoid(
            (near(95, 5), near(42, 5), near(-72, 8)), (near(44, 4), near(40, 4), near(50, 7)), -20.0
        ),
        stomach=Ellipsoid(
            (near(62, 6), near(-28, 6), near(-66, 6)), (near(40, 5), near(40, 5), near(46, 6)), 25.0
        ),
        right_kidney=Ellipsoid(
            (near(-64, 4), near(32, 5), near(-136, 8)),
            (near(27, 2), near(32, 2), near(52, 4)),
            near(-35, 10),
        ),
        left_kidney=Ellipsoid(
            (near(64, 4), near(32, 5), near(-130, 8)),
            (near(27, 2), near(32, 2), near(52, 4)),
            near(35, 10),
        ),
        gallbladder=Ellipsoid(
            (near(-60, 5), near(-56, 6), near(-112, 5)),
            (near(15, 3), near(24, 4), near(26, 4)),
            near(25, 15),
        ),
        heart=Ellipsoid((near(22, 5), near(-42, 5), near(12, 5)), (58.0, 46.0, 38.0), 25.0),
        cava=Tube(
            (
                (cava_x, spine_y - 26, -230.0),
                (cava_x, spine_y - 24, -90.0),
                (cava_x - 2, 6, -25.0),
                (cava_x + 4, -5, 10.0),
            ),
            (10.0, 10.0, 12.0, 12.0),
        ),
        aorta=Tube(
            (
                (near(8, 4), spine_y - 30, -230.0),
                (near(10, 3), spine_y - 30, -90.0),
                (near(22, 3), spine_y - 12, 40.0),
            ),
            (9.0, 10.0, 11.0),
        ),
        pancreas=Tube(
            (
                (-42, -16, -118.0),
                (-18, -22, -104.0),
                (10, -28, -98.0),
                (44, -8, -88.0),
                (74, 16, -78.0),
            ),
            (13.0, 11.0, 9.0, 10.0, 8.0),
        ),
        duodenum=Tube(
            ((-40, -34, -100.0), (-52, -12, -116.0), (-50, -6, -160.0), (-12, -8, -172.0)),
            (11.0, 12.0, 11.0, 10.0),
        ),
        bowels=_random_bowels(rng, half_width=half_width, half_depth=half_depth),
        portal=portal_tree(rng),
        hepatic=hepatic_veins(rng, cava_x_mm=cava_x),
    )


def _random_waves(rng: np.random.Generator) -> Waves:
    vectors, amplitudes, phases = [], [], []
    for length_mm, amplitude_mm in ((240, 4.0), (180, 3.5), (130, 2.5), (80, 1.6), (55, 1.1)):
        axis = rng.normal(size=3)
        axis *= 2 * np.pi / (length_mm * np.linalg.norm(axis))
        push = rng.normal(size=3)
        push *= amplitude_mm / np.linalg.norm(push)
        vectors.append((float(axis[0]), float(axis[1]), float(axis[2])))
        amplitudes.append((float(push[0]), float(push[1]), float(push[2])))
        phases.append(float(rng.uniform(0, 2 * np.pi)))
    return Waves(tuple(vectors), tuple(amplitudes), tuple(phases))


def _random_bowels(
    rng: np.random.Generator, *, half_width: float, half_depth: float
) -> tuple[tuple[Ellipsoid, str], ...]:
    """Small bowel anywhere in the lower cavity, colon at the flanks and along the front."""
    loops = []
    for _ in range(120):
        centre = (
            float(rng.uniform(-0.55, 0.74) * half_width),
            float(rng.uniform(-0.68, 0.12) * half_depth),
            float(rng.uniform(-235, -92)),
        )
        radii = tuple(float(r) for r in rng.uniform((13, 10, 10), (26, 16, 20)))
        content = str(rng.choice(["chyme", "bowel_wall", "fluid", "chyme", "bowel_wall"]))
        outline = Ellipsoid(centre, (radii[0], radii[1], radii[2]), float(rng.uniform(-60, 60)))
        loops.append((outline, content))
    colon_course = [
        *((-0.66, -0.10, z) for z in (-230, -205, -180, -160)),
        *((x, -0.62, -128 + 12 * abs(x)) for x in (-0.4, -0.22, -0.05, 0.12, 0.3, 0.46)),
        (0.62, -0.42, -95.0),
        (0.70, -0.28, -84.0),
        *((0.74, -0.02, z) for z in (-130, -155, -180, -205, -230)),
    ]
    for x, y, z in colon_course:
        size = float(rng.uniform(15, 20))
        outline = Ellipsoid((x * half_width, y * half_depth, float(z)), (size, size, size + 3))
        loops.append((outline, str(rng.choice(["stool", "gas", "stool"]))))
    return tuple(loops)
