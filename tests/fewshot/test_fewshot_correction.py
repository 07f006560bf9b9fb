import numpy as np
import pytest
from scipy import ndimage

from sslmedsam2.fewshot.correction import Corrector, Prediction, example_of
from sslmedsam2.fewshot.outcome import mask_dice

SHAPE = (12, 48, 48)
SPACING = (6.0, 4.0, 4.0)


def scan(seed):
    """Return slices with a grey organ beside a bright one, and the mask of the first."""
    generator = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    cy, cx = generator.uniform(20, 26, 2)
    organ = ((z - 6) / 5) ** 2 + ((y - cy) / 11) ** 2 + ((x - cx) / 9) ** 2 < 1
    neighbour = ((z - 6) / 5) ** 2 + ((y - cy) / 8) ** 2 + ((x - cx - 14) / 6) ** 2 < 1
    slices = 0.1 + 0.3 * organ + 0.6 * (neighbour & ~organ)
    slices = slices + 0.03 * generator.standard_normal(SHAPE)
    return slices.clip(0, 1).astype(np.float32), organ, organ | neighbour


def prediction_of(slices, mask):
    """Return a prediction that holds a mask, with soft borders."""
    probability = ndimage.gaussian_filter(mask.astype(np.float32), 1.0)
    return Prediction(
        fused=probability,
        refined=probability,
        lowest=probability * 0.8,
        highest=probability,
        spread=probability * 0.1,
        slices=slices,
        spacing_zyx_mm=SPACING,
    )


def leaking(seed):
    """Return a prediction that takes the neighbour in, and the organ's mask."""
    slices, organ, both = scan(seed)
    return prediction_of(slices, both), organ


@pytest.fixture(scope="module")
def examples():
    found = []
    for seed in range(4):
        prediction, organ = leaking(seed)
        found.append(example_of(prediction, organ.astype(np.float32), case=f"case{seed}"))
    return found


def test_an_error_of_all_examples_is_corrected_in_another_scan(examples):
    prediction, organ = leaking(9)
    before = mask_dice(prediction.refined > 0.5, organ)
    after = mask_dice(Corrector(examples).correct(prediction, share=1.0) > 0.5, organ)
    assert before < 0.85
    assert after > 0.95


def test_a_smaller_share_stays_nearer_to_the_prediction(examples):
    prediction, _ = leaking(9)
    corrector = Corrector(examples)
    whole, half = (corrector.correct(prediction, share=share) for share in (1.0, 0.5))
    distance = [np.abs(found - prediction.refined).mean() for found in (whole, half)]
    assert distance[1] < distance[0]
    assert whole.dtype == np.float32
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_the_same_examples_give_the_same_correction(examples):
    prediction, _ = leaking(9)
    one, other = (Corrector(examples).correct(prediction, share=1.0) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_what_is_far_from_the_prediction_stays_outside(examples):
    slices, organ, both = scan(9)
    both[:, :, 40:] = False
    far = np.zeros(SHAPE, bool)
    far[:, :, 40:] = True
    narrow = prediction_of(slices, organ & (np.indices(SHAPE)[2] < 20))
    assert Corrector(examples).correct(narrow, share=1.0)[far].max() < 0.05


def test_an_empty_prediction_is_no_example_and_stays_empty(examples):
    slices, organ, _ = scan(9)
    nothing = prediction_of(slices, np.zeros(SHAPE, bool))
    assert example_of(nothing, organ.astype(np.float32), case="c") is None
    assert not Corrector(examples).correct(nothing, share=1.0).any()


def test_a_bad_prediction_is_no_example():
    slices, organ, _ = scan(9)
    elsewhere = prediction_of(slices, np.roll(organ, 20, axis=1))
    assert example_of(elsewhere, organ.astype(np.float32), case="c") is None
