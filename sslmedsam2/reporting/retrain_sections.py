"""The sections of the page of a ``retrain`` run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from xml.etree.ElementTree import Element

from sslmedsam2.reporting.galleries import Gallery, Picture
from sslmedsam2.reporting.line_charts import Curve, LineChart, line_chart
from sslmedsam2.reporting.markup import add, definitions, element, png_address
from sslmedsam2.reporting.retrain_page_data import (
    FewShotPart,
    FoldTraining,
    RetrainPage,
    RoundPart,
)
from sslmedsam2.reporting.retrain_tables import (
    FEWSHOT_ANCHOR,
    fewshot_table,
    fewshot_word,
    labels_table,
    round_anchor,
    rounds_table,
    scores_table,
)

_ROUNDS_CHART_WIDTH: Final = 640


def head(page: RetrainPage) -> Element:
    """Return the title, the figures of the run, how it stands, and what it was asked for."""
    made = element(
        "header", element("h1", "Retraining ", element("span", page.title, class_="run-name"))
    )
    add(made, _counts(page), element("p", _standing(page), class_="standing"))
    line = element("summary", "Options of this run")
    add(made, element("details", line, definitions(page.facts), class_="run-facts"))
    if page.problems:
        line = element("summary", f"{len(page.problems)} image(s) cannot take part, and why")
        reasons = element("ul", *(element("li", problem) for problem in page.problems))
        add(made, element("details", line, reasons, class_="left-out"))
    return made


def rounds_section(page: RetrainPage) -> Element:
    """Return the table of all rounds, and their curves."""
    return element("section", element("h2", "Rounds"), rounds_table(page), _rounds_chart(page))


def fewshot_section(part: FewShotPart, *, is_open: bool) -> Element:
    """Return what the few-shot branch gave."""
    words = [fewshot_word(label) for label in part.labels]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    made = _part(FEWSHOT_ANCHOR, "Few-shot branch", counts, is_open=is_open)
    add(made, *_gallery(part.gallery), element("h3", "Pseudo labels"), fewshot_table(part.labels))
    return made


def round_section(part: RoundPart, *, is_best: bool, is_open: bool) -> Element:
    """Return how a round was trained, and what its networks made of the pseudo labels."""
    line = ", ".join(filter(None, ["best" if is_best else "", part.state]))
    made = _part(round_anchor(part.number), f"Round {part.number}", line, is_open=is_open)
    add(made, *_gallery(part.gallery), *_training_charts(part.trainings))
    if part.scores:
        add(made, element("h3", "Reference masks, each scored by the fold that never saw it"))
        add(made, scores_table(part.scores, number=part.number))
    add(made, element("h3", "Pseudo labels"), _weights_line(part))
    add(made, labels_table(part.labels, number=part.number))
    return made


def _counts(page: RetrainPage) -> Element:
    facts = [
        (page.labelled[0], f"labelled, of {page.labelled[1]} patient(s)"),
        (page.unlabelled[0], f"unlabelled, of {page.unlabelled[1]} patient(s)"),
        (sum(part.is_finished for part in page.rounds), "round(s) finished"),
    ]
    cards = [
        element("div", element("strong", str(number)), element("span", words))
        for number, words in facts
    ]
    return element("div", *cards, class_="counts")


def _standing(page: RetrainPage) -> str:
    """Say in a sentence or two what the rounds came to."""
    outcome = page.outcome
    if outcome is not None:
        (best,) = (part for part in page.rounds if part.number == outcome.best_round)
        ending = "Ended" if outcome.ended else "Goes on"
        dice = f"{best.figures.validation_dice:.4f}"
        return (
            f"Best is round {best.number}, by its Dice of {dice} on reference masks. "
            f"{ending}: {outcome.reason}."
        )
    if not page.rounds:
        return "No round has begun yet."
    return f"No round is finished yet. Round {page.rounds[-1].number}: {page.rounds[-1].state}."


def _rounds_chart(page: RetrainPage) -> Element | None:
    scored = [(part.number, part.figures.validation_dice) for part in page.rounds]
    changes = [(part.number, part.figures.change_dice) for part in page.rounds]
    levels = [
        ("few-shot branch on reference masks", page.fewshot.expert_dice),
        ("settled", page.settled_at),
    ]
    chart = LineChart(
        "Dice on reference masks, and between the pseudo masks before and after a round",
        "round",
        (
            Curve("on reference masks", tuple((x, y) for x, y in scored if y is not None)),
            Curve("to the masks before", tuple((x, y) for x, y in changes if y is not None)),
        ),
        tuple((name, height) for name, height in levels if height is not None),
    )
    return line_chart(chart, width=_ROUNDS_CHART_WIDTH)


def _part(anchor: str, name: str, line: str, *, is_open: bool) -> Element:
    heading = element("summary", element("h2", name), element("span", line, class_="muted"))
    return element("details", heading, id=anchor, class_="part", open=is_open)


def _gallery(gallery: Gallery) -> list[Element]:
    parts = []
    for words, pictures in (("Worst", gallery.worst), ("Best", gallery.best)):
        if pictures:
            parts.append(element("h3", f"{words} masks, by {gallery.judged_by}"))
            parts.append(element("div", *map(_picture, pictures), class_="gallery"))
    return parts


def _picture(picture: Picture) -> Element:
    caption = element("figcaption", picture.title, " ", element("b", f"{picture.score:.4f}"))
    if picture.png is None:
        return element("figure", caption, element("p", "There is no picture.", class_="notice"))
    shown = element(
        "img",
        src=png_address(picture.png),
        alt=f"Three slices of {picture.title} with the mask's outline",
        loading="lazy",
    )
    return element("figure", caption, shown)


def _training_charts(trainings: Sequence[FoldTraining]) -> list[Element]:
    """Return a chart for each figure of the training, with all folds in it."""
    wanted: list[tuple[str, Callable[[FoldTraining], Sequence[float]]]] = [
        ("Loss on training patches", lambda fold: fold.train_loss),
        ("Loss on held-out patches", lambda fold: fold.held_out_loss),
        ("Pseudo Dice of held-out patches", lambda fold: fold.held_out_dice),
        ("Learning rate", lambda fold: fold.learning_rate),
    ]
    charts = []
    for title, values in wanted:
        curves = tuple(
            Curve(f"fold {fold.fold}", tuple(enumerate(values(fold), start=1)))
            for fold in trainings
        )
        charts.append(line_chart(LineChart(title, "epoch", curves)))
    drawn = [chart for chart in charts if chart is not None]
    if not drawn:
        return []
    return [element("h3", "Training"), element("div", *drawn, class_="charts")]


def _weights_line(part: RoundPart) -> Element | None:
    if part.fewshot_weight is None:
        return None
    fewshot = 100 * part.fewshot_weight
    told = f"New masks: {100 - fewshot:.0f} % networks, {fewshot:.0f} % few-shot branch."
    return element("p", told, class_="muted")
