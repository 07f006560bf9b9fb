from dataclasses import replace

import numpy as np
import pytest
import torch
from strategy_samples import (
    assert_same_result,
    assert_sound,
    build,
    counted_slices,
    empty_query,
    short_grid,
    supports_of,
)
from tiny_sam2 import make_query, make_support
from tiny_scans import centred_grid

from sslmedsam2.errors import InputError
from sslmedsam2.fewshot import retrieval
from sslmedsam2.fewshot.checkpoint import load_sam2
from sslmedsam2.fewshot.outcome import mask_dice
from sslmedsam2.pseudo_label.supports import COMPACT_PATH

N_SLICES = 6
GRID = short_grid(N_SLICES)
LAS = np.diag([1.0, -1.0, 1.0])
OWN_GRID = centred_grid((9, 50, 60), spacing_zyx_mm=(14.0, 6.0, 6.0), centre_xyz_mm=(8, -5, 4))
QUERY = make_query("q/T2", seed=9, geometry=GRID)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def strategy(tiny_sam2, scratch):
    return build(tiny_sam2, supports_of(GRID), scratch)


@pytest.fixture(scope="module")
def result(strategy):
    return strategy.segment(QUERY)


def test_a_result_is_sound(result):
    assert_sound(result, QUERY)
    assert [support.name for support in result.supports] == ["s1/GED4", "s2/GED4", "s3/GED4"]
    for support in result.supports:
        assert 0 <= support.agreement <= 1
        assert 0 <= support.reverse_dice <= 1


def test_earlier_queries_leave_no_trace(strategy, result):
    strategy.segment(make_query("other/T1", seed=4, geometry=short_grid(5), inverted=True))
    assert_same_result(strategy.segment(QUERY), result)


def test_the_order_of_supports_does_not_matter(tiny_sam2, scratch, result):
    shuffled = [supports_of(GRID)[k] for k in (2, 0, 1)]
    assert_same_result(build(tiny_sam2, shuffled, scratch).segment(QUERY), result)


def test_supports_on_disk_give_the_same(tiny_sam2, tmp_path, result):
    on_disk = build(tiny_sam2, supports_of(GRID), tmp_path, memory_limit_mb=0)
    assert len(list(tmp_path.iterdir())) == 3
    assert_same_result(on_disk.segment(QUERY), result)


@pytest.mark.parametrize("left_out", ["s1/GED4", "s3/GED4"])
def test_leaving_a_support_out_is_never_having_had_it(tiny_sam2, scratch, strategy, left_out):
    rest = [support for support in supports_of(GRID) if support.name != left_out]
    without = build(tiny_sam2, rest, scratch).segment(QUERY)
    left = strategy.segment(QUERY, leave_out_case=left_out.split("/")[0])
    assert_same_result(left, without)
    assert left_out not in {support.name for support in left.supports}


def test_leaving_out_a_query_of_the_same_case_is_never_having_had_it(tiny_sam2, scratch, result):
    own = make_support("q/T2", seed=9, geometry=GRID)
    strategy = build(tiny_sam2, [*supports_of(GRID), own], scratch)
    assert_same_result(strategy.segment(QUERY, leave_out_case="q"), result)


def test_each_slice_is_encoded_once(tiny_sam2, scratch):
    with counted_slices(tiny_sam2) as seen:
        strategy = build(tiny_sam2, supports_of(GRID), scratch / "fresh", harmonise=False)
        assert seen == [3 * N_SLICES]
        first = strategy.segment(QUERY)
        assert seen == [4 * N_SLICES]
        second = strategy.segment(make_query("r/T2", seed=5, geometry=short_grid(4)))
        assert seen == [4 * N_SLICES + 4]
    assert (first.encoder_calls, second.encoder_calls) == (N_SLICES, 4)


def test_a_query_of_the_supports_contrast_is_encoded_in_that_contrast_only(result):
    assert result.encoder_calls == N_SLICES
    assert not any(warning.startswith("harmonised") for warning in result.warnings)


def test_equal_supports_are_encoded_once(tiny_sam2, tmp_path):
    twins = [make_support(name, seed=1, geometry=GRID) for name in ("a/T2", "b/T2")]
    with counted_slices(tiny_sam2) as seen:
        build(tiny_sam2, twins, tmp_path)
    assert seen == [N_SLICES]


def test_an_inverted_query_is_tried_in_other_contrasts(tiny_sam2, strategy, scratch):
    query = make_query("q/T1", seed=9, geometry=GRID, inverted=True)
    with counted_slices(tiny_sam2) as seen:
        found = strategy.segment(query)
    assert seen == [found.encoder_calls]
    assert found.encoder_calls > N_SLICES
    assert_sound(found, query)
    plain = build(tiny_sam2, supports_of(GRID), scratch, harmonise=False).segment(query)
    assert plain.encoder_calls == N_SLICES
    assert not any(warning.startswith("harmonised") for warning in plain.warnings)


def test_without_reverse_nothing_is_asked_back(tiny_sam2, scratch):
    found = build(tiny_sam2, supports_of(GRID), scratch, reverse=False).segment(QUERY)
    assert {support.reverse_dice for support in found.supports} == {None}


def test_the_patients_other_sequence_outweighs_other_patients(tiny_sam2, scratch):
    own = make_support("q/GED4", seed=9, geometry=OWN_GRID)
    strategy = build(tiny_sam2, [*supports_of(GRID), own], scratch)
    with counted_slices(tiny_sam2) as seen:
        found = strategy.segment(QUERY)
    assert seen == [found.encoder_calls]
    # The query's slices, and the support's on the same grid.
    assert found.encoder_calls == 2 * N_SLICES
    weights = {support.name: support.weight for support in found.supports}
    similarities = {support.name: support.similarity for support in found.supports}
    assert weights["q/GED4"] > max(w for name, w in weights.items() if name != "q/GED4")
    assert similarities["q/GED4"] == 1
    stranger = build(tiny_sam2, [*supports_of(GRID), replace(own, case="another")], scratch)
    assert not np.array_equal(stranger.segment(QUERY).probability_zyx, found.probability_zyx)


def test_the_patients_other_sequence_is_used_wherever_its_file_puts_its_axes(tiny_sam2, scratch):
    """One scan, stored canonically and from the back; the patient lies where he lay."""
    turned = centred_grid(
        OWN_GRID.shape_zyx,
        spacing_zyx_mm=OWN_GRID.spacing_zyx_mm,
        centre_xyz_mm=(8, -5, 4),
        direction_xyz=LAS,
    )
    own = make_support("q/GED4", seed=9, geometry=OWN_GRID)
    stored_otherwise = make_support("q/GED4", seed=9, geometry=turned)
    # The same voxels, without another draw of noise.
    stored_otherwise = replace(
        stored_otherwise,
        image=replace(stored_otherwise.image, array_zyx=own.image.array_zyx),
        mask_zyx=own.mask_zyx,
    )
    others = supports_of(GRID)
    one = build(tiny_sam2, [*others, own], scratch).segment(QUERY)
    other = build(tiny_sam2, [*others, stored_otherwise], scratch).segment(QUERY)
    np.testing.assert_allclose(one.probability_zyx, other.probability_zyx, atol=1e-3)


def test_beyond_the_patients_other_sequence_its_last_slice_is_shown(tiny_sam2, scratch):
    """Equal slices with equal memories: so the same is found in them."""
    array = QUERY.image.array_zyx.copy()
    array[4:] = array[3]
    query = replace(QUERY, image=replace(QUERY.image, array_zyx=array))
    whole = make_support("q/GED4", seed=9, geometry=GRID)
    lower = replace(
        whole,
        image=replace(whole.image, array_zyx=whole.image.array_zyx[:4]),
        mask_zyx=whole.mask_zyx[:4],
        geometry=replace(GRID, shape_zyx=(4, *GRID.shape_zyx[1:])),
    )
    strategy = build(tiny_sam2, [lower], scratch, refine=False, harmonise=False)
    found = strategy.segment(query).probability_zyx
    for beyond in found[4:]:
        np.testing.assert_allclose(beyond, found[3], atol=1e-5)
    assert np.abs(found[2] - found[3]).max() > 1e-3


def test_an_other_sequence_of_another_place_is_a_support_like_others(tiny_sam2, scratch):
    """Say, a file without a position; then what it shows is sought by looks."""
    x, y, z = OWN_GRID.origin_xyz_mm
    far = replace(OWN_GRID, origin_xyz_mm=(x, y, z + 900))
    own = make_support("q/GED4", seed=9, geometry=OWN_GRID)
    own = replace(own, geometry=far)
    others = supports_of(GRID)
    lost = build(tiny_sam2, [*others, own], scratch).segment(QUERY)
    stranger = build(tiny_sam2, [*others, replace(own, case="another")], scratch).segment(QUERY)
    assert_same_result(lost, stranger)


@pytest.mark.parametrize("n_slices", [1, 2, 3])
def test_a_query_of_few_slices_is_segmented(strategy, n_slices):
    query = make_query("few/T2", seed=6, geometry=short_grid(n_slices))
    assert_sound(strategy.segment(query), query)


def test_a_query_in_another_orientation_is_segmented_on_its_canonical_grid(strategy):
    grid = centred_grid((6, 40, 52), spacing_zyx_mm=(20.0, 7.0, 7.0), direction_xyz=LAS)
    query = make_query("turned/T2", seed=6, geometry=grid)
    assert_sound(strategy.segment(query), query)


def test_one_support_is_enough(tiny_sam2, scratch):
    found = build(tiny_sam2, supports_of(GRID)[:1], scratch).segment(QUERY)
    assert_sound(found, QUERY)


def test_more_supports_than_fit_one_question_are_used(tiny_sam2, scratch):
    names = [f"s{k}/T2" for k in range(11)]
    supports = supports_of(short_grid(3), names=names)
    query = make_query("q/T2", seed=30, geometry=short_grid(3))
    found = build(tiny_sam2, supports, scratch).segment(query)
    assert {support.name for support in found.supports} == set(names)


def test_an_empty_query_is_refused_and_the_next_is_not(strategy, result):
    with pytest.raises(InputError, match="zero/T2") as caught:
        strategy.segment(empty_query(GRID))
    assert caught.value.kind == "empty_image"
    assert_same_result(strategy.segment(QUERY), result)


def test_a_support_with_an_empty_mask_is_refused(tiny_sam2, scratch):
    supports = supports_of(GRID)
    supports[1].mask_zyx[:] = 0
    with pytest.raises(InputError, match="s2/GED4") as caught:
        build(tiny_sam2, supports, scratch)
    assert caught.value.kind == "empty_mask"


def test_another_height_is_taken_where_the_likeliest_shows_no_organ(tmp_path, monkeypatch):
    """The shipped network: random weights find something at any height."""
    sam2 = load_sam2(COMPACT_PATH, device=torch.device("cpu"))
    grid = short_grid(9)
    strategy = build(sam2, supports_of(grid)[:1], tmp_path, harmonise=False, reverse=False)
    query = make_query("q/T2", seed=9, geometry=grid)
    expected = strategy.segment(query)
    assert expected.mask_zyx.any()

    def wrong_first(volume, supports, *, n_places, align=retrieval.align):
        best = align(volume, supports, n_places=n_places)[0]
        lowest = [replace(one, indices=np.zeros_like(one.indices)) for one in best]
        return [lowest, best]

    monkeypatch.setattr(retrieval, "align", wrong_first)
    np.testing.assert_array_equal(strategy.segment(query).mask_zyx, expected.mask_zyx)


def test_labelled_volumes_teach_a_correction(tmp_path):
    """The shipped network: the masks of random weights are too bad to learn from."""
    sam2 = load_sam2(COMPACT_PATH, device=torch.device("cpu"))
    grid = short_grid(9)
    truth = make_support("q/T2", seed=9, geometry=grid)
    dice = {}
    for correct in (False, True):
        strategy = build(sam2, supports_of(grid), tmp_path / str(correct), correct=correct)
        found = strategy.segment(make_query("q/T2", seed=9, geometry=grid))
        dice[correct] = mask_dice(found.mask_zyx > 0, truth.mask_zyx > 0)
    assert dice[True] > dice[False]


def test_one_labelled_patient_teaches_no_correction(tmp_path):
    sam2 = load_sam2(COMPACT_PATH, device=torch.device("cpu"))
    grid = short_grid(9)
    query = make_query("q/T2", seed=9, geometry=grid)
    same_patient = [replace(one, case="s1") for one in supports_of(grid)[:2]]
    results = [
        build(sam2, same_patient, tmp_path / str(correct), correct=correct).segment(query)
        for correct in (False, True)
    ]
    assert_same_result(*results)
