import dataclasses

import numpy as np
import pytest

from sslmedsam2.fewshot.outcome import (
    SupportPrediction,
    calibrate,
    conclude,
    entropy_bits,
    judge,
    largest_piece,
    name_seed,
    plausibility,
    score,
)
from sslmedsam2.fewshot.slices import SliceStack, whole_slice
from sslmedsam2.fewshot.strategy import Evidence
from sslmedsam2.imaging.volume import mask_dice
from sslmedsam2.inference.plausibility import has_usual_volume

SHAPE = (6, 32, 32)
SEED = 4714224178826776488
BOX = (slice(1, 5), slice(8, 20), slice(6, 24))


@pytest.fixture
def stack():
    return SliceStack(
        slices=np.ones(SHAPE, np.float32),
        crop=whole_slice(SHAPE),
        spacing_zyx_mm=(20.0, 10.0, 10.0),
        shape_zyx=SHAPE,
    )


@pytest.fixture
def probability():
    probability = np.full(SHAPE, 0.1, np.float32)
    probability[BOX] = 0.9
    return probability


def _conclude(stack, predictions, probability):
    return conclude(
        stack, predictions, probability=probability, encoder_calls=7, seconds={"a": 1.0}
    )


def _prediction(name, probability, **others):
    return SupportPrediction(name, probability, **others)


def test_the_result_lies_on_the_volumes_grid(stack, probability):
    result = _conclude(stack, [_prediction("a", probability)], probability)
    np.testing.assert_allclose(result.probability_zyx, probability, atol=1e-5)
    np.testing.assert_array_equal(result.mask_zyx, probability > 0.5)
    np.testing.assert_allclose(result.uncertainty_zyx, entropy_bits(result.probability_zyx))
    assert result.encoder_calls == 7
    assert result.warnings == ()


def test_coarse_maps_are_brought_to_the_grid(stack, probability):
    coarse = probability.reshape(6, 16, 2, 16, 2).mean((2, 4))
    result = _conclude(stack, [_prediction("a", coarse)], coarse)
    assert result.mask_zyx.shape == SHAPE
    assert mask_dice(result.mask_zyx > 0, probability > 0.5) > 0.9


def test_a_piece_apart_is_left_out_of_the_mask_but_not_of_the_maps(stack, probability):
    probability[1:3, 28:31, 28:31] = 0.9
    result = _conclude(stack, [_prediction("a", probability)], probability)
    assert not result.mask_zyx[:, 26:].any()
    assert result.probability_zyx[2, 29, 29] > 0.8
    assert result.uncertainty_zyx[2, 29, 29] == pytest.approx(0.47, abs=0.05)


def test_evidence_tells_agreement_from_disagreement(stack, probability):
    elsewhere = np.roll(probability, 9, axis=2)
    weighed = _conclude(
        stack,
        [
            _prediction("yes", probability, weight=3.0, reverse_dice=0.9),
            _prediction("no", elsewhere, weight=1.0, reverse_dice=0.2),
        ],
        probability,
    )
    yes, no = weighed.supports
    assert (yes.name, no.name) == ("yes", "no")
    assert (yes.weight, no.weight) == (0.75, 0.25)
    assert yes.agreement == 1
    assert no.agreement == pytest.approx(0.5)
    assert 0.2 < weighed.evidence.reverse_dice < 0.9
    assert weighed.evidence.confidence == pytest.approx(0.9, abs=0.01)


def test_nothing_found_is_a_warning_and_no_evidence(stack):
    nothing = np.full(SHAPE, 0.2, np.float32)
    result = _conclude(stack, [_prediction("a", nothing)], nothing)
    assert not result.mask_zyx.any()
    assert [warning.split(":")[0] for warning in result.warnings] == ["empty"]
    assert result.evidence.plausibility == 0
    assert result.evidence.confidence == 0


def test_entropy_runs_from_0_to_1_bit():
    bits = entropy_bits(np.array([0.0, 0.11, 0.5, 0.89, 1.0], np.float32))
    np.testing.assert_allclose(bits, [0, 0.4999, 1, 0.4999, 0], atol=1e-3)
    assert bits.dtype == np.float32
    assert bits.min() >= 0


def test_the_largest_piece_is_kept_and_pieces_of_note_are_counted():
    mask = np.zeros((4, 20, 20), bool)
    mask[:, :10, :10] = True
    mask[:, 15:18, 15:18] = True
    mask[0, 0, 19] = True
    kept, n = largest_piece(mask)
    assert n == 2, "a single voxel is not of note"
    assert kept.dtype == np.uint8
    assert kept.sum() == 400
    assert kept[0, 5, 5] == 1


def test_pieces_that_touch_by_a_corner_are_apart():
    mask = np.zeros((1, 4, 4), bool)
    mask[0, :2, :2] = mask[0, 2:, 2:] = True
    assert largest_piece(mask)[0].sum() == 4


def test_of_nothing_there_is_no_largest_piece():
    kept, n = largest_piece(np.zeros((2, 3, 4), bool))
    assert n == 0
    assert kept.shape == (2, 3, 4)
    assert not kept.any()


def test_a_liver_is_more_plausible_than_crumbs_or_half_the_body():
    def liver(shape):
        mask = np.zeros((20, 60, 60), np.uint8)
        mask[tuple(slice(10 - n // 2 if n < 20 else 0, 10 + n // 2) for n in shape)] = 1
        return mask

    def judged(mask, *, n_pieces=1):
        return plausibility(mask, n_pieces=n_pieces, spacing_zyx_mm=(10.0, 5.0, 5.0))

    good = judged(liver((16, 18, 18)))
    assert good == 1
    assert judged(liver((4, 4, 4))) < 0.3
    assert judged(np.ones((20, 60, 60), np.uint8)) < 0.5
    assert judged(liver((16, 18, 18)), n_pieces=4) < good
    assert judged(liver((20, 16, 16))) < good, "cut off by the scan's ends"
    assert judged(np.zeros((3, 4, 5), np.uint8)) == 0


@pytest.mark.parametrize(("volume_ml", "size"), [(200, 0.5), (400, 1), (5000, 1), (10000, 0.5)])
def test_a_pseudo_label_is_as_large_as_a_liver_in_the_range_of_predict(volume_ml, size):
    mask = np.zeros((3, 10, 10), np.uint8)
    mask[1] = 1
    spacing = (10.0, 10.0, volume_ml / 10)

    judged = plausibility(mask, n_pieces=1, spacing_zyx_mm=spacing)

    assert judged == pytest.approx(size)
    assert has_usual_volume(volume_ml) == (size == 1)


def test_a_seed_follows_from_names_alone_on_every_machine():
    assert name_seed(0, "case1/T2", "case2/GED4") == SEED
    assert name_seed("ab", "c") != name_seed("a", "bc")
    assert name_seed(0, "a", "b") != name_seed(1, "a", "b")
    assert name_seed(0, "a", "b") != name_seed(0, "b", "a")


GOOD = Evidence(reverse_dice=0.92, confidence=0.95, plausibility=1.0)
BAD = Evidence(reverse_dice=0.2, confidence=0.6, plausibility=0.3)


def _between(quality):
    """Mix bad and good evidence; 0 is bad and 1 good."""
    pairs = zip(dataclasses.astuple(BAD), dataclasses.astuple(GOOD), strict=True)
    return Evidence(*(low + quality * (high - low) for low, high in pairs))


def _cases(n, *, seed, noise=0.03):
    """Draw cases whose Dice follows from their evidence, give or take ``noise``."""
    generator = np.random.default_rng(seed)
    cases = []
    for _ in range(n):
        evidence = _between(generator.uniform(0, 1))
        dice = 0.1 + 0.85 * score(evidence) + generator.normal(0, noise)
        cases.append((evidence, float(np.clip(dice, 0, 1))))
    return cases


def test_untried_evidence_is_never_accepted():
    calibration = calibrate([])
    assert calibration.n_cases == 0
    assert judge(GOOD, calibration).verdict == "doubtful"
    assert judge(BAD, calibration).verdict == "reject"


@pytest.mark.parametrize("n", [0, 1, 2, 5, 40])
def test_estimates_lie_in_their_interval_and_that_between_0_and_1(n):
    calibration = calibrate(_cases(n, seed=1))
    assert calibration.n_cases == n
    for quality in np.linspace(0, 1, 11):
        found = judge(_between(quality), calibration)
        low, high = found.interval
        assert 0 <= low <= found.estimated_dice <= high <= 1
        assert low < high


def test_nine_intervals_of_ten_hold_the_truth():
    held = []
    for seed in range(200):
        *known, (evidence, dice) = _cases(11, seed=seed, noise=0.04)
        low, high = judge(evidence, calibrate(known)).interval
        held.append(low <= dice <= high)
    assert np.mean(held) >= 0.85


def test_many_good_cases_give_a_close_estimate_and_a_narrow_interval():
    few, many = calibrate(_cases(2, seed=3)), calibrate(_cases(200, seed=3))

    def width(calibration):
        low, high = judge(_between(0.6), calibration).interval
        return high - low

    assert width(many) < 0.6 * width(few)
    truth = 0.1 + 0.85 * score(_between(0.6))
    assert judge(_between(0.6), many).estimated_dice == pytest.approx(truth, abs=0.03)


def test_scattered_cases_widen_the_interval():
    def width(noise):
        low, high = judge(_between(0.5), calibrate(_cases(30, seed=2, noise=noise))).interval
        return high - low

    assert width(0.15) > 1.5 * width(0.02)


def test_verdicts_follow_the_estimate():
    calibration = calibrate(_cases(50, seed=5))
    assert judge(GOOD, calibration).verdict == "accept"
    assert judge(BAD, calibration).verdict == "reject"
    verdicts = [judge(_between(q), calibration).verdict for q in np.linspace(0, 1, 101)]
    order = {"reject": 0, "doubtful": 1, "accept": 2}
    ranks = [order[verdict] for verdict in verdicts]
    assert ranks == sorted(ranks)
    assert set(verdicts) == set(order)


def test_where_results_are_known_to_be_poor_good_looks_are_not_accepted():
    cases = [(_between(q), 0.45) for q in (0.9, 0.95, 1.0, 0.92, 0.97, 0.99)]
    assert judge(GOOD, calibrate(cases)).verdict == "reject"


@pytest.mark.parametrize("name", ["reverse_dice", "confidence", "plausibility"])
@pytest.mark.parametrize("n", [0, 1, 20])
def test_better_evidence_never_lowers_the_estimate(name, n):
    calibration = calibrate(_cases(n, seed=4))
    estimates = [
        judge(dataclasses.replace(_between(0.6), **{name: value}), calibration).estimated_dice
        for value in np.linspace(0, 1, 11)
    ]
    assert estimates == sorted(estimates)


def test_a_result_with_nothing_in_it_is_rejected():
    """Supports that agree on nothing agree well; and here evidence says little about Dice."""
    nothing = Evidence(reverse_dice=0.0, confidence=0.0, plausibility=0.0)
    generator = np.random.default_rng(0)
    cases = [(_between(q), 0.9 + generator.normal(0, 0.02)) for q in np.linspace(0.4, 1, 16)]
    assert judge(nothing, calibrate(cases)).verdict == "reject"


def test_confident_queries_are_never_worth_less_than_unsure_ones():
    """Three supports, the most confident of them the worst: no reason to trust doubt."""
    cases = [
        (dataclasses.replace(GOOD, confidence=confidence), dice)
        for confidence, dice in ((0.78, 0.93), (0.86, 0.88), (0.95, 0.55))
    ]
    calibration = calibrate(cases)

    assert calibration.slope >= 0
    unsure, sure = (
        judge(dataclasses.replace(GOOD, confidence=confidence), calibration)
        for confidence in (0.75, 0.95)
    )
    assert sure.estimated_dice >= unsure.estimated_dice


def test_another_contrast_than_was_tried_widens_the_interval_and_is_not_simply_accepted():
    calibration = calibrate(_cases(8, seed=5, noise=0.06))
    found = [
        judge(dataclasses.replace(GOOD, contrast_distance=distance), calibration)
        for distance in (0.0, 0.15, 0.25, 0.6)
    ]
    widths = [one.interval[1] - one.interval[0] for one in found]

    assert widths[0] == widths[1] < widths[2] < widths[3]
    assert [one.verdict for one in found] == ["accept", "accept", found[2].verdict, "doubtful"]
    assert len({one.estimated_dice for one in found}) == 1


def test_a_calibration_covers_the_contrasts_of_its_own_cases():
    cases = [
        (dataclasses.replace(evidence, contrast_distance=0.2), dice)
        for evidence, dice in _cases(8, seed=5, noise=0.06)
    ]
    calibration = calibrate(cases)

    near, far = (
        judge(dataclasses.replace(GOOD, contrast_distance=distance), calibration)
        for distance in (0.2, 0.4)
    )
    assert near.verdict == "accept"
    assert near.interval[0] > far.interval[0]


def test_a_query_less_similar_than_was_tried_widens_the_interval():
    cases = [
        (dataclasses.replace(evidence, similarity=0.6 + 0.01 * k), dice)
        for k, (evidence, dice) in enumerate(_cases(8, seed=5, noise=0.06))
    ]
    calibration = calibrate(cases)
    found = [
        judge(dataclasses.replace(GOOD, similarity=similarity), calibration)
        for similarity in (0.9, 0.18, 0.1, -0.2)
    ]
    widths = [one.interval[1] - one.interval[0] for one in found]

    assert widths[0] == widths[1] < widths[2] < widths[3]
    assert [found[k].verdict for k in (0, 1, 3)] == ["accept", "accept", "doubtful"]


def test_few_cases_move_the_line_less_than_they_deviate_and_cases_far_off_move_it_fully():
    def shift(offset):
        known = [
            (dataclasses.replace(GOOD, confidence=confidence), confidence + offset)
            for confidence in (0.80, 0.84, 0.88)
        ]
        return judge(dataclasses.replace(GOOD, confidence=0.84), calibrate(known)).estimated_dice

    assert 0.84 < shift(0.02) < 0.85
    assert shift(-0.4) == pytest.approx(0.44, abs=0.03)


def test_liver_that_reaches_the_end_of_the_scan_is_estimated_as_a_whole_one():
    cut = dataclasses.replace(GOOD, plausibility=0.8)
    crumbs = dataclasses.replace(GOOD, plausibility=0.3)
    assert score(cut) == score(GOOD) > score(crumbs)
