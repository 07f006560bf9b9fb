"""What the page of a ``retrain`` run shows.

Figures are None where they are not known, or not known yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sslmedsam2.reporting.galleries import Gallery

Verdict = Literal["accept", "doubtful", "reject"]
"""Of the few-shot branch on its pseudo label."""


@dataclass(frozen=True)
class FewShotLabel:
    """An unlabelled image as the few-shot branch saw it.

    Attributes
    ----------
    sequence, vendor
        Empty where they are not known.
    interval
        Of the estimated Dice.
    told
        Warnings or the error, a line each.
    """

    case: str
    sequence: str
    vendor: str
    verdict: Verdict | None = None
    estimated_dice: float | None = None
    interval: tuple[float, float] | None = None
    volume_ml: float | None = None
    failed: bool = False
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoundLabel:
    """An unlabelled image in a round.

    Attributes
    ----------
    verdict
        Of the few-shot branch.
    trains, reason
        Whether the round trains on its pseudo label, and why.
    ignored
        Share of its voxels that the loss does not see, 0 to 1.
    agreement
        Mean Dice between the masks of the round's networks.
    change_dice
        Dice between the mask before the round and the new one.
    volume_ml, confidence
        Of the new mask.
    error
        Why there is no new mask, in one line.
    """

    case: str
    sequence: str
    verdict: Verdict | None
    trains: bool | None = None
    reason: str = ""
    ignored: float | None = None
    agreement: float | None = None
    change_dice: float | None = None
    volume_ml: float | None = None
    confidence: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class ExpertScore:
    """A fold's network on an reference mask that it had not seen."""

    case: str
    sequence: str
    fold: int
    dice: float
    hausdorff_mm: float
    hausdorff95_mm: float


@dataclass(frozen=True)
class FoldTraining:
    """How a fold's training went, one figure an epoch.

    Attributes
    ----------
    held_out_loss, held_out_dice
        On patches of reference masks that the fold does not train on; the Dice is nnU-Net's
        "pseudo Dice".
    """

    fold: int
    train_loss: tuple[float, ...] = ()
    held_out_loss: tuple[float, ...] = ()
    held_out_dice: tuple[float, ...] = ()
    learning_rate: tuple[float, ...] = ()


@dataclass(frozen=True)
class RoundFigures:
    """A round in one line.

    Attributes
    ----------
    validation_dice, validation_hausdorff_mm
        Means over all reference masks.
    change_dice
        Mean Dice between the pseudo masks before and after the round.
    trained, waiting, rejected, failed
        Numbers of pseudo labels.
    """

    trained: int
    waiting: int
    rejected: int
    failed: int
    validation_dice: float | None = None
    validation_hausdorff_mm: float | None = None
    change_dice: float | None = None


@dataclass(frozen=True)
class RoundPart:
    """A round of the page.

    Attributes
    ----------
    state
        How far it has got, in words.
    is_finished
        Whether its figures count.
    fewshot_weight
        Of the few-shot branch in the round's new masks, 0 to 1.
    """

    number: int
    state: str
    is_finished: bool
    figures: RoundFigures
    labels: tuple[RoundLabel, ...]
    trainings: tuple[FoldTraining, ...]
    scores: tuple[ExpertScore, ...]
    gallery: Gallery
    fewshot_weight: float | None = None


@dataclass(frozen=True)
class FewShotPart:
    """The few-shot branch.

    ``expert_dice`` is its mean Dice on reference masks, each labelled by the others.
    """

    labels: tuple[FewShotLabel, ...]
    gallery: Gallery
    expert_dice: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What the finished rounds came to: the best one, whether it was the last, and why."""

    best_round: int
    ended: bool
    reason: str


@dataclass(frozen=True)
class RetrainPage:
    """All of the page.

    Attributes
    ----------
    labelled, unlabelled
        Numbers of images and of their patients.
    outcome
        None as long as no round is finished.
    settled_at
        Dice between rounds that ends the run; None if the number of rounds is fixed.
    facts
        Options and surroundings, by name.
    problems
        A line for each image that cannot take part.
    """

    title: str
    labelled: tuple[int, int]
    unlabelled: tuple[int, int]
    outcome: Outcome | None
    settled_at: float | None
    facts: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    fewshot: FewShotPart
    rounds: tuple[RoundPart, ...]
