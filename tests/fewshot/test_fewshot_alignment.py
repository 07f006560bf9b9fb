"""Partners along the body, found by a real encoder's descriptors of phantoms."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_sam2 import centred_grid, make_support

from sslmedsam2.fewshot.alignment import align, find_place
from sslmedsam2.fewshot.slices import cut, cut_slices
from sslmedsam2.fewshot.store import Encoder

N = 20
STEP_MM = 8.0


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
    return align(
        _some(volume, query),
        list(zip(scans, places, strict=True)),
        centre=volume.descriptors.mean(0),
    )


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
