"""When the rounds have settled, which of them is best, and what two opinions are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundFigures:
    """What a round is judged by.

    Attributes
    ----------
    number
        Counts from 1.
    validation_dice
        Mean over expert masks, each scored by the fold that had not trained on its patient.
    change_dice
        Mean Dice between the pseudo masks before and after the round; None if there are none.
    """

    number: int
    validation_dice: float
    change_dice: float | None


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
        Do ``most_rounds`` whatever the figures say.
    tolerance
        Loss of ``validation_dice`` against the best round that is no worsening yet.
    """

    most_rounds: int = 5
    settled_at: float = 0.97
    fixed: bool = False
    tolerance: float = 0.005


@dataclass(frozen=True)
class Decision:
    """Whether to go on, why (or why not), and the best round so far."""

    stop: bool
    reason: str
    best_round: int


def decide(history: Sequence[RoundFigures], rule: StoppingRule) -> Decision:
    """Judge the rounds so far; at least one.

    The best round is that of the highest validation Dice, among equals the latest: its pseudo
    masks have been refined further.
    """
    best = max(history, key=lambda figures: (figures.validation_dice, figures.number))
    last = history[-1]
    stop, reason = _judge(last, best, rule)
    return Decision(stop, reason, best.number)


def _judge(last: RoundFigures, best: RoundFigures, rule: StoppingRule) -> tuple[bool, str]:
    if last.number >= rule.most_rounds:
        return True, f"{rule.most_rounds} round(s) were asked for or are the most allowed"
    if rule.fixed:
        return False, f"round {last.number} of {rule.most_rounds}"
    loss = best.validation_dice - last.validation_dice
    if loss > rule.tolerance:
        return True, f"Dice on expert masks fell by {loss:.4f} against round {best.number}"
    if last.change_dice is None:
        return True, "there are no pseudo masks that could change"
    if last.change_dice >= rule.settled_at:
        return True, f"the pseudo masks have settled (Dice to the last {last.change_dice:.4f})"
    return False, f"the pseudo masks still change (Dice to the last {last.change_dice:.4f})"


def weight_of_first(first_dice: float | None, second_dice: float) -> float:
    """Return the weight, 0 to 1, of the first of two opinions in their mean.

    Each counts by the inverse square of its error on expert masks, as independent measurements
    count by the inverse of their variance. An opinion of unknown worth is not heard.
    """
    if first_dice is None:
        return 0.0
    first, second = 1 - first_dice, 1 - second_dice
    total = first**2 + second**2
    return round(second**2 / total, 4) if total else 0.5
