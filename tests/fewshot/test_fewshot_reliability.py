import dataclasses

import numpy as np
import pytest

from sslmedsam2.fewshot.outcome import calibrate, judge, score
from sslmedsam2.fewshot.strategy import Evidence

GOOD = Evidence(
    reverse_dice=0.92, agreement=0.93, object_score=0.97, confidence=0.95, plausibility=1.0
)
BAD = Evidence(reverse_dice=0.2, agreement=0.3, object_score=0.4, confidence=0.6, plausibility=0.3)


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
    for seed in range(60):
        *known, (evidence, dice) = _cases(11, seed=seed, noise=0.06)
        low, high = judge(evidence, calibrate(known)).interval
        held.append(low <= dice <= high)
    assert np.mean(held) >= 0.88


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


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Evidence)])
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
    nothing = Evidence(
        reverse_dice=0.0, agreement=1.0, object_score=0.0, confidence=0.0, plausibility=0.0
    )
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


def test_another_contrast_than_the_calibrations_widens_the_interval_and_is_not_simply_accepted():
    calibration = calibrate(_cases(8, seed=5, noise=0.06))
    found = [
        judge(dataclasses.replace(GOOD, contrast_distance=distance), calibration)
        for distance in (0.0, 0.06, 0.12, 0.3)
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


def test_a_query_less_similar_than_the_calibrations_cases_widens_the_interval():
    cases = [
        (dataclasses.replace(evidence, similarity=0.6 + 0.01 * k), dice)
        for k, (evidence, dice) in enumerate(_cases(8, seed=5, noise=0.06))
    ]
    calibration = calibrate(cases)
    found = [
        judge(dataclasses.replace(GOOD, similarity=similarity), calibration)
        for similarity in (0.9, 0.6, 0.4, -0.2)
    ]
    widths = [one.interval[1] - one.interval[0] for one in found]

    assert widths[0] == widths[1] < widths[2] < widths[3]
    assert [found[k].verdict for k in (0, 1, 3)] == ["accept", "accept", "doubtful"]
