"""First stage of a round: which pseudo labels train, which voxels are ignored, the training masks.

A curriculum, as in ST++ (Yang et al. 2022, arXiv:2106.05095): accepted pseudo labels train first;
doubtful ones train only after networks that did not train on the scan agree on it; rejected ones
never train. Uncertain voxels get nnU-Net's ignore label.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sslmedsam2.contract.pseudo_label_outputs import (
    CALIBRATION_NAME,
    PseudoLabelPaths,
    pseudo_label_paths,
)
from sslmedsam2.fewshot.strategy import Verdict
from sslmedsam2.imaging.atomic import write_bytes_atomic
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.labelled import read_mask_of
from sslmedsam2.imaging.reading import read_stored
from sslmedsam2.imaging.records import (
    key_of,
    move_aside,
    read_record_or_none,
    sha256_file,
    write_record,
)
from sslmedsam2.imaging.writing import write_labels
from sslmedsam2.nnunet.plans import BACKGROUND, IGNORE, LIVER, UNSURE_LIVER
from sslmedsam2.pseudo_label.records import CalibrationRun, PseudoLabelRecord, is_edited
from sslmedsam2.retrain.state import RelabelRecord, RetrainOptions, RoundDir, WorkDir, read_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A pseudo label that may be trained on.

    Attributes
    ----------
    verdict
        The verdict of the few-shot branch; None if it could not label the image.
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
        Of the few-shot branch's mask, by its calibration; None if unknown.
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
        Share of voxels that the loss ignores.
    fewshot_weight
        With the method ``online``, the initial weight of its mask against the network's
        prediction, 0 to 1; None if only the mask is learned.
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


def choose(candidate: Candidate, *, agreement_needed: float) -> Choice:
    """Decide whether a candidate trains in a round."""
    trains, reason = _decide(candidate, agreement_needed)
    return Choice(candidate.name, trains, reason)


def choose_online(candidate: Candidate) -> Choice:
    """Decide whether a candidate takes part in an online training: all that have a mask do."""
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
    """Return training labels ``[z, y, x]``: the mask, with uncertain voxels set to be ignored.

    ``uncertainty_zyx`` is the binary entropy of the foreground probability in bits, 0 to 1.
    """
    inside, unsure = mask_zyx > 0, uncertainty_zyx > ignore_above
    labels = np.where(inside, np.uint8(LIVER), np.uint8(BACKGROUND))
    labels[unsure & inside] = UNSURE_LIVER
    labels[unsure & ~inside] = IGNORE
    return labels


@dataclass(frozen=True)
class PseudoLabel:
    """An unlabelled image with its newest mask.

    Attributes
    ----------
    paths
        Of mask and maps; the files exist if ``has_mask``.
    candidate
        Its data for the selection.
    """

    query: ImageFile
    paths: PseudoLabelPaths
    candidate: Candidate
    has_mask: bool

    @property
    def key(self) -> str | None:
        """Hash of the mask and its uncertainty, computed from the files; None without a mask."""
        if not self.has_mask:
            return None
        return sha256_file(self.paths.mask) + sha256_file(self.paths.uncertainty)


def fewshot_labels(work: WorkDir, queries: Sequence[ImageFile]) -> tuple[PseudoLabel, ...]:
    """Read the pseudo labels of the few-shot branch, in the order of ``queries``."""
    return tuple(_fewshot(work, query) for query in queries)


def fewshot_dice(work: WorkDir) -> float | None:
    """Return the leave-one-out mean Dice of the few-shot branch on reference masks.

    None if there is only one labelled patient, or the calibration cannot be read.
    """
    found = read_record_or_none(work.pseudo_labels / CALIBRATION_NAME, CalibrationRun)
    dices = [case.dice for case in found.cases] if found is not None else []
    return sum(dices) / len(dices) if dices else None


def _fewshot(work: WorkDir, query: ImageFile) -> PseudoLabel:
    paths = pseudo_label_paths(work.pseudo_labels, query)
    record = read_record_or_none(paths.record, PseudoLabelRecord)
    if record is None or record.verdict is None:
        return PseudoLabel(query, paths, Candidate(query.name, None), has_mask=False)
    if is_edited(paths.mask, record.mask_sha256):
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
    """Read the pseudo labels of a finished round, in the order of the few-shot branch's labels."""
    return tuple(_relabelled(round_dir, label) for label in fewshot)


def _relabelled(round_dir: RoundDir, fewshot: PseudoLabel) -> PseudoLabel:
    query, paths = fewshot.query, pseudo_label_paths(round_dir.relabelled, fewshot.query)
    record = read_record_or_none(paths.record, RelabelRecord)
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
    round_dir: RoundDir, labels: Sequence[PseudoLabel], *, options: RetrainOptions
) -> tuple[ImageFile, ...]:
    """Choose the pseudo labels that train, write their training masks and return them.

    An earlier selection from the same labels is kept. If a label has changed, for instance because
    a person corrected it, the round and all later ones are moved aside; masks in them that a person
    has corrected are copied to the new rounds.

    Raises InputError, OutputError: a pseudo label cannot be read, or a training mask not be
    written.
    """
    candidates = [label.candidate for label in labels]
    if options.method == "online":
        choices = [choose_online(one) for one in candidates]
    elif options.reference_masks_first and round_dir.number == 1:
        reason = "the first round learns from reference masks alone"
        choices = [Choice(one.name, False, reason) for one in candidates]
    else:
        choices = [choose(one, agreement_needed=options.agreement_needed) for one in candidates]
    key = key_of(
        [
            options.ignore_above,
            [(choice.name, choice.trains) for choice in choices],
            [(label.key, label.candidate.manually_corrected) for label in labels],
            *([choice.fewshot_weight for choice in choices] if options.method == "online" else []),
        ]
    )
    selection = read_record_or_none(round_dir.selection, Selection)
    if selection is None or selection.key != key:
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


def _move_rounds_aside(round_dir: RoundDir, labels: Sequence[PseudoLabel]) -> None:
    """Move a round and the later ones, which depend on it, aside; raises OutputError."""
    # The last goes first: after a kill in between, the rounds that are left have no gap.
    for outdated in (*reversed(WorkDir(round_dir.path.parent).rounds_after(round_dir)), round_dir):
        if not outdated.selection.is_file():
            continue
        path = move_aside(outdated.path, why="the labels that it starts from have changed")
        moved = RoundDir(path, outdated.number)
        for label in labels:
            _carry_correction(moved, outdated, label.query)


def _carry_correction(old: RoundDir, new: RoundDir, query: ImageFile) -> None:
    """Copy a new mask that a person has corrected, with its record, to another round."""
    source, target = (pseudo_label_paths(one.relabelled, query) for one in (old, new))
    record = read_record_or_none(source.record, RelabelRecord)
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
    """Write the training mask of a pseudo label.

    One without a certain voxel of liver does not train: nnU-Net cannot train on such an image.
    """
    mask = read_mask_of(replace(label.query, mask=label.paths.mask))
    # Not read_volume, which refuses an image of one value: a map may be constant.
    uncertainty_zyx = read_stored(label.paths.uncertainty).array_zyx.astype(np.float32)
    if label.candidate.manually_corrected or choice.fewshot_weight == 0:
        uncertainty_zyx = np.zeros_like(uncertainty_zyx)
    labels = training_labels(mask.array_zyx, uncertainty_zyx, ignore_above=options.ignore_above)
    if not (labels == LIVER).any():
        return replace(choice, trains=False, reason="uncertain all over: waits for another round")
    write_labels(labels, like=mask, path=_training_mask_path(round_dir, label.query))
    ignored = round(float(np.isin(labels, (IGNORE, UNSURE_LIVER)).mean()), 5)
    return replace(choice, ignored=ignored)


def ever_trained(round_dir: RoundDir, *, warm_start: bool) -> frozenset[str]:
    """Return the names of the queries that a round's networks have trained on.

    With ``warm_start`` that includes the queries of all earlier rounds. Raises UsageError.
    """
    first = 1 if warm_start else round_dir.number
    rounds = map(WorkDir(round_dir.path.parent).round, range(first, round_dir.number + 1))
    return frozenset().union(*(read_state(one.selection, Selection).trained for one in rounds))


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
