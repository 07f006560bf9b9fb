"""A round's last stage: its networks re-predict every unlabelled image, out of fold.

No network labels what it was trained on, which would only confirm it. An image that trained is
predicted by the one fold that left its patient out. One that waits was seen by none, so all folds
predict it: their agreement says whether it may come in, and their mean counts, unless some know the
patient from another sequence, whose voice then is not heard.

The new mask comes from two branches that err independently: the networks' probability and the
few-shot branch's are averaged, each weighted by what it is worth on expert masks it had not seen.
Where they contradict each other, the mean is uncertain, and the next round does not train there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sslmedsam2.contract.pseudo_labels import PseudoLabelPaths, pseudo_label_paths
from sslmedsam2.errors import SslMedSam2Error
from sslmedsam2.fewshot.outcome import entropy_bits, mask_dice
from sslmedsam2.imaging.orientation import apply_reorientation, to_native
from sslmedsam2.imaging.reading import read_mask, read_volume
from sslmedsam2.imaging.writing import write_map, write_mask
from sslmedsam2.inference.postprocessing import keep_liver
from sslmedsam2.pipelines.drawing import draw_preview
from sslmedsam2.pipelines.fold_scores import load_fold
from sslmedsam2.pipelines.interrupt import StopRequest
from sslmedsam2.pipelines.retraining.index import Index
from sslmedsam2.pipelines.retraining.labels import PseudoLabel
from sslmedsam2.pipelines.retraining.options import RetrainOptions
from sslmedsam2.pipelines.retraining.relabel_records import (
    RelabelRecord,
    read_relabel_record,
    write_relabel_record,
)
from sslmedsam2.pipelines.retraining.training import hands
from sslmedsam2.pipelines.retraining.work_dir import RoundDir, WorkDir, key_of
from sslmedsam2.pipelines.unforeseen import unforeseen
from sslmedsam2.pipelines.volume_work import make_ready
from sslmedsam2.refine.training import trained_model_dir
from sslmedsam2.weights.layout import checkpoint_file
from sslmedsam2.weights.manifest import sha256_file

if TYPE_CHECKING:
    from sslmedsam2.inference.segmenter import CanonicalSegmentation, CanonicalSegmenter

logger = logging.getLogger(__name__)


def relabel_round(
    step: RoundDir,
    index: Index,
    before: Sequence[PseudoLabel],
    options: RetrainOptions,
    *,
    trained: frozenset[str],
    fewshot_weight: float,
    stop: StopRequest,
) -> tuple[RelabelRecord, ...] | None:
    """Re-predict the unlabelled images in turn; what an earlier run finished is kept.

    Parameters
    ----------
    before
        The newest pseudo labels so far, in the order of the index's queries.
    trained
        Names of the queries that the round trained on.
    fewshot_weight
        Of the few-shot branch in the new masks, 0 to 1; the networks have the rest.

    Returns None if it was stopped on the way.

    Raises
    ------
    ModelError
        A network cannot be read.
    OutputError
        The new masks cannot be written.
    """
    model_dir = trained_model_dir(step.path)
    sha256 = [sha256_file(model_dir / checkpoint_file(str(k))) for k in range(options.folds)]
    dealt = hands(index, n_folds=options.folds)
    known = {image.case for image in index.labelled}
    known |= {query.case for query in index.queries if query.name in trained}
    fewshot_dir = WorkDir(options.work_dir).pseudo_labels
    networks: dict[int, CanonicalSegmenter] = {}
    records = []
    for label in before:
        if stop:
            return None
        own = next(fold for fold, hand in enumerate(dealt) if label.query.case in hand)
        folds = (own,) if label.query.name in trained else tuple(range(options.folds))
        weight = fewshot_weight if label.candidate.verdict in ("accept", "doubtful") else 0.0
        key = key_of([label.query.sha256, [sha256[fold] for fold in folds], weight])
        paths = pseudo_label_paths(step.relabelled, label.query.series)
        record = _kept(paths, key)
        if record is None:
            for fold in folds:
                if fold not in networks:
                    networks[fold] = load_fold(model_dir, fold=fold, device=options.device)
            blank = RelabelRecord(
                label.query.case,
                label.query.sequence,
                key,
                folds,
                trained=label.query.name in trained,
                fewshot_weight=weight,
            )
            fewshot = pseudo_label_paths(fewshot_dir, label.query.series).probability
            record = _relabel(
                blank,
                label,
                paths,
                _Sources(
                    {fold: networks[fold] for fold in folds},
                    (own,) if label.query.case in known else folds,
                    fewshot,
                ),
            )
            write_relabel_record(record, paths.record)
            logger.info("round %d: %s re-predicted", step.number, label.query.name)
        records.append(record)
    return tuple(records)


@dataclass(frozen=True)
class _Sources:
    """What a new mask is made of: networks by fold, those of them that are heard, and the file of
    the few-shot branch's probability."""

    networks: Mapping[int, CanonicalSegmenter]
    voices: tuple[int, ...]
    fewshot_probability: Path


def _kept(paths: PseudoLabelPaths, key: str) -> RelabelRecord | None:
    if not paths.record.is_file():
        return None
    record = read_relabel_record(paths.record)
    return record if record is not None and record.key == key else None


def _relabel(
    blank: RelabelRecord,
    label: PseudoLabel,
    paths: PseudoLabelPaths,
    sources: _Sources,
) -> RelabelRecord:
    """Predict, fuse and write one image; an error stays with the image."""
    try:
        return _written(blank, label, paths, sources)
    except SslMedSam2Error as error:
        return replace(blank, error=str(error))
    except Exception as error:
        return replace(blank, error=str(unforeseen(label.query.path, error)))


def _written(
    blank: RelabelRecord,
    label: PseudoLabel,
    paths: PseudoLabelPaths,
    sources: _Sources,
) -> RelabelRecord:
    volume = read_volume(label.query.path)
    ready = make_ready(volume)
    found = {
        fold: network.segment(ready.canonical, with_probability=True)
        for fold, network in sources.networks.items()
    }
    probability = _mean_probability([found[fold] for fold in sources.voices])
    turn = ready.canonical.reorientation
    if blank.fewshot_weight > 0:
        other = apply_reorientation(read_volume(sources.fewshot_probability).array_zyx, turn)
        probability += np.float32(blank.fewshot_weight) * (other - probability)
    mask = keep_liver(np.asarray(probability > 0.5, dtype=np.uint8)).mask_zyx
    native = to_native(mask, turn)
    write_mask(native, like=volume, path=paths.mask)
    write_map(to_native(entropy_bits(probability), turn), like=volume, path=paths.uncertainty)
    pairs = [mask_dice(a.mask_zyx > 0, b.mask_zyx > 0) for a, b in combinations(found.values(), 2)]
    record = replace(
        blank,
        agreement=round(float(np.mean(pairs)), 4) if pairs else None,
        change_dice=_change(label, native),
        volume_ml=round(
            float(mask.sum()) * float(np.prod(ready.canonical.spacing_zyx_mm)) / 1000, 1
        ),
        mean_confidence=round(float(probability[mask > 0].mean()), 4) if mask.any() else None,
    )
    draw_preview(
        ready.canonical, mask, path=paths.preview, title=label.query.name, flags=_flags(record)
    )
    return record


def _mean_probability(found: Sequence[CanonicalSegmentation]) -> npt.NDArray[np.float32]:
    maps = [one.probability_zyx for one in found if one.probability_zyx is not None]
    mean: npt.NDArray[np.float32] = np.stack(maps).mean(axis=0)
    return mean


def _flags(record: RelabelRecord) -> tuple[str, ...]:
    return () if record.change_dice is None else (f"DICE TO LAST {record.change_dice:.3f}",)


def _change(label: PseudoLabel, mask_zyx: npt.NDArray[np.uint8]) -> float | None:
    if label.key is None:
        return None
    return round(mask_dice(read_mask(label.paths.mask).array_zyx > 0, mask_zyx > 0), 4)
