"""Rules: which pseudo labels a round trains on, which voxels it ignores, and when rounds end.

A curriculum, as in ST++ (Yang et al. 2022, arXiv:2106.05095): accepted pseudo labels train first;
doubtful ones train only after networks that did not train on the scan agree on it; rejected ones
never train. Uncertain voxels get nnU-Net's ignore label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from sslmedsam2.fewshot.strategy import Verdict
from sslmedsam2.nnunet.labels import BACKGROUND, IGNORE, LIVER, UNSURE_LIVER


@dataclass(frozen=True)
class Candidate:
    """A pseudo label that may be trained on.

    Attributes
    ----------
    verdict
        Of the few-shot branch; None if it could not label the image.
    agreement
        Mean Dice between the networks of the last round, none of which had trained on this image;
        None if there was no such round, or the image had been trained on.
    trained_before
        Whether a network of the last round had trained on it, then or before a warm start.
    has_liver
        Whether its newest mask holds any.
    manually_corrected
        Whether a person has corrected a mask of it.
    estimated_dice
        Of the few-shot branch's mask, by its calibration; None if that is not known.
    """

    name: str
    verdict: Verdict | None
    agreement: float | None = None
    trained_before: bool = False
    has_liver: bool = True
    manually_corrected: bool = False
    estimated_dice: float | None = None


@dataclass(frozen=True)
class Choice:
    """Whether a candidate trains, and why.

    Attributes
    ----------
    ignored
        Share of voxels that do not count.
    fewshot_weight
        With the method ``online``, what its mask counts at first against the network's prediction,
        0 to 1; None where the mask alone is learned.
    """

    name: str
    trains: bool
    reason: str
    ignored: float | None = None
    fewshot_weight: float | None = None


@dataclass(frozen=True)
class Selection:
    """The choices of a round; ``key`` is equal for the same choices from the same labels."""

    key: str
    choices: tuple[Choice, ...]

    @property
    def trained(self) -> frozenset[str]:
        """Names of the candidates that train."""
        return frozenset(choice.name for choice in self.choices if choice.trains)


def choose(candidates: Sequence[Candidate], *, agreement_needed: float) -> tuple[Choice, ...]:
    """Decide for each candidate, in the same order."""
    return tuple(
        Choice(candidate.name, *_decide(candidate, agreement_needed)) for candidate in candidates
    )


def none_of(candidates: Sequence[Candidate]) -> tuple[Choice, ...]:
    """Choose none, for a round that learns from reference masks alone."""
    reason = "the first round learns from reference masks alone"
    return tuple(Choice(candidate.name, False, reason) for candidate in candidates)


def choose_online(candidates: Sequence[Candidate]) -> tuple[Choice, ...]:
    """Decide for each candidate of an online training: all that have a mask take part."""
    return tuple(_online_choice(candidate) for candidate in candidates)


def _online_choice(candidate: Candidate) -> Choice:
    name = candidate.name
    if candidate.verdict is None:
        return Choice(name, False, "it could not be labelled")
    if not candidate.has_liver:
        return Choice(name, False, "its mask is empty")
    if candidate.manually_corrected:
        return Choice(name, True, "manually corrected")
    if candidate.verdict == "reject" or candidate.estimated_dice is None:
        return Choice(name, True, "the network's own prediction alone", fewshot_weight=0.0)
    return Choice(
        name,
        True,
        f"{candidate.verdict}: the few-shot mask counts at first",
        fewshot_weight=candidate.estimated_dice,
    )


def _decide(candidate: Candidate, agreement_needed: float) -> tuple[bool, str]:
    if candidate.verdict is None:
        return False, "it could not be labelled"
    if candidate.verdict == "reject" and not candidate.manually_corrected:
        return False, "rejected by the few-shot branch"
    if not candidate.has_liver:
        return False, "its mask is empty"
    if candidate.manually_corrected:
        return True, "manually corrected"
    if candidate.verdict == "accept":
        return True, "accepted by the few-shot branch"
    if candidate.trained_before:
        return True, "doubtful at first, taken in by an earlier round"
    if candidate.agreement is None:
        return False, "doubtful: waits for networks to agree on it"
    if candidate.agreement >= agreement_needed:
        return True, f"doubtful, but networks agree on it (Dice {candidate.agreement:.3f})"
    return False, f"doubtful, and networks do not agree (Dice {candidate.agreement:.3f})"


def training_labels(
    mask_zyx: npt.NDArray[np.uint8],
    uncertainty_zyx: npt.NDArray[np.float32],
    *,
    ignore_above: float,
) -> npt.NDArray[np.uint8]:
    """Return labels ``[z, y, x]`` to train on: the mask, with uncertain voxels to be ignored.

    ``uncertainty_zyx`` is the binary entropy of the foreground probability in bits, 0 to 1.
    """
    inside, unsure = mask_zyx > 0, uncertainty_zyx > ignore_above
    labels = np.where(inside, np.uint8(LIVER), np.uint8(BACKGROUND))
    labels[unsure & inside] = UNSURE_LIVER
    labels[unsure & ~inside] = IGNORE
    return labels


IGNORE_ABOVE: Final = 0.95
"""Bits. Of what it hides near the liver 43 % is wrong, against 15 % of all voxels there; a lower
threshold hides more wrong voxels but mostly right ones (``benchmarks/ignore_threshold.py``)."""


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
        Numbers of unlabelled images: that the round trained on, that wait, that never train, and
        that could not be re-predicted.
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
    best = max(history, key=lambda figures: (figures.validation_dice, figures.round))
    last = history[-1]
    # Two rounds without any would train on reference masks alone for ever.
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


def weight_of_first(first_dice: float | None, second_dice: float) -> float:
    """Return the weight, 0 to 1, of the first of two predictions in their mean.

    Each counts by the inverse square of its error on reference masks, as independent measurements
    count by the inverse of their variance. A prediction of unknown error gets no weight.
    """
    if first_dice is None:
        return 0.0
    first, second = 1 - first_dice, 1 - second_dice
    total = first**2 + second**2
    return round(second**2 / total, 4) if total else 0.5
