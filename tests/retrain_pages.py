"""A page of a ``retrain`` run, made by hand: two rounds are finished and a third has begun."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from qc_runs import HOSTILE_CASE, HOSTILE_TEXT

from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.pseudo_label.records import PseudoLabelRecord
from sslmedsam2.reporting.charts import Curve, LineChart
from sslmedsam2.reporting.previews import Gallery, Preview
from sslmedsam2.retrain.page import PageImage, PageRound, RetrainPage
from sslmedsam2.retrain.select import Choice
from sslmedsam2.retrain.state import RelabelRecord
from sslmedsam2.retrain.stopping import Decision
from sslmedsam2.train.fold_scores import FoldScore

NO_PREVIEWS = Gallery("Dice", (), ())
CASES = ("0010-B", "0002-B", HOSTILE_CASE)
CHANGES = (0.91, None, 0.975)
_NO_FIGURES = dict.fromkeys(("validation_dice", "validation_hausdorff_mm", "change_dice"))


def png(*, width: int = 90, height: int = 30) -> bytes:
    """Return a grey picture."""
    written = io.BytesIO()
    Image.new("L", (width, height), 128).save(written, format="PNG")
    return written.getvalue()


def example_page(**changes: Any) -> RetrainPage:
    """Return the page, with some of its fields changed."""
    page = RetrainPage(
        title="work",
        labelled_cases=("0001-A", "0001-A", "0003-A", "0004-A"),
        images=fewshot_images(),
        decision=Decision(False, "the pseudo masks still change (Dice to the last 0.9425)", 2),
        settled_at=0.97,
        options=(("Folds", "2"), ("Labelled images", f"/data/{HOSTILE_TEXT}")),
        problems=(f"/data/{HOSTILE_CASE}.nii.gz: cannot be read",),
        fewshot_dice=0.8721,
        fewshot_gallery=Gallery("estimated Dice", (), (Preview(HOSTILE_CASE, 0.9312, png()),)),
        rounds=(
            finished_round(1, validation_dice=0.9012, change_dice=0.8111),
            finished_round(2, validation_dice=0.9234, change_dice=0.9425),
            begun_round(3),
        ),
    )
    return replace(page, **changes)


def fewshot_images() -> tuple[PageImage, ...]:
    """Return an accepted, a doubtful and a failed image."""
    accepted = PseudoLabelRecord(
        CASES[0],
        "T2",
        "B",
        "x",
        verdict="accept",
        estimated_dice=0.9312,
        interval=(0.88, 0.97),
        volume_ml=1432.0,
    )
    doubtful = replace(
        accepted,
        case=CASES[1],
        verdict="doubtful",
        warnings=(f"low_agreement: {HOSTILE_TEXT}",),
    )
    failed = PseudoLabelRecord(CASES[2], "T2", None, "x", error="cannot be read")
    return tuple(
        PageImage(
            ImageFile(case=record.case, vendor=record.vendor, sequence="T2", path=Path("x")), record
        )
        for record in (accepted, doubtful, failed)
    )


def finished_round(number: int, *, validation_dice: float, change_dice: float) -> PageRound:
    """Return a finished round with two folds."""
    trained, waiting, hostile = fewshot_images()
    choices = (
        Choice("1", True, "accepted by the few-shot branch", 0.0125),
        Choice("2", False, "doubtful: waits for networks to agree on it"),
        Choice("3", True, HOSTILE_TEXT, 0.0125),
    )
    images = tuple(
        replace(
            image,
            choice=choice,
            relabelled=RelabelRecord(
                image.query.case,
                "T2",
                "key",
                (0,),
                trained=False,
                agreement=0.6123 if image is waiting else None,
                change_dice=change,
                volume_ml=1400.4,
                mean_confidence=0.95,
            ),
        )
        for image, choice, change in zip((trained, waiting, hostile), choices, CHANGES, strict=True)
    )
    falling = tuple((epoch, 1 / epoch) for epoch in range(1, 31))
    curves = tuple(Curve(f"fold {fold}", falling) for fold in (0, 1))
    return PageRound(
        number,
        "finished",
        is_finished=True,
        figures={
            "trained": 2,
            "waiting": 1,
            "rejected": 0,
            "failed": 0,
            "validation_dice": validation_dice,
            "validation_hausdorff_mm": 21.34,
            "change_dice": change_dice,
        },
        images=images,
        charts=tuple(
            LineChart(title, "epoch", curves)
            for title in ("Loss on training patches", "Learning rate")
        ),
        scores=(FoldScore("0001-A", "T2", 0, 0.9012, 20.1, 8.2),),
        gallery=Gallery(
            "Dice to the mask before",
            (Preview("0002-B/T2", 0.5123, png()),),
            (Preview("0010-B/T2", 0.9321, None),),
        ),
        fewshot_weight=0.45,
    )


def begun_round(number: int) -> PageRound:
    """Return a round of which nothing is known but what it trains on."""
    image = replace(fewshot_images()[0], choice=Choice("1", True, "accepted"))
    return PageRound(
        number,
        "pseudo labels chosen",
        is_finished=False,
        figures={**_NO_FIGURES, "trained": 1, "waiting": 0, "rejected": 0, "failed": 0},
        images=(image,),
        charts=(),
        scores=(),
        gallery=NO_PREVIEWS,
    )
