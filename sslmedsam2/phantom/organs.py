"""The tissues of an abdomen as layers, painted one over the other.

Each layer is the signed distance (mm) to one tissue at the points asked for. A later layer hides
what lies under it, so neighbours need no exact common border.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sslmedsam2.phantom.anatomy import Anatomy
from sslmedsam2.phantom.shapes import Ellipsoid, Field, Points, Tube, intersection, plane, union

Layer = tuple[str, Field]

_LIVER_VESSELS = ("portal_vein", "hepatic_vein")


def tissue_layers(anatomy: Anatomy, points: Points) -> Iterator[Layer]:
    """Yield (tissue, signed distance in mm), each layer painted over those before it."""
    moved = anatomy.waves.displace(points)
    yield from _trunk_layers(anatomy, moved)
    cavity = _cavity(anatomy, moved)
    yield from _chest_layers(anatomy, moved, cavity)
    yield from _gut_layers(anatomy, moved, cavity)
    yield from _left_organ_layers(anatomy, moved, cavity)
    yield from _liver_layers(anatomy, moved, cavity)
    yield from _midline_layers(anatomy, moved)


def is_part_of_liver(tissue: str) -> bool:
    """Return whether a layer belongs to the reference mask: vessels inside the liver do."""
    return tissue == "liver" or tissue in _LIVER_VESSELS


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
    for outline, content in anatomy.bowels:
        if outline.may_touch(points):
            wall = np.maximum(outline.distance(points), cavity + 1.5)
            yield "bowel_wall", wall
            yield content, wall + 2.6
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


def _liver_shape(anatomy: Anatomy, points: Points, cavity: Field) -> Field:
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
    liver = _liver_shape(anatomy, points, cavity)
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
