"""One synthetic abdomen: its measures, drawn from a seed, and its organs as painted layers.

The layout follows the textbook arrangement of an adult upper abdomen. All measures are
parameters with a random spread; no voxel of a real scan enters. Positions are LPS millimetres
with the origin on the midline, at mid-depth of the trunk, at the height of the liver's dome.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sslmedsam2.phantom.shapes import (
    Ellipsoid,
    Field,
    Points,
    Tube,
    Vector,
    intersection,
    plane,
    union,
)
from sslmedsam2.phantom.vessels import VesselTree, hepatic_veins, portal_tree

Layer = tuple[str, Field]

_LIVER_VESSELS = ("portal_vein", "hepatic_vein")


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
class Bowel:
    """One loop of gut: a wall and what fills it."""

    outline: Ellipsoid
    content: str


@dataclass(frozen=True)
class Anatomy:
    """All measures of one abdomen. ``layers`` paints it; ``liver`` is the reference shape."""

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
    bowels: tuple[Bowel, ...]
    portal: VesselTree
    hepatic: VesselTree

    def layers(self, points: Points) -> Iterator[Layer]:
        """Yield (tissue, signed distance in mm), each layer painted over those before it."""
        moved = self.waves.displace(points)
        yield from _trunk_layers(self, moved)
        cavity = _cavity(self, moved)
        yield from _chest_layers(self, moved, cavity)
        yield from _gut_layers(self, moved, cavity)
        yield from _left_organ_layers(self, moved, cavity)
        yield from _liver_layers(self, moved, cavity)
        yield from _midline_layers(self, moved)


def is_part_of_liver(tissue: str) -> bool:
    """Say whether a layer belongs to the reference mask: vessels inside the liver do."""
    return tissue == "liver" or tissue in _LIVER_VESSELS


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
) -> tuple[Bowel, ...]:
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
        loops.append(Bowel(outline, content))
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
        loops.append(Bowel(outline, str(rng.choice(["stool", "gas", "stool"]))))
    return tuple(loops)


def _trunk_layers(anatomy: Anatomy, points: Points) -> Iterator[Layer]:
    trunk, spine_y = anatomy.trunk, anatomy.spine_y_mm
    skin = trunk.distance(points)
    yield "skin", skin
    yield "fat", skin + 2.5
    wall = trunk.distance(points, inset_mm=trunk.fat_mm)
    yield "muscle", wall
    yield "fat", np.abs(wall + 0.45 * trunk.muscle_mm) - 0.7
    # Ribs run down and forward, so an axial slice cuts each at several places.
    phase = np.sin(2 * np.pi * (points.z_mm - 0.55 * points.y_mm) / 27.0)
    cage = np.abs(wall + 0.6 * trunk.muscle_mm) - 3.5
    beside_midline = 45.0 - np.abs(points.x_mm)
    above_belly = -120.0 - points.z_mm - 0.6 * points.y_mm
    rib = np.maximum.reduce([cage, 5.0 * (0.35 - phase), beside_midline, above_belly])
    yield "cortical_bone", rib
    yield "marrow", rib + 1.8
    for side in (-1, 1):
        back = Ellipsoid((side * 31.0, spine_y + 48.0, 0.0), (29.0, 25.0, 1e4), side * 15.0)
        yield "muscle", np.maximum(back.distance(points), skin + 7.0)


def _cavity(anatomy: Anatomy, points: Points) -> Field:
    """The abdominal cavity: inside the wall, under the two domes of the diaphragm."""
    trunk = anatomy.trunk
    inner = trunk.distance(points, inset_mm=trunk.fat_mm + trunk.muscle_mm)
    domes = []
    for dome in (anatomy.right_dome, anatomy.left_dome):
        height = points.z_mm - dome.centre[2]
        lifted = Points(
            points.x_mm, points.y_mm, (np.maximum(height, 0) + dome.centre[2]).astype(np.float32)
        )
        # Below its equator a dome opens downwards, until the wall alone bounds the cavity.
        domes.append(dome.distance(lifted) - 0.6 * np.maximum(-height, 0))
    under_diaphragm = union(domes[0], domes[1], rounding_mm=30.0)
    return intersection(inner, under_diaphragm.astype(np.float32), rounding_mm=10.0)


def _chest_layers(anatomy: Anatomy, points: Points, cavity: Field) -> Iterator[Layer]:
    trunk = anatomy.trunk
    yield "lung", trunk.distance(points, inset_mm=trunk.fat_mm + trunk.muscle_mm)
    if anatomy.heart.may_touch(points):
        heart = anatomy.heart.distance(points)
        yield "fat", heart - 4.0
        yield "heart_muscle", heart
        yield "heart_blood", anatomy.heart.grown(-13.0).distance(points)
    gullet = Tube(((8, anatomy.spine_y_mm - 36, 60.0), (24, -12, -35.0)), (8.0, 8.0))
    yield "bowel_wall", gullet.distance(points)
    yield "muscle", cavity - 2.0
    yield "fat", cavity


def _gut_layers(anatomy: Anatomy, points: Points, cavity: Field) -> Iterator[Layer]:
    for loop in anatomy.bowels:
        if loop.outline.may_touch(points):
            outline = np.maximum(loop.outline.distance(points), cavity + 1.5)
            yield "bowel_wall", outline
            yield loop.content, outline + 2.6
    yield "bowel_wall", anatomy.duodenum.distance(points)
    yield "fluid", anatomy.duodenum.distance(points) + 3.0
    yield "pancreas", anatomy.pancreas.distance(points)
    if anatomy.stomach.may_touch(points):
        stomach = intersection(anatomy.stomach.distance(points), cavity + 2.0, rounding_mm=6.0)
        inside = stomach + 3.5
        gas_level = anatomy.stomach.centre[1] - 12.0
        yield "stomach_wall", stomach
        yield "stomach_content", inside
        yield "gas", np.maximum(inside, points.y_mm - gas_level)


def _left_organ_layers(anatomy: Anatomy, points: Points, cavity: Field) -> Iterator[Layer]:
    spleen = anatomy.spleen
    if spleen.may_touch(points):
        body = intersection(spleen.distance(points), cavity + 1.5, rounding_mm=8.0)
        for neighbour in (anatomy.stomach, anatomy.left_kidney):
            clear = -neighbour.grown(5.0).distance(points)
            body = intersection(body, clear, rounding_mm=8.0)
        # The hilum hollows the side that faces the stomach.
        x, y, z = spleen.centre
        hollow = Ellipsoid((x - 38.0, y - 22.0, z), (34.0, 30.0, 60.0))
        yield "spleen", intersection(body, -hollow.distance(points), rounding_mm=8.0)
    yield from _kidney_layers(anatomy.left_kidney, points, hilum_x_mm=-20.0)


def _kidney_layers(kidney: Ellipsoid, points: Points, *, hilum_x_mm: float) -> Iterator[Layer]:
    if not kidney.may_touch(points):
        return
    x, y, z = kidney.centre
    yield "kidney_cortex", kidney.distance(points)
    yield "kidney_medulla", kidney.grown(-7.5).distance(points)
    sinus = Ellipsoid((x + hilum_x_mm, y - 10.0, z), (19.0, 11.0, 22.0), kidney.turn_deg)
    yield "fat", sinus.distance(points)
    yield "fluid", sinus.grown(-7.0).distance(points)


def liver_shape(anatomy: Anatomy, points: Points, cavity: Field) -> Field:
    """Signed distance to the liver, before gallbladder, kidney and great vessels are cut out."""
    tip_x, tip_y, _ = anatomy.left_tip
    # Medial border in an axial slice: a line from the back of the cava to the left lobe's tip.
    medial = plane(
        points, through=(tip_x - 8.0, tip_y + 22.0, 0.0), outward=(62.0, 48.0 + 0.2 * tip_x, -14.0)
    )
    # The left lobe ends where it thins out between wall and stomach.
    left_end = plane(points, through=(tip_x, 0.0, -50.0), outward=(1.0, 0.12, -0.45))
    # Lower border: rises from the right tip to the hilum; in front it falls again.
    slope = 0.95
    right_floor = plane(
        points,
        through=(-0.74 * anatomy.trunk.half_width_mm, 0.0, anatomy.right_tip_z_mm),
        outward=(slope, 0.05, -1.0),
    )
    front_floor = plane(points, through=(0.0, -60.0, -96.0), outward=(0.35, 0.75, -1.0))
    floor = union(right_floor, front_floor, rounding_mm=25.0)
    body = intersection(medial, left_end, rounding_mm=14.0)
    body = intersection(body, floor, rounding_mm=16.0)
    return intersection(body, cavity + 1.0, rounding_mm=9.0)


def _liver_layers(anatomy: Anatomy, points: Points, cavity: Field) -> Iterator[Layer]:
    liver = liver_shape(anatomy, points, cavity)
    spine = Ellipsoid((0.0, anatomy.spine_y_mm + 8.0, 0.0), (31.0, 36.0, 1e4)).distance(points)
    kidney = anatomy.right_kidney.grown(3.0).distance(points)
    bladder = anatomy.gallbladder.distance(points)
    for cut, rounding_mm in ((spine, 14.0), (kidney, 6.0), (bladder - 1.0, 5.0)):
        liver = intersection(liver, -cut, rounding_mm=rounding_mm)
    fissure = Ellipsoid((-6.0, -88.0, -92.0), (4.0, 34.0, 30.0), 12.0).distance(points)
    liver = intersection(liver, -fissure, rounding_mm=6.0)
    yield "liver", liver
    inside = liver < 0
    for tissue, tree in (("portal_vein", anatomy.portal), ("hepatic_vein", anatomy.hepatic)):
        yield tissue, np.maximum(tree.distance(points, where=inside), liver + 1.5)
    yield "gallbladder_wall", bladder
    yield "bile", bladder + 2.0
    yield from _kidney_layers(anatomy.right_kidney, points, hilum_x_mm=20.0)


def _midline_layers(anatomy: Anatomy, points: Points) -> Iterator[Layer]:
    y = anatomy.spine_y_mm
    for side in (-1, 1):
        crus = Ellipsoid((side * 24.0, y - 10.0, -60.0), (7.0, 16.0, 95.0), side * 20.0)
        yield "muscle", crus.distance(points)
        psoas = Ellipsoid((side * 32.0, y + 8.0, -215.0), (17.0, 19.0, 85.0))
        yield "muscle", psoas.distance(points)
    # Discs between the vertebral bodies, one every 33 mm.
    disc = np.abs((points.z_mm + 8.0 + 0.1 * points.y_mm) % 33.0 - 16.5) - 4.0
    vertebra = Ellipsoid((0.0, y, 0.0), (23.0, 18.0, 1e4)).distance(points)
    yield "cortical_bone", vertebra - 1.0
    yield "marrow", vertebra + 1.0
    yield "disc", np.maximum(vertebra + 1.0, disc)
    arch = Ellipsoid((0.0, y + 27.0, 0.0), (15.0, 13.0, 1e4)).distance(points)
    process = Ellipsoid((0.0, y + 48.0, 0.0), (4.5, 20.0, 1e4)).distance(points)
    yield "cortical_bone", union(arch, process, rounding_mm=8.0)
    yield "marrow", process + 2.0
    canal = Ellipsoid((0.0, y + 26.0, 0.0), (9.5, 8.0, 1e4)).distance(points)
    yield "csf", canal
    yield "cord", canal + 4.0
    for tissue, vessel in (("cava", anatomy.cava), ("aorta", anatomy.aorta)):
        yield "vessel_wall", vessel.distance(points)
        yield tissue, vessel.distance(points) + 1.6
