import numpy as np
import pytest

from sslmedsam2.phantom.shapes import Ellipsoid, Points, Tube, intersection, plane, union


def points(*xyz):
    x, y, z = np.array(xyz, dtype=np.float32).T
    return Points(x, y, z)


def test_sphere_distance_is_exact_inside_and_outside():
    sphere = Ellipsoid((1, 2, 3), (10, 10, 10))
    distance = sphere.distance(points((1, 2, 28), (1, 2, 8), (11, 2, 3)))
    assert distance == pytest.approx([15, -5, 0], abs=1e-4)


def test_turned_ellipsoid_points_its_long_axis_from_x_towards_y():
    long = Ellipsoid((0, 0, 0), (20, 2, 2), turn_deg=90)
    distance = long.distance(points((0, 15, 0), (15, 0, 0)))
    assert distance[0] < 0 < distance[1]


def test_grown_ellipsoid_never_turns_inside_out():
    assert min(Ellipsoid((0, 0, 0), (3, 20, 20)).grown(-10).radii) > 0


def test_may_touch_is_false_only_out_of_reach():
    ball = Ellipsoid((0, 0, 0), (5, 5, 5))
    assert ball.may_touch(points((99, 99, 3)))
    assert not ball.may_touch(points((0, 0, 40), (0, 0, 60)))


def test_tube_radius_runs_linearly_along_a_link():
    tube = Tube(((0, 0, 0), (0, 0, 10)), (2, 4))
    distance = tube.distance(points((5, 0, 0), (5, 0, 5), (5, 0, 10), (0, 0, 16)))
    assert distance == pytest.approx([3, 2, 1, 2], abs=1e-5)


def test_plane_distance_ignores_the_normals_length():
    distance = plane(points((0, 0, 7)), through=(0, 0, 2), outward=(0, 0, 9))
    assert distance == pytest.approx([5])


def test_rounding_acts_near_creases_only():
    first = np.array([-1.0, -30.0], dtype=np.float32)
    second = np.array([-1.0, 5.0], dtype=np.float32)
    assert union(first, second, rounding_mm=8) == pytest.approx([-3, -30])
    assert intersection(first, second, rounding_mm=8) == pytest.approx([1, 5])
