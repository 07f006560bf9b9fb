"""Windows, weights, mirrors and padding of the sliding window, against nnU-Net's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import (
    compute_gaussian,
    compute_steps_for_sliding_window,
)

from sslmedsam2.errors import ModelError
from sslmedsam2.inference.sliding_window import (
    WindowPlan,
    gaussian,
    mirror_combinations,
    slide,
    slide_from,
    window_starts,
)

PATCH = (4, 6, 8)


def image(shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def run(volume, *networks, mirror_axes=(), batch_size=3):
    return slide(volume, networks, plan(mirror_axes=mirror_axes, batch_size=batch_size))


def plan(*, mirror_axes=(), batch_size=3):
    return WindowPlan(patch_size=PATCH, step=0.5, mirror_axes=mirror_axes, batch_size=batch_size)


def test_windows_start_where_nnunets_do():
    for patch in (8, 15, 32):
        for size in range(patch, 5 * patch):
            for step in (0.5, 0.75, 1.0):
                [expected] = compute_steps_for_sliding_window((size,), (patch,), step)
                assert window_starts(size, patch=patch, step=step) == expected


@pytest.mark.parametrize("patch", [(16, 32, 32), (32, 128, 128), (9, 20, 33), (1, 64, 64)])
def test_weights_are_nnunets_in_half_precision(patch):
    reference = compute_gaussian(
        patch, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu")
    )

    np.testing.assert_array_equal(gaussian(patch), reference.float().numpy())
    assert gaussian(patch).min() > 0


def test_a_network_that_copies_gives_the_volume_back():
    volume = image((11, 13, 17))

    np.testing.assert_allclose(run(volume, lambda patches: patches), volume, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_does_not_change_the_result(batch_size):
    volume = image((9, 13, 17))

    def network(patches):
        return patches * patches.mean(axis=(2, 3, 4), keepdims=True)

    np.testing.assert_allclose(
        run(volume, network, batch_size=batch_size, mirror_axes=(0, 2)),
        run(volume, network, batch_size=3, mirror_axes=(0, 2)),
        atol=1e-6,
    )


def test_no_batch_is_larger_than_asked_for():
    sizes = []

    def network(patches):
        sizes.append(len(patches))
        return patches

    run(image((9, 13, 17)), network, batch_size=4, mirror_axes=(1,))

    assert max(sizes) == 4


def test_mirrors_are_all_subsets_of_the_axes():
    assert mirror_combinations(()) == [()]
    assert set(mirror_combinations((0, 2))) == {(), (0,), (2,), (0, 2)}
    assert len(mirror_combinations((0, 1, 2))) == 8


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_mirrored_predictions_are_turned_back_and_averaged(axes):
    volume = image(PATCH)
    ramp = np.arange(np.prod(PATCH), dtype=np.float32).reshape(PATCH)

    def network(patches):
        return patches * ramp

    views = [np.flip(np.flip(volume, flip) * ramp, flip) for flip in mirror_combinations(axes)]

    np.testing.assert_allclose(
        run(volume, network, mirror_axes=axes), np.mean(views, axis=0), rtol=1e-5, atol=1e-4
    )


def test_folds_are_averaged():
    volume = image((6, 9, 12))

    averaged = run(volume, lambda patches: 3 * patches, lambda patches: -patches)

    np.testing.assert_allclose(averaged, volume, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 9, 8), (4, 6, 1), (1, 1, 20)])
def test_small_volumes_are_padded_as_by_nnunet(shape):
    volume = image(shape)
    seen = []

    def network(patches):
        seen.extend(patches[:, 0].copy())
        return patches

    result = run(volume, network, batch_size=1)

    padded = pad_nd_image(volume, PATCH, "constant", {"constant_values": 0})
    np.testing.assert_array_equal(seen[0], padded[tuple(slice(n) for n in PATCH)])
    assert result.shape == shape
    np.testing.assert_allclose(result, volume, atol=1e-6)


class Counting:
    """A network that gives its input back and counts the patches it saw."""

    def __init__(self):
        self.n_patches = 0

    def __call__(self, patches):
        self.n_patches += len(patches)
        return patches


def liver_like(box, shape=(16, 30, 40)):
    margin = np.full(shape, -3.0, np.float32)
    margin[box] = 3.0
    return margin


def test_growing_finds_a_liver_that_spans_many_windows_with_fewer_of_them():
    volume = liver_like((slice(2, 14), slice(4, 26), slice(2, 12)))
    everywhere, growing = Counting(), Counting()

    expected = slide(volume, [everywhere], plan()) > 0
    found = slide_from(volume, [growing], plan(), start=(0.5, 0.5, 0.2)) > 0

    np.testing.assert_array_equal(found, expected)
    assert growing.n_patches < 0.7 * everywhere.n_patches


def test_growing_reaches_a_liver_far_from_where_it_starts():
    volume = liver_like((slice(8, 11), slice(14, 20), slice(20, 27)), shape=(12, 22, 28))

    found = slide_from(volume, [Counting()], plan(), start=(0.1, 0.1, 0.1)) > 0

    np.testing.assert_array_equal(found, volume > 0)


def test_growing_runs_every_window_where_there_is_no_liver():
    volume = np.full((9, 16, 20), -3.0, np.float32)
    everywhere, growing = Counting(), Counting()

    slide(volume, [everywhere], plan())
    margin = slide_from(volume, [growing], plan(), start=(0.5, 0.5, 0.5))

    assert growing.n_patches == everywhere.n_patches
    np.testing.assert_allclose(margin, volume, atol=1e-5)


def test_a_stray_voxel_does_not_end_the_search():
    volume = np.full((40, 60, 80), -1.0, np.float32)
    volume[2, 3, 4] = 1.0
    volume[20:38, 30:58, 40:78] = 1.0

    few_windows = replace(plan(), patch_size=(16, 20, 24))
    margin = slide_from(volume, [Counting()], few_windows, start=(0, 0, 0), enough_voxels=500)

    assert (margin > 0).sum() > 0.9 * 18 * 28 * 38


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_without_finite_output_is_an_error(value):
    def network(patches):
        margins = patches.copy()
        margins[0, 0, 1, 2, 3] = value
        return margins

    with pytest.raises(ModelError, match=r"patch \[0 to 4, 0 to 6, 0 to 8\]: .* not finite"):
        run(image((8, 12, 16)), network)
