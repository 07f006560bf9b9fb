import numpy as np
import pytest
from strategy_samples import (
    assert_same_result,
    assert_sound,
    build,
    counted_slices,
    empty_query,
    short_grid,
    supports_of,
)
from tiny_sam2 import ABSENT, leaning_towards, make_query

from sslmedsam2.errors import InputError
from sslmedsam2.fewshot.random_insertion import N_PLACES

N_SUPPORT, N_QUERY = 2, 1
GRID = short_grid(N_SUPPORT)
QUERY = make_query("q/T2", seed=9, geometry=short_grid(N_QUERY))


def _build(sam2, supports, tmp_path_factory, **settings):
    folder = tmp_path_factory.mktemp("scratch")
    return build(sam2, supports, folder, strategy="random-insertion", **settings)


@pytest.fixture(scope="module")
def strategy(tiny_sam2, tmp_path_factory):
    return _build(tiny_sam2, supports_of(GRID), tmp_path_factory)


@pytest.fixture(scope="module")
def result(strategy):
    return strategy.segment(QUERY)


def test_a_result_is_sound(result):
    assert_sound(result, QUERY)
    assert {support.reverse_dice for support in result.supports} == {None}
    assert {round(support.weight, 6) for support in result.supports} == {round(1 / 3, 6)}


def test_each_support_is_tracked_at_every_place_there_is(tiny_sam2, strategy, result):
    with counted_slices(tiny_sam2) as seen:
        again = strategy.segment(QUERY)
    assert seen == [again.encoder_calls]
    assert result.encoder_calls == again.encoder_calls
    assert result.encoder_calls == 3 * (N_QUERY + 1) * (N_SUPPORT + N_QUERY)


def test_earlier_queries_leave_no_trace(strategy, result):
    strategy.segment(make_query("other/T1", seed=4, geometry=short_grid(1)))
    assert_same_result(strategy.segment(QUERY), result)


def test_the_order_of_supports_does_not_matter(tiny_sam2, tmp_path_factory, result):
    shuffled = [supports_of(GRID)[k] for k in (2, 0, 1)]
    assert_same_result(_build(tiny_sam2, shuffled, tmp_path_factory).segment(QUERY), result)


def test_leaving_a_support_out_is_never_having_had_it(tiny_sam2, tmp_path_factory, strategy):
    without = _build(tiny_sam2, supports_of(GRID)[1:], tmp_path_factory).segment(QUERY)
    assert_same_result(strategy.segment(QUERY, leave_out_case="s1"), without)


def test_some_places_of_a_long_query_are_drawn_by_the_seed(tiny_sam2, tmp_path_factory):
    support, query = supports_of(short_grid(2))[:1], make_query("q", seed=9, geometry=short_grid(6))
    one, other = (
        _build(tiny_sam2, support, tmp_path_factory, seed=seed).segment(query) for seed in (0, 1)
    )
    assert one.encoder_calls == other.encoder_calls == N_PLACES * (2 + 6)
    assert not np.array_equal(one.probability_zyx, other.probability_zyx)


@pytest.mark.parametrize("n_slices", [1, 3])
def test_a_query_of_few_slices_has_fewer_places(tiny_sam2, tmp_path_factory, n_slices):
    strategy = _build(tiny_sam2, supports_of(GRID)[:1], tmp_path_factory)
    query = make_query("few/T2", seed=6, geometry=short_grid(n_slices))
    found = strategy.segment(query)
    assert_sound(found, query)
    assert found.encoder_calls == (n_slices + 1) * (N_SUPPORT + n_slices)


def test_slices_before_and_after_a_support_are_tracked(tiny_sam2, tmp_path_factory):
    """A single slice is once after the support and once before it.

    The random network says about one half everywhere; untracked, a slice would keep its 0.
    """
    strategy = _build(tiny_sam2, supports_of(GRID)[:1], tmp_path_factory)
    found = strategy.segment(make_query("one/T2", seed=6, geometry=short_grid(1)))
    assert found.probability_zyx[0, 5:-5, 5:-5].min() > 0.4


def test_a_slice_without_the_object_counts_as_empty(tiny_sam2, tmp_path_factory):
    strategy = _build(tiny_sam2, supports_of(GRID)[:1], tmp_path_factory)
    with leaning_towards(tiny_sam2.model, ABSENT):
        found = strategy.segment(QUERY)
    assert not found.mask_zyx.any()
    assert found.probability_zyx.max() == 0
    assert found.warnings[0].startswith("empty")


def test_an_empty_query_is_refused(strategy):
    with pytest.raises(InputError, match="zero/T2") as caught:
        strategy.segment(empty_query(GRID))
    assert caught.value.kind == "empty_image"


def test_a_support_with_an_empty_mask_is_refused(tiny_sam2, tmp_path_factory):
    supports = supports_of(GRID)
    supports[1].mask_zyx[:] = 0
    with pytest.raises(InputError, match="s2/GED4"):
        _build(tiny_sam2, supports, tmp_path_factory).segment(QUERY)
