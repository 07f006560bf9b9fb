"""A page of a ``retrain`` run, made by hand: two rounds are finished and a third has begun."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from PIL import Image
from qc_runs import HOSTILE_CASE, HOSTILE_TEXT

from sslmedsam2.reporting.galleries import Gallery, Picture
from sslmedsam2.reporting.retrain_page_data import (
    ExpertScore,
    FewShotLabel,
    FewShotPart,
    FoldTraining,
    Outcome,
    RetrainPage,
    RoundFigures,
    RoundLabel,
    RoundPart,
)

NO_PICTURES = Gallery("Dice", (), ())
CASES = ("0010-B", "0002-B", HOSTILE_CASE)
CHANGES = (0.91, None, 0.975)


def png(*, width: int = 90, height: int = 30) -> bytes:
    """Return a grey picture."""
    written = io.BytesIO()
    Image.new("L", (width, height), 128).save(written, format="PNG")
    return written.getvalue()


def example_page(**changes: Any) -> RetrainPage:
    """Return the page, with some of its fields changed."""
    page = RetrainPage(
        title="work",
        labelled=(4, 3),
        unlabelled=(3, 2),
        outcome=Outcome(2, False, "the pseudo masks still change (Dice to the last 0.9425)"),
        settled_at=0.97,
        facts=(("Folds", "2"), ("Labelled images", f"/data/{HOSTILE_TEXT}")),
        problems=(f"/data/{HOSTILE_CASE}.nii.gz: cannot be read",),
        fewshot=fewshot_part(),
        rounds=(
            round_part(1, validation_dice=0.9012, change_dice=0.8111),
            round_part(2, validation_dice=0.9234, change_dice=0.9425),
            begun_part(3),
        ),
    )
    return replace(page, **changes)


def fewshot_part() -> FewShotPart:
    """Return a part with an accepted, a doubtful and a failed image."""
    accepted = FewShotLabel(
        CASES[0],
        "T2",
        "B",
        verdict="accept",
        estimated_dice=0.9312,
        interval=(0.88, 0.97),
        volume_ml=1432.0,
    )
    doubtful = replace(
        accepted, case=CASES[1], verdict="doubtful", told=(f"low_agreement: {HOSTILE_TEXT}",)
    )
    failed = FewShotLabel(CASES[2], "T2", "", failed=True, told=("cannot be read",))
    picture = Picture(HOSTILE_CASE, 0.9312, png())
    return FewShotPart(
        (accepted, doubtful, failed), Gallery("estimated Dice", (), (picture,)), expert_dice=0.8721
    )


def round_part(number: int, *, validation_dice: float, change_dice: float) -> RoundPart:
    """Return a finished round with two folds."""
    label = RoundLabel(
        CASES[0],
        "T2",
        "accept",
        trains=True,
        reason="accepted by the few-shot branch",
        ignored=0.0125,
        change_dice=CHANGES[0],
        volume_ml=1400.4,
        confidence=0.95,
    )
    waiting = replace(
        label, case=CASES[1], verdict="doubtful", trains=False, change_dice=CHANGES[1],
        reason="doubtful: waits for networks to agree on it", agreement=0.6123, ignored=None,
    )  # fmt: skip
    hostile = replace(label, case=CASES[2], change_dice=CHANGES[2], reason=HOSTILE_TEXT)
    falling = tuple(1 / (epoch + 1) for epoch in range(30))
    rising = tuple(1 - loss for loss in falling)
    return RoundPart(
        number,
        "finished",
        is_finished=True,
        figures=RoundFigures(2, 1, 0, 0, validation_dice, 21.34, change_dice),
        labels=(label, waiting, hostile),
        trainings=tuple(
            FoldTraining(fold, falling, falling, rising, tuple(0.001 * y for y in falling))
            for fold in (0, 1)
        ),
        scores=(ExpertScore("0001-A", "T2", 0, 0.9012, 20.1, 8.2),),
        gallery=Gallery(
            "Dice to the mask before",
            (Picture("0002-B/T2", 0.5123, png()),),
            (Picture("0010-B/T2", 0.9321, None),),
        ),
        fewshot_weight=0.45,
    )


def begun_part(number: int) -> RoundPart:
    """Return a round of which nothing is known but what it trains on."""
    return RoundPart(
        number,
        "pseudo labels chosen",
        is_finished=False,
        figures=RoundFigures(1, 0, 0, 0),
        labels=(RoundLabel(CASES[0], "T2", "accept", trains=True, reason="accepted"),),
        trainings=(),
        scores=(),
        gallery=NO_PICTURES,
    )
