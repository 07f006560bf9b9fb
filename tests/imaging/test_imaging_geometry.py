"""Headers' numbers become geometries, within named tolerances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import (
    ROUNDING_SHEAR,
    SAME_GRID_VOXELS,
    TINY_SHEAR,
    affine_lps,
    geometry_from_steps,
    same_grid,
)
from sslmedsam2.imaging.volume import Geometry

STEPS = np.array([[0.8, 0, 0], [0, -0.9, 0], [0, 0, 5.0]])


def _geometry(steps: np.ndarray = STEPS) -> tuple[Geometry, tuple[str, ...]]:
    return geometry_from_steps(
        Path("T1.nii"),
        shape_zyx=(20, 200, 100),
        steps_xyz_mm=steps,
        origin_xyz_mm=np.array([1.0, 2.0, 3.0]),
    )


def _sheared(cosine: float) -> np.ndarray:
    steps = STEPS.copy()
    steps[:, 1] = 0.9 * np.array([cosine, -np.sqrt(1 - cosine**2), 0])
    return steps


def test_spacing_direction_and_affine() -> None:
    geometry, repairs = _geometry()
    assert geometry.spacing_zyx_mm == pytest.approx((5.0, 0.9, 0.8))
    np.testing.assert_allclose(geometry.direction_xyz, np.diag([1, -1, 1]))
    np.testing.assert_allclose(affine_lps(geometry)[:3, :3], STEPS)
    np.testing.assert_allclose(affine_lps(geometry)[:3, 3], [1, 2, 3])
    assert repairs == ()


@pytest.mark.parametrize(
    ("cosine", "names"),
    [
        (0.9 * ROUNDING_SHEAR, []),
        (1.1 * ROUNDING_SHEAR, ["tiny_shear"]),
        (0.99 * TINY_SHEAR, ["tiny_shear"]),
        (-0.99 * TINY_SHEAR, ["tiny_shear"]),
    ],
)
def test_small_shear_becomes_the_nearest_rotation(cosine: float, names: list[str]) -> None:
    geometry, repairs = _geometry(_sheared(cosine))
    assert [note.split(":")[0] for note in repairs] == names
    direction = geometry.direction_xyz
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    # The nearest rotation shares the error out between the two axes.
    np.testing.assert_allclose(direction[0, 1], cosine / 2, rtol=1e-2)
    assert geometry.spacing_zyx_mm == pytest.approx((5.0, 0.9, 0.8))


def test_larger_shear_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        _geometry(_sheared(1.01 * TINY_SHEAR))
    assert caught.value.kind == "sheared_affine"


def test_same_grid_tolerates_rounding_only() -> None:
    geometry, _ = _geometry()
    x, y, z = geometry.origin_xyz_mm
    tolerance_mm = SAME_GRID_VOXELS * 0.8
    assert same_grid(geometry, replace(geometry, origin_xyz_mm=(x + 0.9 * tolerance_mm, y, z)))
    assert not same_grid(geometry, replace(geometry, origin_xyz_mm=(x + 1.1 * tolerance_mm, y, z)))
    assert not same_grid(geometry, replace(geometry, shape_zyx=(20, 200, 101)))
    assert not same_grid(geometry, replace(geometry, direction_xyz=np.eye(3)))
