"""Last stage of a round: its networks relabel every unlabelled image, out of fold.

No network labels an image that it was trained on, because it would repeat its label. An image that
trained is predicted by the one fold that left its patient out. An image that waits is predicted by
all folds: their agreement decides whether it may train, and their mean is the prediction, without
those folds that trained on another sequence of the patient.

The new mask combines two branches with independent errors: the probabilities of the networks and of
the few-shot branch are averaged, weighted by their Dice on reference masks that they had not seen.
For sequences without reference masks, both have the same weight. Where the two contradict each
other, the next round does not train. A mask that a person has corrected is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sslmedsam2.contract.names import identity_key
from sslmedsam2.contract.pseudo_label_outputs import PseudoLabelPaths, pseudo_label_paths
from sslmedsam2.errors import ModelError, OutputError, SslMedSam2Error, unforeseen
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import Executor, ThisProcess, Work, map_units
from sslmedsam2.imaging.intensity import entropy_bits
from sslmedsam2.imaging.orientation import apply_reorientation, to_native
from sslmedsam2.imaging.reading import read_mask, read_stored, read_volume
from sslmedsam2.imaging.records import key_of, read_record_or_none, sha256_file, write_record
from sslmedsam2.imaging.volume import mask_dice, mask_volume_ml
from sslmedsam2.imaging.writing import write_map, write_mask
from sslmedsam2.inference.device import Device, choose_device
from sslmedsam2.inference.masks import make_ready
from sslmedsam2.inference.postprocessing import keep_liver
from sslmedsam2.inference.segmenter import CanonicalSegmenter
from sslmedsam2.nnunet.training import final_checkpoint, trained_model_dir
from sslmedsam2.pseudo_label.records import make_way
from sslmedsam2.reporting.previews import draw_preview
from sslmedsam2.retrain.index import Index
from sslmedsam2.retrain.select import PseudoLabel
from sslmedsam2.retrain.state import RelabelRecord, RetrainOptions, RoundDir, WorkDir
from sslmedsam2.retrain.train_round import fold_cases, has_reference_masks
from sslmedsam2.train.fold_scores import load_folds

logger = logging.getLogger(__name__)

_NEARLY_ALL: Final = 0.8
"""If this share of the unlabelled images fails, the round is given up."""
_WEIGHT_ACROSS_SEQUENCES: Final = 0.5
"""Weight of the few-shot branch for sequences without reference masks. With labels in CT alone,
both branches had the same Dice on T2 (0.81 and 0.80, ``benchmarks/EARLIER_RESULTS.md``)."""
_CONTRADICTION: Final = 0.5
"""A voxel is uncertain if the two probabilities differ by this much, whatever their mean."""


def relabel_round(
    round_dir: RoundDir,
    index: Index,
    *,
    before: Sequence[PseudoLabel],
    options: RetrainOptions,
    trained: frozenset[str],
    fewshot_weight: float,
    stop: StopRequest,
    executor: Executor | None = None,
) -> tuple[RelabelRecord, ...] | None:
    """Relabel the unlabelled images; those that an earlier run finished are kept.

    Parameters
    ----------
    before
        The newest pseudo labels so far, in the order of the index's queries.
    trained
        Names of the queries that the round's networks have trained on, see `ever_trained`.
    fewshot_weight
        Weight of the few-shot branch in the new masks, 0 to 1; the networks have the rest. It
        follows from reference masks, and applies to images of their sequences.

    Returns None if it was stopped.

    Raises
    ------
    ModelError
        A network cannot be read.
    OutputError
        The new masks cannot be written.
    SslMedSam2Error
        Most images failed, or no worker of a cluster could do one of them; the others are done.
    """
    units = _units(
        round_dir, index, before, options, trained=trained, fewshot_weight=fewshot_weight
    )
    found = {unit.label.query.name: _kept(unit.paths, unit.blank.key) for unit in units}
    pending = [unit for unit in units if found[unit.label.query.name] is None]
    if pending:
        work = RelabelWork(round_dir, options.device)
        done = map_units(work, pending, stop=stop, executor=executor or ThisProcess())
        found |= {unit.label.query.name: record for unit, record in done}
    if stop:
        return None
    records = tuple(record for record in found.values() if record is not None)
    refuse_if_nearly_all_failed(round_dir.relabelled, [record.error for record in records])
    return records


def _units(
    round_dir: RoundDir,
    index: Index,
    before: Sequence[PseudoLabel],
    options: RetrainOptions,
    *,
    trained: frozenset[str],
    fewshot_weight: float,
) -> list[RelabelUnit]:
    """Return for each image which folds predict it and what its new mask is made of."""
    sha256 = [sha256_file(final_checkpoint(round_dir.path, k)) for k in range(options.folds)]
    held_out_cases = fold_cases(index, n_folds=options.folds)
    known = {identity_key(image.case) for image in index.labelled}
    known |= {identity_key(query.case) for query in index.queries if query.name in trained}
    fewshot_dir = WorkDir(options.work_dir).pseudo_labels
    units = []
    for label in before:
        query, corrected = label.query, label.candidate.manually_corrected
        [own] = (fold for fold, held_out in enumerate(held_out_cases) if query.case in held_out)
        folds = (own,) if query.name in trained else tuple(range(options.folds))
        members = (own,) if identity_key(query.case) in known else folds
        fewshot_file, weight = pseudo_label_paths(fewshot_dir, query).probability, 0.0
        if corrected:
            fewshot_file, weight = label.paths.mask, 1.0
        elif label.candidate.verdict in ("accept", "doubtful"):
            known_sequence = has_reference_masks(query, index)
            weight = fewshot_weight if known_sequence else _WEIGHT_ACROSS_SEQUENCES
        key = key_of(
            [
                *(query.sha256, [sha256[fold] for fold in folds], members, weight),
                label.key if corrected else None,
            ]
        )
        blank = RelabelRecord(
            query.case,
            query.sequence,
            key,
            folds,
            trained=query.name in trained,
            fewshot_weight=weight,
            manually_corrected=corrected,
        )
        paths = pseudo_label_paths(round_dir.relabelled, query)
        units.append(RelabelUnit(blank, label, paths, members, fewshot_file))
    return units


def refuse_if_nearly_all_failed(folder: Path, errors: Sequence[str | None]) -> None:
    """Raise :class:`SslMedSam2Error` if so few images were labelled that a round means nothing."""
    failed = [error for error in errors if error is not None]
    if failed and len(failed) >= _NEARLY_ALL * len(errors):
        raise SslMedSam2Error(
            folder,
            reason=f"{len(failed)} of {len(errors)} images failed; the first: {failed[0]}",
            remedy="Remove the cause and run the same command again: what was done is kept",
        )


@dataclass(frozen=True)
class RelabelUnit:
    """One unlabelled image, and what its new mask is made of.

    Attributes
    ----------
    blank
        The record of the new mask before it is made: which folds predict, for instance.
    paths
        The files of the new mask.
    members
        The folds whose probabilities are averaged.
    fewshot_probability
        Probability file of the few-shot branch, or the newest mask if a person corrected it.
    """

    blank: RelabelRecord
    label: PseudoLabel
    paths: PseudoLabelPaths
    members: tuple[int, ...]
    fewshot_probability: Path


class RelabelWork(Work[RelabelUnit, RelabelRecord]):
    """Relabel images by a round's networks, each loaded for the first image that needs it."""

    def __init__(self, round_dir: RoundDir, device: Device) -> None:
        self.shared_dir, self.wants_gpu = round_dir.path, device != "cpu"
        self._round_dir, self._device = round_dir, device
        self._networks: dict[int, CanonicalSegmenter] = {}

    def name_of(self, unit: RelabelUnit) -> str:
        """Return the image's name."""
        return unit.label.query.name

    def files_of(self, unit: RelabelUnit) -> Sequence[Path]:
        """Return the image."""
        return (unit.label.query.path,)

    def set_up(self) -> str:
        """Return the device; raises UsageError."""
        return choose_device(self._device)

    def compute(self, unit: RelabelUnit, _stop: StopRequest) -> tuple[RelabelUnit, RelabelRecord]:
        """Predict, fuse and write one image."""
        model_dir = trained_model_dir(self._round_dir.path)
        for fold in unit.blank.folds:
            if fold not in self._networks:
                self._networks[fold] = load_folds(model_dir, folds=[fold], device=self._device)
        return unit, _relabel(unit, {fold: self._networks[fold] for fold in unit.blank.folds})

    def finish(self, done: tuple[RelabelUnit, RelabelRecord]) -> RelabelRecord:
        """Write the record, the last file of an image."""
        unit, record = done
        write_record(unit.paths.record, record)
        if record.error is not None:
            logger.error(record.error)
            return record
        logger.info("round %d: %s re-predicted", self._round_dir.number, unit.label.query.name)
        return record

    def close(self) -> None:
        """Free the networks."""
        self._networks.clear()


def _kept(paths: PseudoLabelPaths, key: str) -> RelabelRecord | None:
    """Return the record of a mask to keep: one with the same key, or corrected by a person."""
    record = read_record_or_none(paths.record, RelabelRecord)
    if record is None or record.error is not None:
        return None
    if record.key == key or record.is_corrected(paths.mask):
        return record if paths.mask.is_file() else None
    return None


def _relabel(unit: RelabelUnit, networks: Mapping[int, CanonicalSegmenter]) -> RelabelRecord:
    """Predict, fuse and write one image; an error is stored in its record.

    Raises OutputError: a file cannot be written.
    """
    before = read_record_or_none(unit.paths.record, RelabelRecord)
    make_way(unit.paths, mask_sha256=before.mask_sha256 if before is not None else None)
    try:
        return _written(unit, networks)
    except OutputError:
        # A mask without a record would look like one that a person made.
        with suppress(OSError):
            unit.paths.mask.unlink(missing_ok=True)
        raise
    except ModelError as error:
        return replace(unit.blank, error=str(error.about(unit.label.query.name)))
    except Exception as error:
        return replace(unit.blank, error=str(unforeseen(unit.label.query.path, error)))


def _written(unit: RelabelUnit, networks: Mapping[int, CanonicalSegmenter]) -> RelabelRecord:
    blank, label, paths = unit.blank, unit.label, unit.paths
    volume = read_volume(label.query.path)
    ready = make_ready(volume)
    found = {
        fold: network.segment(ready.canonical, with_probability=True)
        for fold, network in networks.items()
    }
    maps = [found[fold].probability_zyx for fold in unit.members]
    probability: npt.NDArray[np.float32] = np.stack(maps).mean(axis=0)  # type: ignore[arg-type]
    turn = ready.canonical.reorientation
    fewshot = probability
    if blank.fewshot_weight > 0:
        # Not read_volume, which refuses an image of one value: a probability may be constant.
        stored = read_stored(unit.fewshot_probability).array_zyx.astype(np.float32)
        fewshot = apply_reorientation(stored, turn)
    probability, uncertainty = fused(probability, fewshot, weight=blank.fewshot_weight)
    mask = np.asarray(probability > 0.5, dtype=np.uint8)
    if not blank.manually_corrected:
        mask = keep_liver(mask).mask_zyx
    native = to_native(mask, turn)
    write_mask(native, like=volume, path=paths.mask)
    write_map(to_native(uncertainty, turn), like=volume, path=paths.uncertainty)
    pairs = [mask_dice(a.mask_zyx > 0, b.mask_zyx > 0) for a, b in combinations(found.values(), 2)]
    record = replace(
        blank,
        agreement=round(float(np.mean(pairs)), 4) if pairs else None,
        change_dice=_change(label, native),
        volume_ml=round(mask_volume_ml(mask, spacing_zyx_mm=ready.canonical.spacing_zyx_mm), 1),
        mean_confidence=round(float(probability[mask > 0].mean()), 4) if mask.any() else None,
        mask_sha256=sha256_file(paths.mask),
    )
    change = record.change_dice
    flags = () if change is None else (f"DICE TO LAST {change:.3f}",)
    draw_preview(ready.canonical, mask, path=paths.preview, title=label.query.name, flags=flags)
    return record


def fused(
    network_zyx: npt.NDArray[np.float32], fewshot_zyx: npt.NDArray[np.float32], *, weight: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the mean of two probability maps, and its uncertainty in bits, 0 to 1.

    ``weight`` is that of the few-shot branch. Voxels in which the two contradict each other are as
    uncertain as can be, whatever their mean is; unless one of the two counts alone.
    """
    difference = fewshot_zyx - network_zyx
    probability = network_zyx + np.float32(weight) * difference
    uncertainty = entropy_bits(probability)
    if 0 < weight < 1:
        uncertainty[np.abs(difference) > _CONTRADICTION] = 1.0
    return probability, uncertainty


def _change(label: PseudoLabel, mask_zyx: npt.NDArray[np.uint8]) -> float | None:
    if not label.has_mask:
        return None
    return round(mask_dice(read_mask(label.paths.mask).array_zyx > 0, mask_zyx > 0), 4)
