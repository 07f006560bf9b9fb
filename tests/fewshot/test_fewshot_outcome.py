import numpy as np
import pytest

from sslmedsam2.fewshot.outcome import (
    SupportPrediction,
    conclude,
    entropy_bits,
    largest_piece,
    mask_dice,
    name_seed,
    plausibility,
)
from sslmedsam2.fewshot.slices import SliceStack, whole_slice

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
    return SupportPrediction(
        name, probability, np.full(len(probability), 0.8, np.float32), **others
    )


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
    assert weighed.evidence.agreement < 1
    assert 0.2 < weighed.evidence.reverse_dice < 0.9
    assert weighed.evidence.confidence == pytest.approx(0.9, abs=0.01)
    assert weighed.evidence.object_score == pytest.approx(0.8, abs=0.01)


def test_nothing_found_is_a_warning_and_no_evidence(stack):
    nothing = np.full(SHAPE, 0.2, np.float32)
    result = _conclude(stack, [_prediction("a", nothing)], nothing)
    assert not result.mask_zyx.any()
    assert [warning.split(":")[0] for warning in result.warnings] == ["empty"]
    assert result.evidence.plausibility == 0
    assert result.evidence.object_score == 0
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


def test_dice():
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert mask_dice(a, b) == 0.5
    assert mask_dice(a, ~a) == 0
    assert mask_dice(a, a) == 1
    assert mask_dice(a & ~a, a & ~a) == 1


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


def test_a_seed_follows_from_names_alone_on_every_machine():
    assert name_seed(0, "case1/T2", "case2/GED4") == SEED
    assert name_seed("ab", "c") != name_seed("a", "bc")
    assert name_seed(0, "a", "b") != name_seed(1, "a", "b")
    assert name_seed(0, "a", "b") != name_seed(0, "b", "a")
