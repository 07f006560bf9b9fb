"""The engine's resampling against nnU-Net's own."""

import numpy as np
import pytest
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    resample_data_or_seg_to_shape,
)

from sslmedsam2.inference.model_folder import Resampling
from sslmedsam2.inference.resampling import (
    make_resampler,
    resample,
    resample_above_zero,
    resample_margin,
    resampled_shape,
)

GRIDS = {
    "thick axis 0, finer in plane": ((9, 20, 24), (8.0, 2.5, 2.0), (6.0, 1.5, 1.5)),
    "thick axis 0, coarser": ((12, 30, 26), (4.0, 0.8, 1.0), (9.0, 2.0, 2.0)),
    "thick axis 1": ((21, 8, 19), (1.5, 7.0, 1.2), (1.0, 5.0, 2.0)),
    "thick axis 2": ((18, 23, 7), (1.5, 1.2, 7.0), (2.1, 1.0, 9.0)),
    "only the new grid is thick": ((14, 16, 18), (2.0, 2.0, 2.0), (8.0, 2.0, 1.5)),
    "isotropic, upsampled": ((11, 13, 9), (2.0, 2.0, 2.0), (1.2, 1.3, 1.4)),
    "isotropic, downsampled": ((21, 23, 19), (1.0, 1.1, 1.2), (2.0, 1.8, 1.9)),
    "two equally thick axes": ((9, 10, 30), (5.0, 5.0, 1.0), (4.0, 4.0, 1.5)),
    "thick axis only": ((9, 20, 24), (8.0, 2.0, 2.0), (5.0, 2.0, 2.0)),
    "in plane only": ((9, 20, 24), (8.0, 2.0, 2.0), (8.0, 1.5, 2.6)),
    "nothing to do": ((9, 20, 24), (8.0, 2.0, 2.0), (8.0, 2.0, 2.0)),
}
AS_PLANNED = [(3, 0, None), (1, 0, None)]
FORCED = [(3, 0, False), (1, 0, False), (3, 1, None), (1, 1, True), (3, 0, True)]


def noise(shape, seed=5):
    # Rough on purpose: splines overshoot here, so that a missing clip would show.
    return np.random.default_rng(seed).normal(100, 40, size=shape).astype(np.float32)


def resampler_for(grid, rule):
    shape, old_mm, new_mm = GRIDS[grid]
    new_shape = resampled_shape(shape, spacing_mm=old_mm, new_spacing_mm=new_mm)
    return make_resampler(shape, new_shape, spacing_mm=old_mm, new_spacing_mm=new_mm, rule=rule)


def by_nnunet(volume, grid, rule):
    shape, old_mm, new_mm = GRIDS[grid]
    return resample_data_or_seg_to_shape(
        volume[None].astype(np.float32),
        compute_new_shape(shape, old_mm, new_mm),
        old_mm,
        new_mm,
        is_seg=False,
        order=rule.order,
        order_z=rule.order_z,
        force_separate_z=rule.force_separate_z,
    )[0]


@pytest.mark.parametrize("grid", GRIDS)
def test_new_shape_is_nnunets(grid):
    shape, old_mm, new_mm = GRIDS[grid]

    ours = resampled_shape(shape, spacing_mm=old_mm, new_spacing_mm=new_mm)

    assert ours == tuple(compute_new_shape(shape, old_mm, new_mm))


@pytest.mark.parametrize("rule", [Resampling(*rule) for rule in AS_PLANNED + FORCED], ids=str)
@pytest.mark.parametrize("grid", GRIDS)
def test_values_are_nnunets_to_rounding(grid, rule):
    volume = noise(GRIDS[grid][0])

    ours = resample(volume, resampler_for(grid, rule))

    assert ours.dtype == np.float32
    # float32 against nnU-Net's float64: about 1e-6 of the values' size.
    np.testing.assert_allclose(ours, by_nnunet(volume, grid, rule), atol=1e-3)


@pytest.mark.parametrize("order_z", [0, 1])
@pytest.mark.parametrize("grid", GRIDS)
def test_mask_is_where_nnunets_logits_are_positive(grid, order_z):
    rule = Resampling(order=1, order_z=order_z, force_separate_z=None)
    margin = noise(GRIDS[grid][0]) - 100

    mask = resample_above_zero(margin, resampler_for(grid, rule))

    reference = by_nnunet(margin, grid, rule)
    decided = np.abs(reference) > 1e-3
    assert mask.dtype == np.uint8
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(mask[decided], reference[decided] > 0)


@pytest.mark.parametrize("is_small", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_margin_is_positive_exactly_where_the_mask_is(grid, is_small):
    rule = Resampling(order=1, order_z=0, force_separate_z=None)
    margin = noise(GRIDS[grid][0]) - 100
    if is_small:
        liver = np.zeros_like(margin, bool)
        liver[2:8, 3:8, 1:6] = True
        margin = np.where(liver, np.abs(margin), -np.abs(margin))

    resampled = resample_margin(margin, resampler_for(grid, rule))

    np.testing.assert_allclose(resampled, by_nnunet(margin, grid, rule), atol=1e-3)
    mask = resample_above_zero(margin, resampler_for(grid, rule))
    np.testing.assert_array_equal(resampled > 0, mask)


def test_a_margin_that_is_nowhere_positive_gives_an_empty_mask():
    grid = "isotropic, upsampled"
    rule = Resampling(order=1, order_z=0, force_separate_z=None)

    mask = resample_above_zero(-np.ones(GRIDS[grid][0], np.float32), resampler_for(grid, rule))

    assert not mask.any()
