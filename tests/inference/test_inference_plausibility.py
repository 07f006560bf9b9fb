"""What is told from a liver, and what is not."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_scans import SPACING_ZYX_MM, abdomen

from sslmedsam2.inference.plausibility import (
    has_usual_volume,
    implausible_traits,
    is_implausible,
    liver_traits,
)


def traits(array, mask, *, confidence=0.97, components=1, spacing=SPACING_ZYX_MM):
    return liver_traits(
        mask, array, spacing_zyx_mm=spacing, confidence=confidence, components=components
    )


def test_a_liver_in_its_place_is_plausible():
    array, liver = abdomen()

    assert implausible_traits(traits(array, liver)) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"confidence": 0.8}, "mean foreground probability 0.80"),
        ({"centre_x": 0.5}, "not on the patient's right"),
        ({"share": 0.7}, "too large a part of the body"),
        ({"spread": 1.0}, "not one tissue"),
        ({"roughness": 0.5}, "no smooth tissue"),
        ({"components": 12}, "12 pieces"),
    ],
)
def test_each_trait_out_of_range_is_said_and_one_alone_is_not_enough(change, said):
    array, liver = abdomen()

    found = implausible_traits(replace(traits(array, liver), **change))

    assert found == (said,)
    assert not is_implausible(found)


@pytest.mark.parametrize(
    ("volume_ml", "usual"), [(399, False), (400, True), (2556, True), (5000, True), (5001, False)]
)
def test_one_range_says_how_large_livers_are(volume_ml, usual):
    assert has_usual_volume(volume_ml) == usual


def test_a_liver_on_the_left_is_enough():
    array, liver = abdomen()
    mirrored = traits(array[:, :, ::-1], liver[:, :, ::-1])

    assert is_implausible(implausible_traits(mirrored))
    assert implausible_traits(mirrored) == ("on the patient's left",)


def test_noise_and_a_bottle_are_implausible():
    random = np.random.default_rng(0)
    noise = np.abs(random.normal(0, 100, (20, 60, 60))).astype(np.float32)
    bright = (noise > 130).astype(np.uint8)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (20, 60, 60)), indexing="ij")
    inside = (y**2 + x**2 < 0.5) & (abs(z) < 2)
    bottle = (500 * inside + random.normal(0, 5, inside.shape)).astype(np.float32)

    assert is_implausible(implausible_traits(traits(noise, bright, confidence=0.8)))
    assert is_implausible(implausible_traits(traits(bottle, inside.astype(np.uint8))))


def test_a_single_voxel_is_measured():
    array, liver = abdomen()
    speck = np.zeros_like(liver)
    speck[12, 35, 26] = 1

    assert is_implausible(implausible_traits(traits(array, speck)))


def test_a_coronal_stack_may_begin_and_end_in_the_liver():
    array, liver = abdomen()
    z, y, x = SPACING_ZYX_MM
    y_of_liver = np.flatnonzero(liver.any(axis=(0, 2)))
    stack = slice(y_of_liver[0] + 6, y_of_liver[-1] - 3, 3)
    coronal = {"array": array[:, stack], "mask": liver[:, stack]}

    found = traits(**coronal, spacing=(z, 3 * y, x))

    assert found.slice_axis == 1
    assert found.border == 0
    assert not is_implausible(implausible_traits(found))
    # Without slices of another axis its first and last planes are side faces.
    assert traits(**coronal, spacing=(z, z, z)).border > 0.01
