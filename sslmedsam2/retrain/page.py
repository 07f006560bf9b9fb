"""The page of a run: reads what the stages left in the work directory, whatever there is by now."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import numpy as np

from sslmedsam2.contract.pseudo_labels import pseudo_label_paths
from sslmedsam2.errors import ModelError
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.nnunet.dataset import read_plans
from sslmedsam2.nnunet.presets import planned_network
from sslmedsam2.nnunet.training import trained_model_dir
from sslmedsam2.pseudo_label.records import read_pseudo_label
from sslmedsam2.reporting.galleries import Candidate, Gallery, make_gallery
from sslmedsam2.reporting.retrain_page import write_retrain_page
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
from sslmedsam2.retrain.index import Index, read_index
from sslmedsam2.retrain.options import RetrainOptions, from_record
from sslmedsam2.retrain.select import fewshot_dice
from sslmedsam2.retrain.state import (
    RelabelRecord,
    RoundDir,
    WorkDir,
    decision_so_far,
    read_json,
    read_relabel_record,
)
from sslmedsam2.weights.checkpoint import read_checkpoint
from sslmedsam2.weights.layout import checkpoint_file

logger = logging.getLogger(__name__)

_LATEST: Final = "checkpoint_latest.pth"
"""Of a training that goes on, or was stopped."""


def read_trainings(round_dir: RoundDir, *, n_folds: int) -> tuple[FoldTraining, ...]:
    """Read the curves of the folds that have a checkpoint; a damaged one is passed over."""
    if not round_dir.path.is_dir():
        return ()
    found = (_training(trained_model_dir(round_dir.path), fold) for fold in range(n_folds))
    return tuple(training for training in found if training is not None)


def _training(model_dir: Path, fold: int) -> FoldTraining | None:
    final = model_dir / checkpoint_file(str(fold))
    path = final if final.is_file() else final.with_name(_LATEST)
    if not path.is_file():
        return None
    try:
        log = read_checkpoint(path)["logging"]
        return FoldTraining(
            fold,
            train_loss=_finite(log["train_losses"]),
            held_out_loss=_finite(log["val_losses"]),
            held_out_dice=_finite(log["mean_fg_dice"]),
            learning_rate=_finite(log["lrs"]),
        )
    except (ModelError, LookupError, TypeError, ValueError) as error:
        logger.warning("%s: its training curves cannot be read (%s)", path, error)
        return None


def _finite(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


_SHOWN_OPTIONS: Final = {
    "sam2": "SAM2",
    "sequences": "Sequences",
    "folds": "Folds",
    "epochs": "Epochs",
    "iterations_per_epoch": "Iterations an epoch",
    "start": "Round 1 starts from",
    "warm_start": "Later rounds start from the last",
    "experts_first": "Round 1 learns from reference masks alone",
    "expert_share": "Share of reference masks",
    "ignore_above": "Ignored above (bits)",
    "agreement_needed": "Agreement needed",
    "final": "Frozen as",
    "device": "Device",
    "seed": "Seed",
}
"""Options of the run that the page lists, with their names there."""


def report_or_warn(work: WorkDir, *, frozen: str | None = None) -> None:
    """Write the page; if that fails, only warn: the run is worth more than its page."""
    try:
        path = write_retrain_report(work, frozen=frozen)
    except Exception as error:
        logger.warning("the page of the run could not be written (%s)", error)
        logger.debug("traceback", exc_info=error)
    else:
        logger.info("the run so far: %s", path)


def write_retrain_report(work: WorkDir, *, frozen: str | None = None) -> Path:
    """Write ``report/index.html`` of a work directory in any state, and return its path.

    Parameters
    ----------
    frozen
        What was frozen, and where; None if nothing was just now.

    Raises
    ------
    UsageError
        The work directory was never begun, or a record of a finished stage is damaged.
    OutputError
        The page cannot be written.
    """
    index = read_index(work)
    options = from_record(read_json(work.options), work_dir=work.path)
    fewshot = _fewshot(work, index)
    first = work.round(1)
    begun = (first, *work.rounds_after(first)) if first.path.is_dir() else ()
    page = RetrainPage(
        title=work.path.resolve().name,
        labelled=_numbers(index.labelled),
        unlabelled=_numbers(index.queries),
        outcome=_outcome(options),
        settled_at=None if options.rule.fixed else options.rule.settled_at,
        facts=_facts(options, frozen),
        problems=index.problems,
        fewshot=fewshot,
        rounds=tuple(_round(round_dir, index, options, fewshot) for round_dir in begun),
    )
    return write_retrain_page(work.report, page)


def _numbers(images: Sequence[Any]) -> tuple[int, int]:
    return len(images), len({image.case for image in images})


def _outcome(options: RetrainOptions) -> Outcome | None:
    decision = decision_so_far(options)
    if decision is None:
        return None
    return Outcome(decision.best_round, decision.stop, decision.reason)


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
        ("Page written", datetime.now(timezone.utc).isoformat(timespec="seconds")),
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


def _fewshot(work: WorkDir, index: Index) -> FewShotPart:
    labels, candidates = [], []
    for query in index.queries:
        paths = pseudo_label_paths(work.pseudo_labels, query)
        label = _fewshot_label(query, paths.record)
        labels.append(label)
        if label.estimated_dice is not None:
            candidates.append(Candidate(query.name, label.estimated_dice, paths.preview))
    gallery = make_gallery(candidates, judged_by="estimated Dice")
    return FewShotPart(tuple(labels), gallery, fewshot_dice(work))


def _fewshot_label(query: ImageFile, path: Path) -> FewShotLabel:
    record = read_pseudo_label(path)
    sequence, vendor = query.sequence or "", query.vendor or ""
    if record is None:
        return FewShotLabel(query.case, sequence, vendor)
    return FewShotLabel(
        query.case,
        sequence,
        vendor,
        verdict=record.verdict,
        estimated_dice=record.estimated_dice,
        interval=record.interval,
        volume_ml=record.volume_ml,
        failed=record.error is not None,
        told=(*filter(None, [record.error]), *record.warnings),
    )


def _round(
    round_dir: RoundDir, index: Index, options: RetrainOptions, fewshot: FewShotPart
) -> RoundPart:
    choices = read_json(round_dir.selection)["choices"] if round_dir.selection.is_file() else []
    chosen = {choice["name"]: choice for choice in choices}
    records = {query.name: _relabel_record(round_dir, query) for query in index.queries}
    labels = tuple(
        _round_label(label, chosen.get(query.name), records[query.name])
        for query, label in zip(index.queries, fewshot.labels, strict=True)
    )
    known = [record for record in records.values() if record is not None]
    trainings = read_trainings(round_dir, n_folds=options.folds)
    scores = read_json(round_dir.validation) if round_dir.validation.is_file() else []
    return RoundPart(
        number=round_dir.number,
        state=_state(round_dir, trainings, options, n_relabelled=len(known), n_labels=len(labels)),
        is_finished=round_dir.outcome.is_file(),
        figures=_figures(round_dir, labels, [score["dice"] for score in scores]),
        labels=labels,
        trainings=trainings,
        scores=tuple(ExpertScore(**score) for score in scores),
        gallery=_gallery(round_dir, index, records.values()),
        fewshot_weight=max((record.fewshot_weight for record in known), default=None),
    )


def _relabel_record(round_dir: RoundDir, query: ImageFile) -> RelabelRecord | None:
    path = pseudo_label_paths(round_dir.relabelled, query).record
    return read_relabel_record(path) if path.is_file() else None


def _round_label(
    label: FewShotLabel, choice: dict[str, Any] | None, record: RelabelRecord | None
) -> RoundLabel:
    done = record is not None and record.error is None
    return RoundLabel(
        label.case,
        label.sequence,
        label.verdict,
        trains=choice["trains"] if choice else None,
        reason=choice["reason"] if choice else "",
        ignored=choice["ignored"] if choice else None,
        agreement=record.agreement if record else None,
        change_dice=record.change_dice if record else None,
        volume_ml=record.volume_ml if record and done else None,
        confidence=record.mean_confidence if record else None,
        error=record.error if record else None,
    )


def _figures(
    round_dir: RoundDir, labels: Sequence[RoundLabel], dices: Sequence[float]
) -> RoundFigures:
    """Return the round's own figures or, before it is finished, those that can be told by now."""
    if round_dir.outcome.is_file():
        outcome = read_json(round_dir.outcome)
        return RoundFigures(**{field.name: outcome[field.name] for field in fields(RoundFigures)})
    return RoundFigures(
        trained=sum(bool(label.trains) for label in labels),
        waiting=sum(not label.trains and label.verdict == "doubtful" for label in labels),
        rejected=sum(label.verdict == "reject" for label in labels),
        failed=sum(label.error is not None for label in labels),
        validation_dice=float(np.mean(dices)) if dices else None,
    )


def _gallery(round_dir: RoundDir, index: Index, records: Iterable[RelabelRecord | None]) -> Gallery:
    candidates = [
        Candidate(
            query.name,
            record.change_dice,
            pseudo_label_paths(round_dir.relabelled, query).preview,
        )
        for query, record in zip(index.queries, records, strict=True)
        if record is not None and record.change_dice is not None
    ]
    return make_gallery(candidates, judged_by="Dice to the mask before")


def _state(
    round_dir: RoundDir,
    trainings: Sequence[FoldTraining],
    options: RetrainOptions,
    *,
    n_relabelled: int,
    n_labels: int,
) -> str:
    """Say how far a round has got, from its last stage to its first."""
    if round_dir.outcome.is_file():
        return "finished"
    if n_relabelled:
        return f"{n_relabelled} of {n_labels} unlabelled images re-predicted"
    if round_dir.validation.is_file():
        return "scored on reference masks"
    if trainings:
        epochs = [f"fold {fold.fold} at epoch {len(fold.train_loss)}" for fold in trainings]
        return f"training, {', '.join(epochs)} of {options.epochs}"
    return (
        "pseudo labels chosen"
        if round_dir.selection.is_file()
        else "pseudo labels are being chosen"
    )
