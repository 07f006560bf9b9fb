import pytest

from sslmedsam2.retrain.select import weight_of_first
from sslmedsam2.retrain.stopping import RoundFigures, StoppingRule, decide

AUTO = StoppingRule(most_rounds=5, settled_at=0.97, tolerance=0.005)


def _figures(number, dice, change, trained=3):
    return RoundFigures(number, dice, change, trained=trained, waiting=0, rejected=0, failed=0)


def _history(*rounds):
    return [_figures(number, *figures) for number, figures in enumerate(rounds, start=1)]


def test_rounds_go_on_while_the_masks_change():
    decision = decide(_history((0.90, 0.80), (0.91, 0.9699)), AUTO)

    assert not decision.stop
    assert "still change (Dice to the last 0.9699)" in decision.reason


def test_rounds_end_when_the_masks_have_settled():
    decision = decide(_history((0.90, 0.80), (0.91, 0.97)), AUTO)

    assert decision.stop
    assert "settled" in decision.reason
    assert decision.best_round == 2


def test_rounds_end_when_dice_on_reference_masks_falls_and_the_earlier_round_wins():
    decision = decide(_history((0.92, 0.80), (0.90, 0.90)), AUTO)

    assert decision.stop
    assert "fell by 0.0200 against round 1" in decision.reason
    assert decision.best_round == 1


def test_loss_within_the_tolerance_is_no_worsening():
    decision = decide(_history((0.920, 0.80), (0.916, 0.90)), AUTO)

    assert not decision.stop
    assert decision.best_round == 1


def test_loss_is_counted_from_the_best_round_not_from_the_last():
    decision = decide(_history((0.920, 0.8), (0.916, 0.8), (0.912, 0.8)), AUTO)

    assert decision.stop
    assert "against round 1" in decision.reason


def test_of_equal_rounds_the_later_wins():
    assert decide(_history((0.9, 0.8), (0.9, 0.8)), AUTO).best_round == 2


def test_rounds_end_at_the_maximum():
    decision = decide(_history((0.90, 0.5), (0.91, 0.6)), StoppingRule(most_rounds=2))

    assert decision.stop
    assert "2 round(s)" in decision.reason


@pytest.mark.parametrize("second", [(0.5, 0.8), (0.9, 1.0), (0.9, None)])
def test_fixed_number_of_rounds_is_done_whatever_the_figures_say(second):
    rule = StoppingRule(most_rounds=3, fixed=True)
    decision = decide(_history((0.9, 0.8), second), rule)

    assert not decision.stop
    assert decision.reason == "round 2 of 3"


def test_rounds_end_where_no_mask_could_change():
    decision = decide(_history((0.9, None)), AUTO)

    assert decision.stop
    assert "no pseudo masks" in decision.reason


@pytest.mark.parametrize(
    ("first", "second", "weight"),
    [
        (0.9, 0.9, 0.5),
        (0.95, 0.90, 0.8),
        (0.90, 0.95, 0.2),
        (1.0, 0.5, 1.0),
        (0.5, 1.0, 0.0),
        (1.0, 1.0, 0.5),
        (None, 0.1, 0.0),
    ],
)
def test_predictions_are_weighted_by_the_inverse_square_of_their_errors(first, second, weight):
    assert weight_of_first(first, second) == pytest.approx(weight)


def test_masks_have_not_settled_before_any_pseudo_label_has_trained():
    decision = decide(_history((0.9, 0.99, 0)), AUTO)

    assert not decision.stop
    assert "no pseudo label has trained yet" in decision.reason
    assert decide(_history((0.9, 0.99, 0), (0.9, 0.99, 2)), AUTO).stop


def test_rounds_that_train_on_no_pseudo_label_do_not_go_on_for_ever():
    decision = decide(_history((0.9, 0.99, 0), (0.9, 0.99, 0)), AUTO)

    assert decision.stop
    assert "settled" in decision.reason
