"""Supports on a query's grid, and partners along the body found by a real encoder."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_sam2 import make_query, make_support
from tiny_scans import centred_grid, render

from sslmedsam2.fewshot.alignment import align, find_place, on_query_grid
from sslmedsam2.fewshot.slices import cut, cut_slices
from sslmedsam2.fewshot.store import Encoder
from sslmedsam2.imaging.orientation import apply_reorientation
from sslmedsam2.imaging.volume import mask_dice

N = 20
STEP_MM = 8.0
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


@pytest.mark.parametrize(
    ("support_grid", "query_grid"),
    [
        ("LAS", "same"),
        ("LAS", "coronal"),
        ("upside down", "LAS"),
        ("upside down", "oblique"),
        ("coronal", "same"),
        ("coronal", "LAS"),
        ("finer", "coronal"),
        ("shifted", "finer"),
        ("shifted", "oblique"),
    ],
)
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


@pytest.fixture(scope="module")
def whole(tiny_sam2):
    """One patient from pelvis to chest: encoded slices and masks."""
    geometry = centred_grid((N, 56, 70), spacing_zyx_mm=(STEP_MM, 5.0, 5.0))
    support = make_support("a", seed=1, geometry=geometry)
    stack = cut_slices(support.image, size=64)
    volume = Encoder(tiny_sam2).volume(stack)
    return volume, cut(support.mask_zyx, stack.crop, size=64) > 0.5


def _some(volume, indices):
    """Scan only some of the slices; heights are counted from the lowest."""
    indices = np.asarray(indices)
    z_mm = volume.z_mm[indices]
    return replace(
        volume,
        features=volume.features[slice(0, len(indices))],
        descriptors=volume.descriptors[indices],
        z_mm=z_mm - z_mm[0],
    )


def _partners(whole, *, query, supports):
    volume, masks = whole
    scans = [_some(volume, indices) for indices in supports]
    places = [
        find_place(masks[np.asarray(indices)].astype(np.float32), scan.z_mm)
        for indices, scan in zip(supports, scans, strict=True)
    ]
    return align(_some(volume, query), list(zip(scans, places, strict=True)))[0]


@pytest.mark.parametrize("shift", [0, 1, 3, 5])
def test_a_query_that_begins_higher_finds_its_slices(whole, shift):
    query = range(shift, N)
    (found,) = _partners(whole, query=query, supports=[range(N)])
    assert found.indices.tolist() == list(query)
    assert found.similarity > 0.99


def test_slices_beyond_the_support_get_its_end_slices(whole):
    """The support lacks four slices below and two above; all of its organ is in it."""
    (found,) = _partners(whole, query=range(N), supports=[range(4, N - 2)])
    assert found.indices.tolist() == (np.arange(N) - 4).clip(0, N - 7).tolist()


def test_each_of_several_supports_is_found_where_it_lies(whole):
    starts = (0, 2, 4)
    found = _partners(whole, query=range(1, N - 1), supports=[range(s, N) for s in starts])
    for start, partners in zip(starts, found, strict=True):
        expected = (np.arange(1, N - 1) - start).clip(0)
        assert np.abs(partners.indices - expected).max() <= 1


def test_slices_twice_as_thick_are_paired_by_millimetres(whole):
    (found,) = _partners(whole, query=range(0, N, 2), supports=[range(N)])
    assert np.abs(found.indices - np.arange(0, N, 2)).max() <= 1


def test_an_offset_of_all_descriptors_moves_nothing(whole):
    """What another modality adds to every slice says nothing of the height."""
    volume, masks = whole
    offset = 5 * np.abs(volume.descriptors).max() * np.sign(volume.descriptors[0])
    other = replace(volume, descriptors=volume.descriptors + offset)
    place = find_place(masks.astype(np.float32), volume.z_mm)
    ((found,),) = align(_some(other, range(3, N)), [(volume, place)])
    assert found.indices.tolist() == list(range(3, N))
    assert found.similarity > 0.99


def test_a_query_cut_in_its_organ_finds_its_slices(whole):
    """The organ's middle is above the query's highest slice."""
    _, masks = whole
    filled = np.flatnonzero(masks.any((1, 2)))
    query = range(filled[0] - 3, (filled[0] + filled[-1]) // 2)
    (found,) = _partners(whole, query=query, supports=[range(N)])
    assert found.indices.tolist() == list(query)


def test_a_support_that_shows_other_parts_of_the_body_does_not_move_the_query(whole):
    """One support has no slice above its organ, another none below it."""
    _, masks = whole
    filled = np.flatnonzero(masks.any((1, 2)))
    scans = [range(filled[-1] + 1), range(filled[0], N), range(N)]
    found = _partners(whole, query=range(2, N), supports=scans)
    for scan, partners in zip(scans, found, strict=True):
        expected = (np.arange(2, N) - scan[0]).clip(0, len(scan) - 1)
        assert np.abs(partners.indices - expected).max() <= 1


def test_a_single_query_slice_has_a_partner(whole):
    (found,) = _partners(whole, query=[9], supports=[range(N)])
    assert found.indices.shape == (1,)
    assert 0 <= found.indices[0] < N


def test_a_single_support_slice_is_everyones_partner(whole):
    (found,) = _partners(whole, query=range(N), supports=[[9]])
    assert found.indices.tolist() == [0] * N


def test_a_place_is_where_the_mask_is():
    masks = np.zeros((6, 4, 4), np.float32)
    masks[2:5, 1, 1] = 1
    place = find_place(masks, np.arange(6) * 5.0)
    assert place.middle_mm == 15
    assert place.height_mm == 10


def test_other_heights_are_offered_after_the_likeliest_and_apart_from_it(whole):
    volume, masks = whole
    place = find_place(masks.astype(np.float32), volume.z_mm)
    best, *others = align(volume, [(volume, place)], n_places=3)
    assert best[0].indices.tolist() == list(range(N))
    assert len(others) == 2
    for (other,) in others:
        assert np.abs(volume.z_mm[other.indices] - volume.z_mm).max() >= 30
