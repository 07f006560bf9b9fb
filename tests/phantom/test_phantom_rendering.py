import numpy as np
import pytest
from scipy.ndimage import binary_erosion, label

from sslmedsam2.errors import UsageError
from sslmedsam2.phantom.anatomy import make_anatomy
from sslmedsam2.phantom.organs import tissue_layers
from sslmedsam2.phantom.rendering import _slice_points, axial_grid, render_sequence

GRID = axial_grid(shape_zyx=(14, 40, 51), spacing_zyx_mm=(16.0, 6.4, 6.4))
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def scans():
    """Scan three abdomens as T2."""
    return {seed: render_sequence(make_anatomy(seed), "T2", grid=GRID, seed=seed) for seed in SEEDS}


def volume_ml(mask):
    return mask.sum() * np.prod(GRID.spacing_zyx_mm) / 1000


@pytest.mark.parametrize("seed", SEEDS)
def test_liver_has_an_adult_volume_and_is_nearly_all_one_piece(scans, seed):
    mask = scans[seed][1]
    labels, _ = label(mask)
    sizes = np.bincount(labels.ravel())[1:]
    assert 900 < volume_ml(mask) < 2400
    assert sizes.max() > 0.97 * sizes.sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_liver_lies_on_the_patients_right_inside_the_volume(scans, seed):
    mask = scans[seed][1]
    x_mm = GRID.origin_xyz_mm[0] + np.argwhere(mask)[:, 2] * GRID.spacing_zyx_mm[2]
    assert x_mm.mean() < -40
    assert x_mm.max() > 0, "the left lobe crosses the midline"
    assert not mask[[0, -1]].any()


def test_same_seed_gives_the_same_scan_and_another_seed_another_liver(scans):
    image, mask = render_sequence(make_anatomy(0), "T2", grid=GRID, seed=0)
    assert np.array_equal(image, scans[0][0])
    assert np.array_equal(mask, scans[0][1])
    assert (mask != scans[1][1]).sum() > 0.1 * mask.sum()


def test_all_sequences_of_a_case_share_the_liver(scans):
    _, ged4 = render_sequence(make_anatomy(1), "GED4", grid=GRID, seed=1)
    assert np.array_equal(ged4, scans[1][1])


@pytest.fixture(scope="module")
def with_spleen():
    """An abdomen, and where its spleen is."""
    anatomy = make_anatomy(3)
    return anatomy, labelled_tissue(anatomy, "spleen")


@pytest.mark.parametrize(
    ("sequence", "brighter_than_liver"),
    [("T2", True), ("T1", False), ("DWI_800", True), ("GED4", False)],
)
def test_spleen_against_liver_follows_the_sequence(with_spleen, sequence, brighter_than_liver):
    anatomy, spleen = with_spleen
    image, mask = render_sequence(anatomy, sequence, grid=GRID, seed=3)
    liver_value = np.median(image[binary_erosion(mask)])
    assert (np.median(image[spleen]) > liver_value) == brighter_than_liver


def labelled_tissue(anatomy, wanted):
    """Find the voxels whose top layer is the wanted tissue, well inside it."""
    found = np.zeros(GRID.shape_zyx, dtype=bool)
    for index in range(GRID.shape_zyx[0]):
        top = found[index]
        for tissue, distance in tissue_layers(anatomy, _slice_points(GRID, index)):
            top = top & (distance[1] > 4) if tissue != wanted else distance[1] < -4
        found[index] = top
    assert found.any()
    return found


def test_mask_keeps_its_place_in_the_patient_on_a_turned_grid(scans):
    """The mask of a left-handed grid is the other's mask flipped, not another liver."""
    flipped = axial_grid(
        shape_zyx=GRID.shape_zyx,
        spacing_zyx_mm=GRID.spacing_zyx_mm,
        direction_xyz=np.diag([1.0, -1.0, 1.0]),
    )
    _, mask = render_sequence(make_anatomy(0), "T2", grid=flipped, seed=0)
    assert (mask[:, ::-1] != scans[0][1]).mean() < 1e-4


def test_air_is_dark_and_noise_is_never_negative(scans):
    image = scans[0][0]
    assert image.min() >= 0
    assert image[:, :3, :3].mean() < 0.05 * np.percentile(image, 99)


def test_unknown_sequence_raises():
    with pytest.raises(UsageError, match="CT"):
        render_sequence(make_anatomy(0), "CT", grid=GRID, seed=0)
