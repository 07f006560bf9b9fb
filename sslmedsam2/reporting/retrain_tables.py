"""The tables of the page of a ``retrain`` run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element

from sslmedsam2.reporting.markup import Content, add, element
from sslmedsam2.reporting.page_tables import Column, badge, table
from sslmedsam2.reporting.retrain_page_data import (
    ExpertScore,
    FewShotLabel,
    RetrainPage,
    RoundFigures,
    RoundLabel,
)

FEWSHOT_ANCHOR: Final = "few-shot"
_TONES: Final[dict[str, str]] = {
    **{"accept": "good", "doubtful": "warn", "reject": "bad", "failed": "bad"},
    **{"trains": "good", "waits": "warn"},
}


def round_anchor(number: int) -> str:
    """Return the address of a round within the page."""
    return f"round-{number}"


def rounds_table(page: RetrainPage) -> Element:
    """Return one line for the few-shot branch and one for each round."""
    best = page.outcome.best_round if page.outcome else None
    lines = [_Line("Few-shot branch", FEWSHOT_ANCHOR, dice=page.fewshot.expert_dice)]
    lines += [
        _Line(
            f"Round {part.number}",
            round_anchor(part.number),
            part.figures.validation_dice,
            part.state,
            part.figures,
            is_best=part.number == best,
        )
        for part in page.rounds
    ]
    caption = "The few-shot branch and all rounds"
    return table(_LINE_COLUMNS, lines, caption=caption, sortable=False)


def fewshot_table(labels: Sequence[FewShotLabel]) -> Element:
    """Return the pseudo labels of the few-shot branch."""
    return table(_FEWSHOT_COLUMNS, labels, caption="Pseudo labels of the few-shot branch")


def labels_table(labels: Sequence[RoundLabel], *, number: int) -> Element:
    """Return the pseudo labels of a round; a column tells of errors if there are any."""
    columns = [*_LABEL_COLUMNS]
    if any(label.error for label in labels):
        columns.append(
            Column("Error", lambda label: label.error, draw=lambda label: _told(label.error or ""))
        )
    return table(columns, labels, caption=f"Pseudo labels of round {number}")


def scores_table(scores: Sequence[ExpertScore], *, number: int) -> Element:
    """Return a round's scores on reference masks."""
    return table(_SCORE_COLUMNS, scores, caption=f"Reference masks in round {number}")


def fewshot_word(label: FewShotLabel) -> str:
    """Return the verdict, or why there is none."""
    return label.verdict or ("failed" if label.failed else "not labelled yet")


@dataclass(frozen=True)
class _Line:
    """The few-shot branch, which has no figures but its Dice, or a round."""

    name: str
    anchor: str
    dice: float | None
    state: str = ""
    figures: RoundFigures | None = None
    is_best: bool = False


def _line_name(line: _Line) -> Element:
    made = element("span", element("a", line.name, href=f"#{line.anchor}"))
    if line.is_best:
        add(made, " ", badge("best", "good"))
    return made


def _line_figure(name: str, field: str, digits: int = 0) -> Column[_Line]:
    return Column(
        name, lambda line: None if line.figures is None else getattr(line.figures, field), digits
    )


def _training_word(label: RoundLabel) -> str | None:
    if label.trains is None:
        return None
    if label.trains:
        return "trains"
    return "waits" if label.verdict == "doubtful" else "left out"


def _toned(word: str | None) -> Content:
    return None if word is None else badge(word, _TONES.get(word, ""))


def _told(text: str) -> Content:
    return element("span", text, class_="told", title=text) if text else None


_LINE_COLUMNS: Final[tuple[Column[_Line], ...]] = (
    Column("Round", lambda line: line.name, draw=_line_name),
    Column("State", lambda line: line.state),
    Column(
        "Dice",
        lambda line: line.dice,
        4,
        told="Mean on reference masks, each judged by what had not seen it",
    ),
    _line_figure("HD mm", "validation_hausdorff_mm", 1),
    _line_figure("Dice to the last", "change_dice", 4),
    _line_figure("Trained", "trained"),
    _line_figure("Waiting", "waiting"),
    _line_figure("Rejected", "rejected"),
    _line_figure("Failed", "failed"),
)

_FEWSHOT_COLUMNS: Final[tuple[Column[FewShotLabel], ...]] = (
    Column("Case", lambda label: label.case),
    Column("Sequence", lambda label: label.sequence),
    Column("Vendor", lambda label: label.vendor),
    Column("Verdict", fewshot_word, draw=lambda label: _toned(fewshot_word(label))),
    Column("Estimated Dice", lambda label: label.estimated_dice, 4),
    Column("at least", lambda label: label.interval and label.interval[0], 3),
    Column("at most", lambda label: label.interval and label.interval[1], 3),
    Column("Liver ml", lambda label: label.volume_ml, 0),
    Column(
        "Warnings and errors",
        lambda label: "\n".join(label.told),
        draw=lambda label: _told("\n".join(label.told)),
    ),
)

_LABEL_COLUMNS: Final[tuple[Column[RoundLabel], ...]] = (
    Column("Case", lambda label: label.case),
    Column("Sequence", lambda label: label.sequence),
    Column(
        "Verdict",
        lambda label: label.verdict,
        draw=lambda label: _toned(label.verdict),
        told="Of the few-shot branch",
    ),
    Column("Trains", _training_word, draw=lambda label: _toned(_training_word(label))),
    Column("Why", lambda label: label.reason),
    Column(
        "Ignored %",
        lambda label: None if label.ignored is None else 100 * label.ignored,
        1,
        told="Voxels that are too uncertain to train on",
    ),
    Column(
        "Agreement",
        lambda label: label.agreement,
        4,
        told="Dice between the round's networks, where more than one has not seen the image",
    ),
    Column(
        "Dice to the last",
        lambda label: label.change_dice,
        4,
        told="Between the mask before the round and the new one",
    ),
    Column("Liver ml", lambda label: label.volume_ml, 0),
    Column("Confidence", lambda label: label.confidence, 3),
)

_SCORE_COLUMNS: Final[tuple[Column[ExpertScore], ...]] = (
    Column("Case", lambda score: score.case),
    Column("Sequence", lambda score: score.sequence),
    Column("Fold", lambda score: score.fold, 0),
    Column("Dice", lambda score: score.dice, 4),
    Column("HD mm", lambda score: score.hausdorff_mm, 1),
    Column("HD95 mm", lambda score: score.hausdorff95_mm, 1),
)
