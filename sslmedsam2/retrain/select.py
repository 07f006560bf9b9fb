"""First stage of a round: select pseudo labels, and write the masks to train on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sslmedsam2.contract.outputs import CALIBRATION_NAME, PseudoLabelPaths, pseudo_label_paths
from sslmedsam2.imaging.atomic import write_bytes_atomic
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.labelled import read_mask_of
from sslmedsam2.imaging.reading import read_stored
from sslmedsam2.imaging.records import key_of, move_aside, read_record_or_none, write_record
from sslmedsam2.imaging.writing import write_labels
from sslmedsam2.nnunet.labels import IGNORE, LIVER, UNSURE_LIVER
from sslmedsam2.pseudo_label.calibration import CalibrationRun
from sslmedsam2.pseudo_label.records import read_pseudo_label
from sslmedsam2.retrain.options import RetrainOptions
from sslmedsam2.retrain.selection import (
    Candidate,
    Choice,
    Selection,
    choose,
    choose_online,
    none_of,
    training_labels,
)
from sslmedsam2.retrain.state import RoundDir, WorkDir, read_relabel_record
from sslmedsam2.weights.manifest import sha256_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PseudoLabel:
    """An unlabelled image with its newest mask.

    Attributes
    ----------
    paths
        Of mask and maps; the files exist if ``has_mask``.
    candidate
        What the selection wants to know.
    """

    query: ImageFile
    paths: PseudoLabelPaths
    candidate: Candidate
    has_mask: bool

    @property
    def key(self) -> str | None:
        """Hash of the mask and its uncertainty, read when asked for; None without a mask."""
        if not self.has_mask:
            return None
        return sha256_file(self.paths.mask) + sha256_file(self.paths.uncertainty)


def fewshot_labels(work: WorkDir, queries: Sequence[ImageFile]) -> tuple[PseudoLabel, ...]:
    """Read what the few-shot branch gave, in the order of ``queries``."""
    return tuple(_fewshot(work, query) for query in queries)


def fewshot_dice(work: WorkDir) -> float | None:
    """Return the few-shot branch's mean Dice on reference masks, each labelled by the others.

    None if there was only one labelled patient, or the calibration cannot be read.
    """
    found = read_record_or_none(work.pseudo_labels / CALIBRATION_NAME, CalibrationRun)
    dices = [case.dice for case in found.cases] if found is not None else []
    return sum(dices) / len(dices) if dices else None


def _fewshot(work: WorkDir, query: ImageFile) -> PseudoLabel:
    paths = pseudo_label_paths(work.pseudo_labels, query)
    record = read_pseudo_label(paths.record)
    if record is None or record.verdict is None:
        return PseudoLabel(query, paths, Candidate(query.name, None), has_mask=False)
    if record.mask_sha256 is not None and sha256_file(paths.mask) != record.mask_sha256:
        has_liver = bool(read_mask_of(replace(query, mask=paths.mask)).array_zyx.any())
        candidate = Candidate(
            query.name, record.verdict, has_liver=has_liver, manually_corrected=True
        )
    else:
        candidate = Candidate(
            query.name,
            record.verdict,
            has_liver=bool(record.volume_ml),
            estimated_dice=record.estimated_dice,
        )
    return PseudoLabel(query, paths, candidate, has_mask=True)


def relabelled(round_dir: RoundDir, fewshot: Sequence[PseudoLabel]) -> tuple[PseudoLabel, ...]:
    """Read what a finished round's networks gave, in the order of the few-shot branch's labels."""
    return tuple(_relabelled(round_dir, label) for label in fewshot)


def _relabelled(round_dir: RoundDir, fewshot: PseudoLabel) -> PseudoLabel:
    query, paths = fewshot.query, pseudo_label_paths(round_dir.relabelled, fewshot.query)
    record = read_relabel_record(paths.record)
    if record is None or record.error is not None:
        if fewshot.candidate.manually_corrected:
            return fewshot
        return PseudoLabel(query, paths, Candidate(query.name, None), has_mask=False)
    corrected = record.is_corrected(paths.mask)
    candidate = replace(
        fewshot.candidate,
        agreement=record.agreement,
        trained_before=record.trained,
        has_liver=bool(read_mask_of(replace(query, mask=paths.mask)).array_zyx.any())
        if corrected
        else record.volume_ml > 0,
        manually_corrected=fewshot.candidate.manually_corrected or corrected,
    )
    return PseudoLabel(query, paths, candidate, has_mask=True)


def select(
    round_dir: RoundDir, labels: Sequence[PseudoLabel], options: RetrainOptions
) -> tuple[ImageFile, ...]:
    """Choose, write the training masks, and return what trains beside the reference masks.

    A selection that was made from the same labels is kept. If they have changed, by hand for
    instance, whatever the round had made of them, and the rounds after it, is moved aside; masks in
    there that a person has corrected stand in the new rounds too.

    Raises
    ------
    InputError, OutputError
        A pseudo label cannot be read, or a training mask not be written.
    """
    candidates = [label.candidate for label in labels]
    if options.method == "online":
        choices = choose_online(candidates)
    elif options.reference_masks_first and round_dir.number == 1:
        choices = none_of(candidates)
    else:
        choices = choose(candidates, agreement_needed=options.agreement_needed)
    key = key_of(
        [
            options.ignore_above,
            [(choice.name, choice.trains) for choice in choices],
            [(label.key, label.candidate.manually_corrected) for label in labels],
            *([choice.fewshot_weight for choice in choices] if options.method == "online" else []),
        ]
    )
    selection = _earlier(round_dir, key)
    if selection is None:
        _move_rounds_aside(round_dir, labels)
        trained = tuple(
            _with_training_mask(round_dir, label, choice, options) if choice.trains else choice
            for label, choice in zip(labels, choices, strict=True)
        )
        selection = Selection(key, trained)
        write_record(round_dir.selection, selection)
        logger.info(
            "round %d: %d of %d pseudo labels train",
            round_dir.number,
            len(selection.trained),
            len(labels),
        )
    return tuple(
        replace(label.query, mask=_training_mask_path(round_dir, label.query), pseudo=True)
        for label in labels
        if label.query.name in selection.trained
    )


def _earlier(round_dir: RoundDir, key: str) -> Selection | None:
    """Return the selection that was made from the same labels."""
    found = read_record_or_none(round_dir.selection, Selection)
    return found if found is not None and found.key == key else None


def _move_rounds_aside(round_dir: RoundDir, labels: Sequence[PseudoLabel]) -> None:
    """Move a round aside, and the later ones, which came from it; raises OutputError."""
    # The last goes first: a kill in between leaves no gap, behind which none would be found.
    for outdated in (*reversed(WorkDir(round_dir.path.parent).rounds_after(round_dir)), round_dir):
        if not outdated.selection.is_file():
            continue
        path = move_aside(outdated.path, why="the labels that it starts from have changed")
        moved = RoundDir(path, outdated.number)
        for label in labels:
            _carry_correction(moved, outdated, label.query)


def _carry_correction(old: RoundDir, new: RoundDir, query: ImageFile) -> None:
    """Copy a new mask that a person has corrected, with its record, from one folder to another."""
    source, target = (pseudo_label_paths(one.relabelled, query) for one in (old, new))
    record = read_relabel_record(source.record)
    if record is None or not record.is_corrected(source.mask):
        return
    for name in ("mask", "uncertainty"):
        write_bytes_atomic(getattr(target, name), getattr(source, name).read_bytes())
    write_record(target.record, replace(record, manually_corrected=True))


def _training_mask_path(round_dir: RoundDir, query: ImageFile) -> Path:
    return round_dir.training_masks / query.case / f"{query.sequence_or_volume}_train.nii.gz"


def _with_training_mask(
    round_dir: RoundDir, label: PseudoLabel, choice: Choice, options: RetrainOptions
) -> Choice:
    """Write what a pseudo label trains on; one that is uncertain all over does not train after all.

    nnU-Net can't train on an image without a voxel of liver.
    """
    mask = read_mask_of(replace(label.query, mask=label.paths.mask))
    # A map may well be constant, which no image may be.
    uncertainty_zyx = read_stored(label.paths.uncertainty).array_zyx.astype(np.float32)
    if label.candidate.manually_corrected or choice.fewshot_weight == 0:
        uncertainty_zyx = np.zeros_like(uncertainty_zyx)
    labels = training_labels(mask.array_zyx, uncertainty_zyx, ignore_above=options.ignore_above)
    if not (labels == LIVER).any():
        return replace(choice, trains=False, reason="uncertain all over: waits for another round")
    write_labels(labels, like=mask, path=_training_mask_path(round_dir, label.query))
    ignored = round(float(np.isin(labels, (IGNORE, UNSURE_LIVER)).mean()), 5)
    return replace(choice, ignored=ignored)
