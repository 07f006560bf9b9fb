"""A round's first stage: choose pseudo labels, and write the masks that it trains on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from sslmedsam2.contract.pseudo_labels import CALIBRATION_NAME, PseudoLabelPaths, pseudo_label_paths
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.reading import read_mask, read_volume
from sslmedsam2.imaging.writing import write_labels
from sslmedsam2.nnunet.labels import IGNORE, UNSURE_LIVER
from sslmedsam2.pseudo_label.records import read_pseudo_label
from sslmedsam2.retrain.options import RetrainOptions
from sslmedsam2.retrain.selection import Candidate, choose, none_of, training_labels
from sslmedsam2.retrain.state import (
    RoundDir,
    WorkDir,
    key_of,
    read_json,
    read_relabel_record,
    write_json,
)
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
    path = work.pseudo_labels / CALIBRATION_NAME
    cases = read_json(path)["cases"] if path.is_file() else []
    return sum(case["dice"] for case in cases) / len(cases) if cases else None


def _fewshot(work: WorkDir, query: ImageFile) -> PseudoLabel:
    paths = pseudo_label_paths(work.pseudo_labels, query)
    record = read_pseudo_label(paths.record)
    if record is None or record.verdict is None:
        return PseudoLabel(query, paths, Candidate(query.name, None), has_mask=False)
    if record.mask_sha256 is not None and sha256_file(paths.mask) != record.mask_sha256:
        has_liver = bool(read_mask(paths.mask).array_zyx.any())
        candidate = Candidate(
            query.name, record.verdict, has_liver=has_liver, manually_corrected=True
        )
    else:
        candidate = Candidate(query.name, record.verdict, has_liver=bool(record.volume_ml))
    return PseudoLabel(query, paths, candidate, has_mask=True)


def relabelled(round_dir: RoundDir, fewshot: Sequence[PseudoLabel]) -> tuple[PseudoLabel, ...]:
    """Read what a finished round's networks gave, in the order of the few-shot branch's labels."""
    return tuple(_relabelled(round_dir, label.query, label.candidate) for label in fewshot)


def _relabelled(round_dir: RoundDir, query: ImageFile, fewshot: Candidate) -> PseudoLabel:
    paths = pseudo_label_paths(round_dir.relabelled, query)
    record = read_relabel_record(paths.record) if paths.record.is_file() else None
    if record is None or record.error is not None:
        return PseudoLabel(query, paths, Candidate(query.name, None), has_mask=False)
    candidate = replace(
        fewshot,
        agreement=record.agreement,
        trained_before=record.trained,
        has_liver=record.volume_ml > 0,
    )
    return PseudoLabel(query, paths, candidate, has_mask=True)


def select(
    round_dir: RoundDir, labels: Sequence[PseudoLabel], options: RetrainOptions
) -> tuple[ImageFile, ...]:
    """Choose, write the training masks, and return what trains beside the reference masks.

    A selection that was made from the same labels is kept. If they have changed, by held_out for
    instance, whatever the round had made of them goes.

    Raises
    ------
    InputError, OutputError
        A pseudo label cannot be read, or a training mask not be written.
    """
    candidates = [label.candidate for label in labels]
    if options.experts_first and round_dir.number == 1:
        choices = none_of(candidates)
    else:
        choices = choose(candidates, agreement_needed=options.agreement_needed)
    chosen = [label for label, choice in zip(labels, choices, strict=True) if choice.trains]
    key = key_of(
        [
            options.ignore_above,
            [asdict(choice) for choice in choices],
            [label.key for label in labels],
        ]
    )
    if round_dir.selection.is_file() and read_json(round_dir.selection)["key"] == key:
        return tuple(_training_image(round_dir, label.query) for label in chosen)
    if round_dir.path.exists():
        logger.warning("%s is made anew: the labels it starts from have changed", round_dir.path)
    # Later rounds go too: they came from this one. The last goes first, so that a kill in between
    # leaves no gap, behind which none would be found.
    for outdated in (*reversed(WorkDir(round_dir.path.parent).rounds_after(round_dir)), round_dir):
        shutil.rmtree(outdated.path, ignore_errors=True)
    ignored = {
        label.query.name: _write_training_mask(round_dir, label, options) for label in chosen
    }
    write_json(
        round_dir.selection,
        {
            "key": key,
            "choices": [
                {**asdict(choice), "ignored": ignored.get(choice.name)} for choice in choices
            ],
        },
    )
    logger.info(
        "round %d: %d of %d pseudo labels train", round_dir.number, len(chosen), len(labels)
    )
    return tuple(_training_image(round_dir, label.query) for label in chosen)


def _training_image(round_dir: RoundDir, query: ImageFile) -> ImageFile:
    return replace(query, mask=_training_mask_path(round_dir, query), pseudo=True)


def _training_mask_path(round_dir: RoundDir, query: ImageFile) -> Path:
    return round_dir.training_masks / query.case / f"{query.sequence_or_volume}_train.nii.gz"


def _write_training_mask(round_dir: RoundDir, label: PseudoLabel, options: RetrainOptions) -> float:
    """Write what one pseudo label trains on, and return the share of voxels that are ignored."""
    mask = read_mask(label.paths.mask)
    uncertainty_zyx = read_volume(label.paths.uncertainty).array_zyx
    if label.candidate.manually_corrected:
        uncertainty_zyx = np.zeros_like(uncertainty_zyx)
    labels = training_labels(mask.array_zyx, uncertainty_zyx, ignore_above=options.ignore_above)
    write_labels(labels, like=mask, path=_training_mask_path(round_dir, label.query))
    return round(float(np.isin(labels, (IGNORE, UNSURE_LIVER)).mean()), 5)
