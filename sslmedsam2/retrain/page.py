"""The page of a ``retrain`` run, made from the records in the work directory so far."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from sslmedsam2.contract.pseudo_label_outputs import pseudo_label_paths
from sslmedsam2.errors import ModelError
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.records import Record, read_record_or_none, utc_now
from sslmedsam2.nnunet.dataset import read_plans
from sslmedsam2.nnunet.plans import planned_network
from sslmedsam2.nnunet.training import final_checkpoint
from sslmedsam2.pseudo_label.records import PseudoLabelRecord
from sslmedsam2.reporting.charts import Curve, LineChart
from sslmedsam2.reporting.page import write_single_file_page
from sslmedsam2.reporting.previews import Gallery, make_gallery
from sslmedsam2.retrain.freeze import below_fewshot
from sslmedsam2.retrain.index import read_index
from sslmedsam2.retrain.select import Choice, Selection, fewshot_dice
from sslmedsam2.retrain.state import (
    RelabelRecord,
    RetrainOptions,
    RoundDir,
    WorkDir,
    decision_so_far,
    options_of,
    read_state,
)
from sslmedsam2.retrain.stopping import Decision, RoundFigures
from sslmedsam2.train.fold_scores import FoldScore
from sslmedsam2.weights.checkpoint import read_checkpoint

logger = logging.getLogger(__name__)

_LATEST: Final = "checkpoint_latest.pth"
"""Checkpoint of a training that is running or was stopped."""
_CURVES: Final = {
    "train_losses": "Loss on training patches",
    "val_losses": "Loss on held-out patches",
    "mean_fg_dice": "Pseudo Dice of held-out patches",
    "lrs": "Learning rate",
}
"""Figures that nnU-Net logs each epoch, with their names on the page."""
_ROUNDS_CHART_WIDTH: Final = 440

_SHOWN_OPTIONS: Final = {
    "method": "Method",
    "sam2": "SAM2",
    "sequences": "Sequences",
    "folds": "Folds",
    "epochs": "Epochs",
    "iterations_per_epoch": "Iterations an epoch",
    "start": "Round 1 starts from",
    "warm_start": "Later rounds start from the last",
    "reference_masks_first": "Round 1 learns from reference masks alone",
    "reference_share": "Share of reference masks",
    "ignore_above": "Ignored above (bits)",
    "agreement_needed": "Agreement needed",
    "final": "Frozen as",
    "device": "Device",
    "seed": "Seed",
}
"""Options of the run that the page lists, with their names there."""


@dataclass(frozen=True)
class PageImage:
    """An unlabelled image on the page, of the few-shot branch or in a round.

    Attributes
    ----------
    fewshot
        Of the few-shot branch; None if it has not labelled the image yet.
    choice
        Whether a round trains on it: ``trains``, ``reason`` and ``ignored``, the share of voxels
        that the loss does not see; None if nothing is chosen yet.
    relabelled
        Of a round; None if the image is not predicted yet.
    """

    query: ImageFile
    fewshot: PseudoLabelRecord | None
    choice: Choice | None = None
    relabelled: RelabelRecord | None = None

    @property
    def verdict(self) -> str:
        """The verdict of the few-shot branch, or why there is none."""
        if self.fewshot is None:
            return "not labelled yet"
        return self.fewshot.verdict or "failed"

    @property
    def messages(self) -> tuple[str, ...]:
        """Error and warnings of the few-shot branch."""
        if self.fewshot is None:
            return ()
        return (*filter(None, [self.fewshot.error]), *self.fewshot.warnings)

    @property
    def trains(self) -> str:
        """Whether the round trains on its pseudo label; empty if that is not known yet."""
        if self.choice is None:
            return ""
        return "trains" if self.choice.trains else "waits" if self.waits else "left out"

    @property
    def waits(self) -> bool:
        """Whether a later round may train on it."""
        trains = self.choice is not None and self.choice.trains
        return self.verdict == "doubtful" and not trains

    @property
    def error(self) -> str | None:
        """Why the round has no new mask."""
        return None if self.relabelled is None else self.relabelled.error


@dataclass(frozen=True)
class PageRound:
    """A round on the page.

    Attributes
    ----------
    state
        How far it has got.
    figures
        As in ``outcome.json``; means are None where they are not known yet.
    fewshot_weight
        Of the few-shot branch in the new masks, 0 to 1.
    """

    number: int
    state: str
    is_finished: bool
    figures: Mapping[str, float | None]
    images: tuple[PageImage, ...]
    charts: tuple[LineChart, ...]
    scores: tuple[FoldScore, ...]
    gallery: Gallery
    fewshot_weight: float | None = None


@dataclass(frozen=True)
class RetrainPage:
    """All of the page.

    Attributes
    ----------
    labelled_cases
        Of each labelled image.
    decision
        None as long as no round is finished.
    settled_at
        Dice between rounds that ends the run; None if the number of rounds is fixed.
    options
        Options and surroundings, by name.
    problems
        A line for each image that cannot take part.
    warning
        That the best network is worse than the few-shot branch, or None.
    fewshot_dice
        Mean Dice of the few-shot branch on reference masks, each labelled by the others.
    """

    title: str
    labelled_cases: tuple[str, ...]
    images: tuple[PageImage, ...]
    decision: Decision | None
    settled_at: float | None
    options: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    fewshot_dice: float | None
    fewshot_gallery: Gallery
    rounds: tuple[PageRound, ...]
    warning: str | None = None

    @property
    def rounds_chart(self) -> LineChart:
        """The Dice of each round, with the levels that it is compared with."""
        curves = [
            Curve(
                name,
                tuple(
                    (part.number, value)
                    for part in self.rounds
                    if (value := part.figures[key]) is not None
                ),
            )
            for name, key in (
                ("on reference masks", "validation_dice"),
                ("to the masks before", "change_dice"),
            )
        ]
        levels = [
            ("few-shot branch on reference masks", self.fewshot_dice),
            ("settled", self.settled_at),
        ]
        return LineChart(
            "Dice on reference masks, and between the pseudo masks before and after a round",
            "round",
            tuple(curves),
            tuple((name, height) for name, height in levels if height is not None),
            width=_ROUNDS_CHART_WIDTH,
        )


def page_or_warn(work: WorkDir, *, frozen: str | None = None) -> None:
    """Write the page; a failure is logged and does not end the run."""
    try:
        path = write_retrain_page(work, frozen=frozen)
    except Exception as error:
        logger.warning("the page of the run could not be written (%s)", error)
        logger.debug("traceback", exc_info=error)
    else:
        logger.info("the run so far: %s", path)


def write_retrain_page(work: WorkDir, *, frozen: str | None = None) -> Path:
    """Write ``report/index.html`` of a work directory in any state, and return its path.

    Parameters
    ----------
    frozen
        What was frozen, and where; None if nothing was.

    Raises UsageError: the work directory has no index, or a record of a finished stage is damaged;
    OutputError: the page cannot be written.
    """
    index = read_index(work)
    options = options_of(work)
    images = tuple(
        PageImage(query, _record(work.pseudo_labels, query, PseudoLabelRecord))
        for query in index.queries
    )
    first = work.round(1)
    begun = (first, *work.rounds_after(first)) if first.path.is_dir() else ()
    page = RetrainPage(
        title=work.path.resolve().name,
        labelled_cases=tuple(image.case for image in index.labelled),
        images=images,
        decision=decision_so_far(options),
        settled_at=None if options.rule.fixed else options.rule.settled_at,
        options=_facts(options, frozen),
        problems=index.problems,
        fewshot_dice=fewshot_dice(work),
        fewshot_gallery=_gallery(
            work.pseudo_labels,
            [
                (image.query, image.fewshot.estimated_dice if image.fewshot else None)
                for image in images
            ],
            judged_by="estimated Dice",
        ),
        rounds=tuple(_round(round_dir, images, options) for round_dir in begun),
        warning=below_fewshot(options),
    )
    return write_page_of(page, work.page)


def write_page_of(page: RetrainPage, path: Path) -> Path:
    """Write the page, whole or not at all, and return its path; raises OutputError."""
    return write_single_file_page(path, "retrain.html", page=page)


def _facts(options: RetrainOptions, frozen: str | None) -> tuple[tuple[str, str], ...]:
    rule = options.rule
    rounds = f"{rule.most_rounds}" if rule.fixed else f"until settled, at most {rule.most_rounds}"
    facts = [
        ("Frozen", frozen),
        ("Labelled images", str(options.labelled_dir)),
        ("Unlabelled images", str(options.unlabelled_dir)),
        ("Rounds", rounds),
        *((name, _in_words(getattr(options, key))) for key, name in _SHOWN_OPTIONS.items()),
        *_network_facts(WorkDir(options.work_dir)),
        ("Page written", utc_now()),
    ]
    return tuple((name, value) for name, value in facts if value)


def _network_facts(work: WorkDir) -> tuple[tuple[str, str], ...]:
    """Describe the network, once it is planned."""
    if not work.plans.is_file():
        return ()
    network = planned_network(read_plans(work.plans))
    return (
        ("Voxel size z, y, x", " x ".join(f"{mm:.3g}" for mm in network.spacing_zyx_mm) + " mm"),
        ("Patch z, y, x", " x ".join(map(str, network.patch_zyx))),
        ("Batch", str(network.batch_size)),
    )


def _in_words(value: object) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return None if value is None else str(value)


def _record(folder: Path, query: ImageFile, kind: type[Record]) -> Record | None:
    return read_record_or_none(pseudo_label_paths(folder, query).record, kind)


def _gallery(
    folder: Path, scored: Sequence[tuple[ImageFile, float | None]], *, judged_by: str
) -> Gallery:
    known = (
        (score, query.name, pseudo_label_paths(folder, query).preview)
        for query, score in scored
        if score is not None
    )
    return make_gallery(known, judged_by=judged_by)


def _round(round_dir: RoundDir, images: Sequence[PageImage], options: RetrainOptions) -> PageRound:
    chosen: dict[str, Choice] = {}
    if round_dir.selection.is_file():
        chosen = {one.name: one for one in read_state(round_dir.selection, Selection).choices}
    images = tuple(
        replace(
            image,
            choice=chosen.get(image.query.name),
            relabelled=_record(round_dir.relabelled, image.query, RelabelRecord),
        )
        for image in images
    )
    known = [image.relabelled for image in images if image.relabelled is not None]
    logs = _training_logs(round_dir, n_folds=options.folds)
    scores: tuple[FoldScore, ...] = ()
    if round_dir.validation.is_file():
        scores = read_state(round_dir.validation, tuple[FoldScore, ...])
    return PageRound(
        number=round_dir.number,
        state=_state(round_dir, logs, options, n_relabelled=len(known), n_images=len(images)),
        is_finished=round_dir.outcome.is_file(),
        figures=_figures(round_dir, images, [score.dice for score in scores]),
        images=images,
        charts=_training_charts(logs),
        scores=scores,
        gallery=_gallery(
            round_dir.relabelled,
            [
                (image.query, image.relabelled.change_dice if image.relabelled else None)
                for image in images
            ],
            judged_by="Dice to the mask before",
        ),
        fewshot_weight=max((record.fewshot_weight for record in known), default=None),
    )


def _figures(
    round_dir: RoundDir, images: Sequence[PageImage], dices: Sequence[float]
) -> Mapping[str, float | None]:
    """Return the figures of the round or, if it is not finished, those known so far."""
    if round_dir.outcome.is_file():
        return vars(read_state(round_dir.outcome, RoundFigures))
    return {
        "validation_dice": float(np.mean(dices)) if dices else None,
        "validation_hausdorff_mm": None,
        "change_dice": None,
        "trained": sum(image.trains == "trains" for image in images),
        "waiting": sum(image.waits for image in images),
        "rejected": sum(image.verdict == "reject" and image.trains != "trains" for image in images),
        "failed": sum(image.error is not None for image in images),
    }


def _training_logs(round_dir: RoundDir, *, n_folds: int) -> dict[int, dict[str, list[float]]]:
    """Read nnU-Net's log of each fold that has a checkpoint; damaged ones are skipped."""
    found = {}
    for fold in range(n_folds) if round_dir.path.is_dir() else ():
        final = final_checkpoint(round_dir.path, fold)
        path = final if final.is_file() else final.with_name(_LATEST)
        if not path.is_file():
            continue
        try:
            log = read_checkpoint(path)["logging"]
            found[fold] = {key: [float(value) for value in log[key]] for key in _CURVES}
        except (ModelError, LookupError, TypeError, ValueError) as error:
            logger.warning("%s: its training curves cannot be read (%s)", path, error)
    return found


def _training_charts(logs: Mapping[int, Mapping[str, Sequence[float]]]) -> tuple[LineChart, ...]:
    """Return a chart for each figure of the training, with one curve per fold."""
    charts = (
        LineChart(
            title,
            "epoch",
            tuple(
                Curve(f"fold {fold}", tuple(enumerate(log[key], start=1)))
                for fold, log in logs.items()
            ),
        )
        for key, title in _CURVES.items()
    )
    return tuple(chart for chart in charts if chart.has_points)


def _state(
    round_dir: RoundDir,
    logs: Mapping[int, Mapping[str, Sequence[float]]],
    options: RetrainOptions,
    *,
    n_relabelled: int,
    n_images: int,
) -> str:
    """Return the stage that a round has reached, in words."""
    if round_dir.outcome.is_file():
        return "finished"
    if n_relabelled:
        return f"{n_relabelled} of {n_images} unlabelled images re-predicted"
    if round_dir.validation.is_file():
        return "scored on reference masks"
    if logs:
        epochs = [f"fold {fold} at epoch {len(log['lrs'])}" for fold, log in logs.items()]
        return f"training, {', '.join(epochs)} of {options.epochs}"
    return (
        "pseudo labels chosen"
        if round_dir.selection.is_file()
        else "pseudo labels are being chosen"
    )
