import numpy as np
import pytest
from tiny_sam2 import centred_grid, make_query, make_support, render

from sslmedsam2.fewshot.alignment import on_query_grid
from sslmedsam2.fewshot.outcome import mask_dice
from sslmedsam2.imaging.orientation import apply_reorientation

LAS = np.diag([1.0, -1.0, 1.0])  # x to the left, y to anterior, z to superior: left-handed
RAI = np.diag([-1.0, 1.0, -1.0])
CORONAL = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])  # stored rows run along the body


def _oblique(degrees):
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])


GRIDS = {
    "same": centred_grid(),
    "LAS": centred_grid(direction_xyz=LAS),
    "upside down": centred_grid(direction_xyz=RAI),
    "coronal": centred_grid((40, 44, 64), spacing_zyx_mm=(6.0, 4.0, 5.0), direction_xyz=CORONAL),
    "finer": centred_grid((34, 80, 100), spacing_zyx_mm=(5.0, 3.0, 3.5)),
    "shifted": centred_grid((22, 60, 76), centre_xyz_mm=(17.0, -12.0, 13.0)),
    "oblique": centred_grid((24, 60, 80), direction_xyz=_oblique(12)),
}


@pytest.mark.parametrize("query_grid", ["same", "LAS", "coronal", "finer", "oblique"])
@pytest.mark.parametrize("support_grid", ["LAS", "upside down", "coronal", "finer", "shifted"])
def test_a_support_lands_where_the_patient_is(support_grid, query_grid):
    support = make_support("p/GED4", seed=3, geometry=GRIDS[support_grid])
    query = make_query("p/T2", seed=3, geometry=GRIDS[query_grid])
    image, mask = on_query_grid(support, query)
    truth = apply_reorientation(render(GRIDS[query_grid], seed=3)[1], query.image.reorientation)
    assert image.shape == mask.shape == query.image.array_zyx.shape
    assert mask.dtype == np.uint8
    assert mask_dice(mask > 0, truth > 0) > 0.9
    body = query.image.array_zyx > 0
    covered = body & (image > 0)
    assert covered.sum() > 0.6 * body.sum()
    assert np.corrcoef(image[covered], query.image.array_zyx[covered])[0, 1] > 0.9


def test_the_same_grid_changes_nothing():
    support = make_support("p/GED4", seed=3, geometry=GRIDS["LAS"])
    image, mask = on_query_grid(support, make_query("p/T2", seed=3, geometry=GRIDS["LAS"]))
    np.testing.assert_allclose(image, support.image.array_zyx, atol=1e-3)
    np.testing.assert_array_equal(mask, support.mask_zyx)


def test_beyond_the_support_there_is_nothing():
    low = centred_grid((6, 56, 70), centre_xyz_mm=(0.0, 0.0, -60.0))
    image, mask = on_query_grid(
        make_support("p/GED4", seed=3, geometry=low), make_query("p/T2", seed=3)
    )
    assert image[:4].any()
    assert not image[-10:].any()
    assert not mask[-10:].any()
