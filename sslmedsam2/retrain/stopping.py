"""When the rounds of ``retrain`` end, and which round is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StoppingRule:
    """When to stop.

    Attributes
    ----------
    most_rounds
        The maximum.
    settled_at
        ``change_dice`` from which the pseudo masks count as settled.
    fixed
        Run ``most_rounds`` rounds, whatever the figures are.
    tolerance
        Loss of ``validation_dice`` against the best round that does not count as worse.
    """

    most_rounds: int = 5
    settled_at: float = 0.97
    fixed: bool = False
    tolerance: float = 0.005


@dataclass(frozen=True)
class RoundFigures:
    """The figures of a finished round, on which the decision rests.

    Attributes
    ----------
    round
        Counts from 1.
    validation_dice, validation_hausdorff_mm
        Means over reference masks, each scored by the fold that had not trained on its patient.
    change_dice
        Mean Dice between the pseudo masks before and after the round; None if there are none.
    trained, waiting, rejected, failed
        Numbers of unlabelled images: that the round trained on, that wait for a later round, that
        never train, and that could not be relabelled.
    changes
        ``change_dice`` of each unlabelled image.
    """

    round: int
    validation_dice: float
    change_dice: float | None
    trained: int
    waiting: int
    rejected: int
    failed: int
    validation_hausdorff_mm: float | None = None
    changes: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """Whether to go on, why (or why not), and the best round so far."""

    stop: bool
    reason: str
    best_round: int


def decide(history: Sequence[RoundFigures], rule: StoppingRule) -> Decision:
    """Decide after the rounds in ``history``, at least one, whether to go on.

    The best round has the highest validation Dice; of equal ones it is the latest, whose pseudo
    masks have been refined most.
    """
    best = max(history, key=lambda figures: (figures.validation_dice, figures.round))
    last = history[-1]
    # After two rounds without pseudo labels, all later ones would train on reference masks alone.
    untried = last.trained == 0 and (len(history) < 2 or history[-2].trained > 0)
    stop, reason = _judge(last, best, rule, untried=untried)
    return Decision(stop, reason, best.round)


def _judge(
    last: RoundFigures, best: RoundFigures, rule: StoppingRule, *, untried: bool
) -> tuple[bool, str]:
    if last.round >= rule.most_rounds:
        return True, f"the limit of {rule.most_rounds} round(s) is reached"
    if rule.fixed:
        return False, f"round {last.round} of {rule.most_rounds}"
    loss = best.validation_dice - last.validation_dice
    if loss > rule.tolerance:
        return True, f"Dice on reference masks fell by {loss:.4f} against round {best.round}"
    if untried:
        return False, "no pseudo label has trained yet"
    if last.change_dice is None:
        return True, "there are no pseudo masks that could change"
    if last.change_dice >= rule.settled_at:
        return True, f"the pseudo masks have settled (Dice to the last {last.change_dice:.4f})"
    return False, f"the pseudo masks still change (Dice to the last {last.change_dice:.4f})"
