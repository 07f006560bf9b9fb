"""``train``: from labelled volumes to cross-validation scores and frozen weights.

The folds of a cross-validation are trained first and scored on the cases they were not trained on.
Then one network is trained on all cases, starting from the first fold, and frozen. The scores are
those of the folds: the final network has no unseen case.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sslmedsam2.contract import names
from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.contract.sequence_map import SequenceMap
from sslmedsam2.errors import InputError, UsageError
from sslmedsam2.execution.interrupt import StopRequest, stop_on_signals
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.labelled import check_labelled
from sslmedsam2.imaging.records import read_record_or_none, sha256_file, utc_date, write_record
from sslmedsam2.inference.device import Device, choose_device
from sslmedsam2.inference.second_view import SURE_FROM
from sslmedsam2.nnunet.dataset import (
    Sampling,
    alternating_splits,
    build_dataset,
    case_key,
    read_plans,
    write_sampling,
    write_splits,
)
from sslmedsam2.nnunet.plans import PLANS_NAME, CompactPreset, Preset, planned_network
from sslmedsam2.nnunet.trainer import TrainingSettings
from sslmedsam2.nnunet.training import (
    Fold,
    check_gpus,
    final_checkpoint,
    preprocessed_dir,
    train_fold,
    trained_model_dir,
    worth_measuring,
)
from sslmedsam2.train.calibration import (
    LEAST_PATIENTS,
    Observation,
    add_calibration,
    fit_if_enough,
    observe_images,
)
from sslmedsam2.train.fold_scores import FoldScore, load_folds, score_fold
from sslmedsam2.weights.freeze import check_freezable, freeze_model
from sslmedsam2.weights.manifest import ANY_SEQUENCE, ModelCard
from sslmedsam2.weights.model_files import PLANS_FILE

logger = logging.getLogger(__name__)

FINAL_FOLD = "all"

_MANY_CONTRASTS = 0.3
"""With this share of patches in a random contrast, a network knows scans of inverted contrast."""


@dataclass(frozen=True)
class TrainOptions:
    """What ``train`` is asked to do.

    Attributes
    ----------
    data_dir
        Case folders with ``<SEQ>.nii.gz``, ``mask_<SEQ>.nii.gz`` and, optionally,
        ``organs_<SEQ>.nii.gz``.
    also_dirs
        More labelled data of the same layout, used for training in every fold and never scored.
    share
        Share of patches from ``data_dir`` if there are ``also_dirs``.
    folds
        Cross-validation folds, at least 2; 0 trains the final network only.
    epochs, final_epochs
        Length of each fold and of the final network.
    start
        Initial checkpoint of every fold, of the same plans and trained on none of these data.
    warm_start
        Initial checkpoint of the final network, of the same plans; None for that of the first fold.
    weights_dir
        Where to freeze the final network under ``name``; None to leave it in ``work_dir``.
    contrast_probability
        Share of patches with a random contrast: high for a network that has to serve sequences
        without labels, low for best accuracy on those with labels.
    learning_rate
        Initial value; it falls to zero over the training. A lower one preserves more of a warm
        start.
    deterministic
        Give the same weights each time on the same hardware, which is slower.
    gpus
        Number of GPUs for each training.
    preset
        Size of the network and of its patches.
    label
        The value of the liver in the masks; None for their only foreground value.
    sequence_map
        Sequences of files by the user; takes precedence over names.
    """

    data_dir: Path
    work_dir: Path
    also_dirs: tuple[Path, ...] = ()
    share: float = 0.75
    folds: int = 2
    epochs: int = 28
    final_epochs: int = 18
    iterations_per_epoch: int = 50
    contrast_probability: float = 0.7
    learning_rate: float = 1e-3
    device: Device = "cpu"
    deterministic: bool = False
    gpus: int = 1
    start: Path | None = None
    warm_start: Path | None = None
    weights_dir: Path | None = None
    name: str = "liver"
    training_data: str = "not stated"
    licence: str = "not stated"
    preset: Preset = field(default_factory=CompactPreset)
    label: int | None = None
    sequence_map: SequenceMap = field(default_factory=SequenceMap)


@dataclass(frozen=True)
class FoldRecord:
    """What decides a fold's weights besides its data: ``training.json`` beside its checkpoint.

    Attributes
    ----------
    start_sha256
        Of the checkpoint that it starts from; None for random weights.
    """

    settings: TrainingSettings
    start_sha256: str | None = None


@dataclass(frozen=True)
class FoldOutcome:
    """Scores and observations of a fold: ``scores.json`` beside its checkpoint."""

    checkpoint_sha256: str
    scores: tuple[FoldScore, ...]
    observations: tuple[Observation, ...]


def train(options: TrainOptions) -> tuple[FoldScore, ...] | None:
    """Train, score and freeze; another call keeps the parts that are finished.

    Returns the cross-validation scores, which are also written to
    ``work_dir/cross_validation.json``; None if a signal stopped it, after the epoch or the image in
    progress.

    Raises
    ------
    UsageError
        Too few labelled cases for ``folds``, a missing device or too few GPUs, or ``work_dir``
        holds a training on other data or folds, or with other settings.
    InputError, ModelError
        See :mod:`sslmedsam2.nnunet` and :mod:`sslmedsam2.weights`.
    """
    options = replace(options, device=choose_device(options.device))
    if options.weights_dir is not None:
        check_freezable(options.weights_dir, name=options.name, sequences=(ANY_SEQUENCE,))
    images, also, splits = _prepare(options)
    settings = TrainingSettings(
        epochs=options.epochs,
        iterations_per_epoch=options.iterations_per_epoch,
        contrast_probability=options.contrast_probability,
        learning_rate=options.learning_rate,
        measure_cpu=worth_measuring(options.epochs * options.iterations_per_epoch),
        deterministic=options.deterministic,
    )
    final_settings = replace(
        settings,
        epochs=options.final_epochs,
        measure_cpu=worth_measuring(options.final_epochs * options.iterations_per_epoch),
    )
    start_of_final = options.warm_start or options.start
    if options.warm_start is None and options.folds:
        start_of_final = final_checkpoint(options.work_dir, 0)
    with stop_on_signals() as stop:
        for fold in range(options.folds):
            if not _is_trained(fold, settings, options, start=options.start, stop=stop):
                return None
        outcomes = _cross_validate(images, splits=splits, options=options, stop=stop)
        if outcomes is None:
            return None
        scores = tuple(score for outcome in outcomes for score in outcome.scores)
        write_record(options.work_dir / "cross_validation.json", scores)
        if stop or not _is_trained(
            FINAL_FOLD, final_settings, options, start=start_of_final, stop=stop
        ):
            return None
    if options.weights_dir is not None:
        _freeze(options, scores=scores, n_images=len(images) + len(also))
        observations = [one for outcome in outcomes for one in outcome.observations]
        calibration = fit_if_enough(observations, sure_from=_sure_from(options))
        if calibration is not None:
            add_calibration(options.weights_dir / options.name, calibration, folds=(FINAL_FOLD,))
    return scores


def _prepare(
    options: TrainOptions,
) -> tuple[Sequence[ImageFile], Sequence[ImageFile], list[dict[str, list[str]]]]:
    """Write nnU-Net's data set; return the images, those of ``also_dirs``, and the splits."""
    images = _training_images(options)
    also = [image for folder in options.also_dirs for image in _find(options, folder)]
    options.sequence_map.warn_of_unused(options.data_dir, *options.also_dirs)
    _check_patients(images, also, are_scored=options.folds > 0)
    preprocessed = preprocessed_dir(options.work_dir)
    if not preprocessed.exists():
        check_labelled([*images, *also])
    folder = build_dataset([*images, *also], preprocessed_dir=preprocessed, preset=options.preset)
    planned = planned_network(read_plans(folder / f"{PLANS_NAME}.json"))
    check_gpus(options.gpus, device=options.device, batch_size=planned.batch_size)
    splits = alternating_splits(
        images, n_folds=options.folds, others=also, identity=names.identity_key
    )
    if splits:
        write_splits(folder, splits)
    if also:
        write_sampling(folder, Sampling(tuple(map(case_key, images)), options.share))
    return images, also, splits


def _is_trained(
    fold: Fold,
    settings: TrainingSettings,
    options: TrainOptions,
    *,
    start: Path | None,
    stop: StopRequest,
) -> bool:
    """Train a fold; False if it was stopped, UsageError if it was begun with other settings."""
    _refuse_other_settings(fold, settings, options.work_dir, start=start)
    trained = train_fold(
        options.work_dir,
        fold=fold,
        settings=settings,
        device=options.device,
        warm_start=start,
        gpus=options.gpus,
        stop=stop,
    )
    return trained is not None


def _refuse_other_settings(
    fold: Fold, settings: TrainingSettings, work_dir: Path, *, start: Path | None
) -> None:
    """Write the record of a fold that begins; UsageError for other settings than it records."""
    path = final_checkpoint(work_dir, fold).with_name("training.json")
    asked = FoldRecord(settings, sha256_file(start) if start is not None else None)
    begun = read_record_or_none(path, FoldRecord)
    if begun is None:
        write_record(path, asked)
        return
    before = {**vars(begun.settings), "start": begun.start_sha256}
    now = {**vars(asked.settings), "start": asked.start_sha256}
    changed = [
        f"{name} was {before[name]}, is {now[name]}" for name in before if before[name] != now[name]
    ]
    if changed:
        raise UsageError(
            path.parent,
            reason=f"fold {fold} was begun with other settings ({'; '.join(changed)})",
            remedy="Give the same options to go on, or another --work-dir",
        )


def _sure_from(options: TrainOptions) -> float:
    """Return the expected Dice below which the network also segments the inverted scan."""
    return SURE_FROM if options.contrast_probability >= _MANY_CONTRASTS else 0.0


def _training_images(options: TrainOptions) -> tuple[ImageFile, ...]:
    images = _find(options, options.data_dir)
    n_cases = _n_patients(images)
    if options.folds == 1:
        raise UsageError(
            "--folds 1",
            reason="one fold leaves nothing to train on",
            remedy="Give 2 or more, or 0 for no cross-validation",
        )
    if options.folds and n_cases < 2 * options.folds:
        raise UsageError(
            options.data_dir,
            reason=f"{n_cases} labelled case(s) are too few for {options.folds} folds",
            remedy=f"Give {2 * options.folds} at least (case folders with <SEQ>.nii.gz and"
            " mask_<SEQ>.nii.gz), or fewer --folds; 0 for no cross-validation",
        )
    return images


def _n_patients(images: Sequence[ImageFile]) -> int:
    return len({names.identity_key(image.case) for image in images})


def _check_patients(
    images: Sequence[ImageFile], also: Sequence[ImageFile], *, are_scored: bool
) -> None:
    """Refuse a patient of ``--also`` who is used for validation, and two images of one name."""
    scored = {names.identity_key(image.case) for image in images if are_scored}
    keys = {names.identity_key(case_key(image)) for image in images}
    for image in also:
        key = names.identity_key(case_key(image))
        reason = None
        if names.identity_key(image.case) in scored:
            reason = (
                f"case {image.case} is in --data as well, so a fold would be scored on a patient"
                " that it trains on"
            )
        elif key in keys:
            reason = f"case {image.case} is in --data or in another --also as well"
        if reason is not None:
            raise InputError(
                image.path,
                kind="duplicate_case",
                reason=reason,
                remedy="Rename the case, or give the patient once",
            )
        keys.add(key)


def _find(options: TrainOptions, folder: Path) -> tuple[ImageFile, ...]:
    return find_labelled_series(folder, label=options.label, sequence_map=options.sequence_map)


def _cross_validate(
    images: Sequence[ImageFile],
    *,
    splits: Sequence[dict[str, list[str]]],
    options: TrainOptions,
    stop: StopRequest,
) -> list[FoldOutcome] | None:
    """Score each fold and, if there are enough patients to calibrate, observe degraded copies.

    Outcomes of an earlier call are kept. Returns None if it was stopped.
    """
    is_calibrated = options.weights_dir is not None and _n_patients(images) >= LEAST_PATIENTS
    by_key = {case_key(image): image for image in images}
    outcomes: list[FoldOutcome] = []
    for fold, split in enumerate(splits):
        checkpoint = final_checkpoint(options.work_dir, fold)
        path, sha256 = checkpoint.with_name("scores.json"), sha256_file(checkpoint)
        outcome = read_record_or_none(path, FoldOutcome)
        if (
            outcome is None
            or outcome.checkpoint_sha256 != sha256
            or (is_calibrated and not outcome.observations)
        ):
            segmenter = load_folds(
                trained_model_dir(options.work_dir),
                folds=[fold],
                device=options.device,
                sure_from=_sure_from(options),
            )
            scores: list[FoldScore] = []
            observations: list[Observation] = []
            for key in split["val"]:
                if stop:
                    return None
                scores += score_fold([by_key[key]], segmenter=segmenter, fold=fold)
                if is_calibrated:
                    observations += observe_images([by_key[key]], segmenter=segmenter)
            outcome = FoldOutcome(sha256, tuple(scores), tuple(observations))
            write_record(path, outcome)
        outcomes.append(outcome)
    return outcomes


def _freeze(options: TrainOptions, *, scores: Sequence[FoldScore], n_images: int) -> None:
    assert options.weights_dir is not None
    measured = {}
    if scores:
        measured = {
            "cross_validation_cases": float(len(scores)),
            "cross_validation_dice": float(np.mean([score.dice for score in scores])),
            "cross_validation_hausdorff_mm": float(np.mean([s.hausdorff_mm for s in scores])),
        }
    network = planned_network(read_plans(trained_model_dir(options.work_dir) / PLANS_FILE))
    recipe = (
        f"sslmedsam2 train: voxels of {_by(network.spacing_zyx_mm)} mm, patches of "
        f"{_by(network.patch_zyx)}, {n_images} labelled images, {options.folds} folds of "
        f"{options.epochs} epochs, final network of {options.final_epochs} epochs, "
        f"{options.iterations_per_epoch} iterations each"
    )
    freeze_model(
        trained_model_dir(options.work_dir),
        options.weights_dir,
        name=options.name,
        sequences=(ANY_SEQUENCE,),
        folds=(FINAL_FOLD,),
        half=True,
        card=ModelCard(
            training_data=options.training_data,
            recipe=recipe,
            licence=options.licence,
            created=utc_date(),
            measured={name: round(value, 4) for name, value in measured.items()},
        ),
    )


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
