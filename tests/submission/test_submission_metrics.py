import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage
from scipy.spatial.distance import cdist

from sslmedsam2.submission.metrics import diagonal_mm, measure, surface

SPACING_ZYX_MM = (6.6, 1.56, 0.9)


def blob(seed, shape=(12, 40, 48), level=0.02):
    """A smooth random shape, sometimes in several pieces, sometimes at the array's edge."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, (1.5, 5, 5)) > level


def border_by_erosion(mask):
    return mask & ~ndimage.binary_erosion(mask)


def brute_force_distances(one, other):
    start = np.argwhere(border_by_erosion(one)) * SPACING_ZYX_MM
    goal = np.argwhere(border_by_erosion(other)) * SPACING_ZYX_MM
    table = cdist(start, goal)
    return table.min(axis=1), table.min(axis=0)


def itk_image(mask):
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(SPACING_ZYX_MM[::-1])
    return image


@pytest.mark.parametrize("seed", range(6))
def test_overlap_and_hausdorff_agree_with_simpleitk(seed):
    prediction, reference = blob(seed), blob(seed + 100)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(itk_image(reference), itk_image(prediction))
    distance = sitk.HausdorffDistanceImageFilter()
    borders = [itk_image(border_by_erosion(mask)) for mask in (prediction, reference)]
    distance.Execute(*borders)

    metrics = measure(prediction, reference, spacing_zyx_mm=SPACING_ZYX_MM)

    assert metrics.dice == pytest.approx(overlap.GetDiceCoefficient(1), abs=1e-12)
    assert metrics.hausdorff_mm == pytest.approx(distance.GetHausdorffDistance(), rel=1e-5)
    # ITK's volume similarity is 2 (source - target) / (source + target).
    similarity = 2 * metrics.volume_error_ml / (metrics.volume_ml + metrics.reference_volume_ml)
    assert abs(similarity) == pytest.approx(abs(overlap.GetVolumeSimilarity(1)), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_all_distances_agree_with_brute_force(seed):
    prediction, reference = blob(seed), blob(seed + 100, level=0.03)
    forth, back = brute_force_distances(prediction, reference)

    metrics = measure(prediction, reference, spacing_zyx_mm=SPACING_ZYX_MM)

    assert metrics.hausdorff_mm == pytest.approx(max(forth.max(), back.max()))
    assert metrics.hausdorff95_mm == pytest.approx(
        max(np.percentile(forth, 95), np.percentile(back, 95))
    )
    assert metrics.surface_distance_mm == pytest.approx(
        (forth.sum() + back.sum()) / (forth.size + back.size)
    )


@pytest.mark.parametrize("shape", [(12, 40, 48), (1, 20, 20), (5, 1, 9), (1, 1, 1)])
def test_the_surface_is_what_an_erosion_removes(shape):
    mask = np.random.default_rng(0).random(shape) < 0.9

    np.testing.assert_array_equal(surface(mask), border_by_erosion(mask))


def test_known_figures_of_two_boxes():
    prediction, reference = np.zeros((2, 10, 20, 20), np.uint8)
    reference[2:6, 5:10, 5:10] = 1
    prediction[2:6, 5:10, 5:12] = 1

    metrics = measure(prediction, reference, spacing_zyx_mm=(5.0, 2.0, 1.5))

    assert metrics.dice == pytest.approx(2 * 100 / 240)
    assert metrics.hausdorff_mm == pytest.approx(3.0)
    assert metrics.reference_volume_ml == pytest.approx(1.5)
    assert metrics.volume_error_ml == pytest.approx(0.6)
    assert metrics.volume_error_percent == pytest.approx(40.0)


def test_one_stray_voxel_decides_the_hausdorff_distance_and_hardly_hd95():
    reference = np.zeros((10, 40, 40), bool)
    reference[2:8, 5:25, 5:25] = True
    prediction = reference.copy()
    prediction[2, 39, 5] = True

    metrics = measure(prediction, reference, spacing_zyx_mm=(5.0, 1.0, 1.0))

    assert metrics.hausdorff_mm == pytest.approx(15.0)
    assert metrics.hausdorff95_mm == 0


def test_equal_masks_have_no_distance():
    metrics = measure(blob(1), blob(1), spacing_zyx_mm=SPACING_ZYX_MM)

    assert (metrics.dice, metrics.hausdorff_mm, metrics.surface_distance_mm) == (1, 0, 0)


def test_a_mask_at_the_arrays_edge_is_measured_as_one_inside():
    inside = [np.pad(mask, 3) for mask in (blob(3), blob(4))]

    at_edge = measure(blob(3), blob(4), spacing_zyx_mm=SPACING_ZYX_MM)

    assert at_edge.hausdorff_mm > 0
    assert measure(*inside, spacing_zyx_mm=SPACING_ZYX_MM) == at_edge


def test_one_empty_mask_has_dice_zero_and_no_distance():
    empty, full = np.zeros((4, 5, 6), bool), np.ones((4, 5, 6), bool)

    for pair in ((empty, full), (full, empty)):
        metrics = measure(*pair, spacing_zyx_mm=SPACING_ZYX_MM)
        assert metrics.dice == 0
        assert np.isnan([metrics.hausdorff_mm, metrics.hausdorff95_mm]).all()
        assert np.isnan(metrics.surface_distance_mm)


def test_two_empty_masks_agree():
    empty = np.zeros((4, 5, 6), bool)

    metrics = measure(empty, empty, spacing_zyx_mm=SPACING_ZYX_MM)

    assert (metrics.dice, metrics.hausdorff_mm, metrics.volume_error_ml) == (1, 0, 0)
    assert np.isnan(metrics.volume_error_percent)


def test_arrays_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="do not match"):
        measure(np.ones((3, 4, 5)), np.ones((3, 5, 4)), spacing_zyx_mm=SPACING_ZYX_MM)


def test_the_diagonal_bounds_every_distance():
    one, other = np.zeros((2, 4, 5, 6), bool)
    one[0, 0, 0] = other[-1, -1, -1] = True

    longest = diagonal_mm((4, 5, 6), spacing_zyx_mm=SPACING_ZYX_MM)

    assert measure(one, other, spacing_zyx_mm=SPACING_ZYX_MM).hausdorff_mm == pytest.approx(longest)
