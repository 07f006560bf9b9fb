"""What a margin says of its mask, and what a calibration makes of it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from tiny_models import bright_tissue_model
from tiny_scans import SPACING_ZYX_MM, abdomen

from sslmedsam2.imaging.records import sha256_file, write_record
from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
from sslmedsam2.inference.confidence import (
    FEATURES,
    Calibration,
    Evidence,
    certainty_of,
    read_calibration,
)
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions

CHECKPOINT = "fold_0/checkpoint_final.pth"
CALIBRATION = Calibration(
    checkpoints={},
    features=FEATURES,
    intercept=-1.0,
    weights=(1.0, 1.0, -2.0),
    spread=(0.0, -0.5),
    fitted_range=(0.0, 2.0),
    offsets=(-1.0, 0.5),
    volumes=100,
    patients=20,
    spearman=0.8,
    coverage=0.9,
)
GOOD = Evidence(expected_dice=0.95, kept_share=1.0, side_share=0.0)


def certainty(margin, mask):
    return certainty_of(margin, mask, mask=mask, spacing_mm=(3.0, 3.0, 3.0))


def evidence_of(margin, mask):
    return certainty(margin, mask).evidence


def ball(*, sharpness):
    """Return a margin that is positive in a ball, and its mask."""
    z, y, x = np.meshgrid(*(np.arange(-16, 16.0),) * 3, indexing="ij")
    margin = (sharpness * (8 - np.sqrt(z**2 + y**2 + x**2))).astype(np.float32)
    return margin, (margin > 0).astype(np.uint8)


def test_a_sharp_border_gives_a_higher_expected_dice():
    blurred, sharp = (evidence_of(*ball(sharpness=s)).expected_dice for s in (0.5, 4.0))
    assert 0.5 < blurred < sharp - 0.05
    assert sharp > 0.9


def test_background_that_was_not_computed_changes_nothing():
    margin, mask = ball(sharpness=2.0)
    skipped = np.where(margin < -6, -20, margin).astype(np.float32)
    assert evidence_of(skipped, mask) == evidence_of(margin, mask)


def test_dropped_components_and_cut_off_masks_are_evidence():
    margin, mask = ball(sharpness=2.0)
    whole = evidence_of(margin, mask)
    assert (whole.kept_share, whole.side_share) == (1.0, 0.0)
    margin[1:3, 1:3, 1:3] = 5
    assert evidence_of(margin, mask).kept_share == pytest.approx(
        mask.sum() / (mask.sum() + 8), rel=1e-3
    )
    assert evidence_of(margin[16:], mask[16:]).side_share > 0.05


def test_evidence_and_the_doubtful_place_are_of_the_mask_not_of_a_larger_region_elsewhere():
    margin, mask = ball(sharpness=2.0)
    larger = np.full((32, 32, 40), 5, np.float32)
    larger[:, :, :4] = larger[:, :, -4:] = -5
    both = np.concatenate([margin, larger], axis=2)
    of_the_ball = np.concatenate([mask, np.zeros(larger.shape, np.uint8)], axis=2)

    found = certainty(both, of_the_ball)

    assert found.evidence.kept_share == pytest.approx(mask.sum() / (both > 0).sum())
    assert found.doubtful[2] * both.shape[2] < 32


def test_without_a_mask_there_is_no_evidence():
    margin, mask = ball(sharpness=-1.0)
    assert certainty(np.full_like(margin, -3), np.zeros_like(mask)) is None


def test_the_most_doubtful_place_is_the_blurred_part_of_the_border():
    margin, mask = ball(sharpness=4.0)
    blurred, _ = ball(sharpness=0.3)
    margin[:, :, 22:] = blurred[:, :, 22:]
    place = certainty(margin, mask).doubtful
    assert place[2] > 22 / 32
    assert place[0] == pytest.approx(0.5, abs=0.2)


def test_the_estimate_rises_with_the_evidence_and_lies_in_its_interval():
    poor = replace(GOOD, expected_dice=0.6, kept_share=0.5, side_share=0.2)
    good_estimate, poor_estimate = CALIBRATION.estimate(GOOD), CALIBRATION.estimate(poor)
    assert poor_estimate.dice < good_estimate.dice
    for estimate in (good_estimate, poor_estimate):
        low, high = estimate.interval
        assert 0 < low < estimate.dice < high < 1
    assert poor_estimate.is_to_check
    assert not good_estimate.is_to_check


def test_the_interval_is_wider_where_the_fit_is_usually_worse():
    # The logit of 0.95 is 2.94, above the range: the usual error is exp(-1).
    above = CALIBRATION.estimate(GOOD)
    # Fitted -0.056, below the range: the usual error is 1.
    below = CALIBRATION.estimate(replace(GOOD, kept_share=0.0, side_share=1.0))
    assert above.interval == (0.929, 0.958)
    assert below.interval == (0.258, 0.609)


@pytest.fixture
def model(tmp_path):
    return bright_tissue_model(tmp_path / "model")


def segmented(model):
    volume = CanonicalVolume(abdomen()[0], SPACING_ZYX_MM, Reorientation((0, 1, 2), ()))
    segmenter = CanonicalSegmenter(read_model_spec(model), EngineOptions("cpu", mirror=False))
    return segmenter.segment(volume)


def calibrate(model, *, checkpoints):
    write_record(model / "confidence.json", replace(CALIBRATION, checkpoints=checkpoints))


def test_a_model_without_a_calibration_gives_no_estimate(model):
    found = segmented(model)
    assert found.estimate is None
    assert found.evidence is not None


def test_a_calibrated_model_gives_an_estimate(model):
    calibrate(model, checkpoints={CHECKPOINT: sha256_file(model / CHECKPOINT)})
    found = segmented(model)
    low, high = found.estimate.interval
    assert low < found.estimate.dice < high


def test_the_calibration_decides_whether_an_unsure_scan_is_seen_twice(model):
    hashes = {CHECKPOINT: sha256_file(model / CHECKPOINT)}
    calibration = replace(CALIBRATION, checkpoints=hashes, sure_from=1.0)
    write_record(model / "confidence.json", calibration)
    assert "second_view" in segmented(model).warnings[0]
    write_record(model / "confidence.json", replace(calibration, sure_from=0.0))
    assert not segmented(model).warnings


def test_a_calibration_of_other_weights_is_not_used(model, caplog):
    calibrate(model, checkpoints={CHECKPOINT: "ab" * 32})
    assert read_calibration(read_model_spec(model)) is None
    assert "confidence.json is of other weights; not used" in caplog.text


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_the_doubtful_place_is_near_the_liver_whatever_the_axes(tmp_path, transpose):
    found = segmented(bright_tissue_model(tmp_path / "other", transpose_forward=transpose))
    near = ndimage.binary_dilation(found.mask_zyx, iterations=8)
    assert near[tuple(round(place) for place in found.doubtful_zyx)]
    assert not near.all()
