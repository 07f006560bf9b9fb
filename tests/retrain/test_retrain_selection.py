import numpy as np
import pytest

from sslmedsam2.nnunet.plans import IGNORE, LIVER, UNSURE_LIVER
from sslmedsam2.retrain.select import Candidate, choose, training_labels


def _one(verdict, **more):
    choice = choose(Candidate("c", verdict, **more), agreement_needed=0.8)
    return choice


@pytest.mark.parametrize(
    ("verdict", "more", "trains", "reason"),
    [
        ("accept", {}, True, "accepted"),
        ("accept", {"agreement": 0.1}, True, "accepted"),
        ("accept", {"has_liver": False}, False, "empty"),
        ("doubtful", {}, False, "waits"),
        ("doubtful", {"agreement": 0.79}, False, "do not agree (Dice 0.790)"),
        ("doubtful", {"agreement": 0.8}, True, "agree on it (Dice 0.800)"),
        ("doubtful", {"agreement": 0.9, "has_liver": False}, False, "empty"),
        ("doubtful", {"trained_before": True}, True, "earlier round"),
        ("reject", {}, False, "rejected"),
        ("reject", {"agreement": 1.0, "trained_before": True}, False, "rejected"),
        ("reject", {"manually_corrected": True}, True, "manually corrected"),
        ("accept", {"manually_corrected": True, "has_liver": False}, False, "empty"),
        (None, {}, False, "could not be labelled"),
    ],
)
def test_curriculum(verdict, more, trains, reason):
    choice = _one(verdict, **more)

    assert choice.trains is trains
    assert reason in choice.reason


def test_choices_keep_the_order_and_the_names():
    candidates = [Candidate("b", "reject"), Candidate("a", "accept"), Candidate("c", "doubtful")]
    choices = [choose(one, agreement_needed=0.8) for one in candidates]

    assert [(choice.name, choice.trains) for choice in choices] == [
        ("b", False),
        ("a", True),
        ("c", False),
    ]


def test_uncertain_voxels_are_ignored_within_and_without_the_mask():
    mask = np.array([[[0, 0, 1, 1]]], dtype=np.uint8)
    uncertainty = np.array([[[0.1, 0.95, 0.9, 0.91]]], dtype=np.float32)

    labels = training_labels(mask, uncertainty, ignore_above=np.float32(0.9))
    assert labels.tolist() == [[[0, IGNORE, LIVER, UNSURE_LIVER]]]
    assert labels.dtype == np.uint8


def test_nothing_is_ignored_above_the_highest_uncertainty():
    mask = np.array([[[0, 1]]], dtype=np.uint8)

    labels = training_labels(mask, np.ones((1, 1, 2), dtype=np.float32), ignore_above=1.0)
    assert labels.tolist() == [[[0, LIVER]]]
