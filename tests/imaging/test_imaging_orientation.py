"""One canonical array, however the same scan is stored."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical, to_native
from sslmedsam2.imaging.reading import read_volume

SHAPE_XYZ = (7, 6, 5)
SPACING_XYZ = (1.2, 1.5, 4.0)
STORAGES = list(
    itertools.product(itertools.permutations(range(3)), itertools.product([1, -1], repeat=3))
)


def _voxels() -> np.ndarray:
    return np.random.default_rng(3).normal(size=SHAPE_XYZ).astype(np.float32)


def _canonical_affine(rotation: np.ndarray) -> np.ndarray:
    """Return the RAS affine of an array that grows to left, posterior and superior."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ rotation @ np.diag(SPACING_XYZ)
    affine[:3, 3] = [80, 90, -40]
    return affine


def _oblique(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    small = np.radians(9)
    about_z = np.array(
        [[np.cos(small), -np.sin(small), 0], [np.sin(small), np.cos(small), 0], [0, 0, 1]]
    )
    return about_z @ about_x


def _store(path: Path, affine: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> Path:
    """Write the same scan with its axes permuted and reversed, and an affine that says so."""
    stored = _voxels().transpose(order)
    to_canonical_index = np.zeros((4, 4))
    to_canonical_index[3, 3] = 1
    for axis, sign in enumerate(signs):
        to_canonical_index[order[axis], axis] = sign
        if sign < 0:
            stored = np.flip(stored, axis)
            to_canonical_index[order[axis], 3] = stored.shape[axis] - 1
    nib.save(nib.Nifti1Image(stored, affine @ to_canonical_index), path)
    return path


@pytest.mark.parametrize("degrees", [0, 20, -38])
@pytest.mark.parametrize(("order", "signs"), STORAGES)
def test_all_48_storage_orders_give_one_canonical_array(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...], degrees: float
) -> None:
    affine = _canonical_affine(_oblique(degrees))
    volume = read_volume(_store(tmp_path / "T1.nii", affine, order, signs))
    canonical = to_canonical(volume)
    np.testing.assert_array_equal(canonical.array_zyx, _voxels().T)
    assert canonical.array_zyx.flags.c_contiguous
    assert canonical.spacing_zyx_mm == pytest.approx(SPACING_XYZ[::-1], rel=1e-5)
    back = to_native(canonical.array_zyx, canonical.reorientation)
    np.testing.assert_array_equal(back, volume.array_zyx)
    assert back.flags.c_contiguous


def test_tie_at_45_degrees_is_decided_alike_for_every_storage_order(tmp_path: Path) -> None:
    angle = np.sqrt(0.5)
    tie = np.array([[1, 0, 0], [0, angle, -angle], [0, angle, angle]])
    arrays = []
    for order, signs in STORAGES:
        volume = read_volume(_store(tmp_path / "T1.nii", _canonical_affine(tie), order, signs))
        arrays.append(to_canonical(volume).array_zyx)
    assert all(np.array_equal(arrays[0], other) for other in arrays[1:])


def test_left_handed_scan_equals_its_right_handed_twin(tmp_path: Path) -> None:
    affine = _canonical_affine(np.eye(3))
    right = read_volume(_store(tmp_path / "right.nii", affine, (0, 1, 2), (1, 1, 1)))
    left = read_volume(_store(tmp_path / "left.nii", affine, (0, 1, 2), (1, -1, 1)))
    assert np.linalg.det(right.geometry.direction_xyz) > 0
    assert np.linalg.det(left.geometry.direction_xyz) < 0
    assert not np.array_equal(left.array_zyx, right.array_zyx)
    np.testing.assert_array_equal(to_canonical(left).array_zyx, to_canonical(right).array_zyx)


def test_labels_turn_with_their_image(tmp_path: Path) -> None:
    affine = _canonical_affine(_oblique(20))
    volume = read_volume(_store(tmp_path / "T1.nii", affine, (2, 0, 1), (-1, 1, -1)))
    canonical = to_canonical(volume)
    labels = volume.array_zyx > 0.5
    turned = apply_reorientation(labels, canonical.reorientation)
    assert turned.dtype == np.bool_
    np.testing.assert_array_equal(turned, canonical.array_zyx > 0.5)
    np.testing.assert_array_equal(to_native(turned, canonical.reorientation), labels)
