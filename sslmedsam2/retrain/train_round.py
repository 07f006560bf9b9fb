"""Training stages of a round: nnU-Net's data set, one network for each fold, and its scores."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from sslmedsam2.contract.names import identity_key
from sslmedsam2.errors import UsageError
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import Executor, ThisProcess, Work, map_units
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.records import read_record_or_none, sha256_file, write_record
from sslmedsam2.inference.device import choose_device
from sslmedsam2.nnunet.dataset import (
    Sampling,
    UnlabelledCase,
    build_dataset,
    case_key,
    make_plans,
    read_plans,
    split_cases,
    splits_of,
    write_sampling,
    write_splits,
    write_unlabelled,
)
from sslmedsam2.nnunet.online import OnlineSettings
from sslmedsam2.nnunet.plans import TRAINED_LABELS_WITH_IGNORE, planned_network
from sslmedsam2.nnunet.trainer import TrainingSettings
from sslmedsam2.nnunet.training import (
    check_gpus,
    final_checkpoint,
    preprocessed_dir,
    train_fold,
    trained_model_dir,
    worth_measuring,
)
from sslmedsam2.retrain.index import Index, read_index
from sslmedsam2.retrain.select import Selection, fewshot_dice
from sslmedsam2.retrain.state import RetrainOptions, RoundDir, WorkDir, read_state
from sslmedsam2.train.fold_scores import FoldScore, load_folds, score_fold

logger = logging.getLogger(__name__)

_FINISH: Final = 0.12
"""Share of an online training, at its end, on reference masks alone."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class FoldUnit:
    """A fold, and the images with reference masks that it never sees."""

    fold: int
    held_out: tuple[ImageFile, ...] = ()


@dataclass(frozen=True)
class RoundScore(FoldScore):
    """A score in ``validation.json``, and the hash of the checkpoint that has it.

    ``checkpoint_sha256`` is None in records of earlier versions.
    """

    checkpoint_sha256: str | None = None


FoldFunction = Callable[[RoundDir, RetrainOptions, FoldUnit, StopRequest], Result]


class FoldWork(Work[FoldUnit, Result]):
    """Call ``function``, which must be picklable, for each fold of a round."""

    whole_worker = True

    def __init__(
        self, round_dir: RoundDir, options: RetrainOptions, function: FoldFunction[Result]
    ) -> None:
        self.shared_dir, self.wants_gpu = round_dir.path, options.device != "cpu"
        self._round_dir, self._options, self._function = round_dir, options, function

    def name_of(self, unit: FoldUnit) -> str:
        """Return the fold's name."""
        return f"fold {unit.fold} of round {self._round_dir.number}"

    def files_of(self, unit: FoldUnit) -> Sequence[Path]:
        """Return the data set, and the images that are read besides."""
        return (preprocessed_dir(self.shared_dir), *(image.path for image in unit.held_out))

    def set_up(self) -> str:
        """Return the device; raises UsageError."""
        return choose_device(self._options.device)

    def compute(self, unit: FoldUnit, stop: StopRequest) -> Result:
        """Call the function, which reads and writes by itself."""
        return self._function(self._round_dir, self._options, unit, stop)


def fold_cases(index: Index, *, n_folds: int) -> tuple[frozenset[str], ...]:
    """Split all patients over folds; a fold never trains on its own held-out cases.

    Labelled patients are split first, so that each fold is scored on as many reference masks as the
    next. A patient with both labelled and unlabelled images belongs to one fold, however each
    folder spells the name.
    """
    spellings: dict[str, set[str]] = defaultdict(set)
    for image in (*index.labelled, *index.queries):
        spellings[identity_key(image.case)].add(image.case)
    labelled = {identity_key(image.case) for image in index.labelled}
    splits = zip(
        split_cases(labelled, n_folds=n_folds),
        split_cases(spellings.keys() - labelled, n_folds=n_folds),
        strict=True,
    )
    return tuple(
        frozenset(case for patient in mine | more for case in spellings[patient])
        for mine, more in splits
    )


def fold_units(index: Index, options: RetrainOptions) -> list[FoldUnit]:
    """Return all folds, each with the images with reference masks that it never sees."""
    return [
        FoldUnit(fold, tuple(image for image in index.labelled if image.case in held_out))
        for fold, held_out in enumerate(fold_cases(index, n_folds=options.folds))
    ]


def prepare_training(
    round_dir: RoundDir, index: Index, *, pseudo: Sequence[ImageFile], options: RetrainOptions
) -> None:
    """Write the round's data set and its splits; plans are made once and serve all rounds.

    Raises InputError, OutputError: an image cannot be read, or the data set not be written.
    """
    plans_path = WorkDir(options.work_dir).plans
    images = [*index.labelled, *pseudo]
    if not plans_path.is_file():
        write_record(plans_path, make_plans(images, options.preset))
    folder = build_dataset(
        images,
        preprocessed_dir=preprocessed_dir(round_dir.path),
        preset=options.preset,
        labels=TRAINED_LABELS_WITH_IGNORE,
        plans=read_plans(plans_path),
    )
    held_out = fold_cases(index, n_folds=options.folds)
    write_splits(folder, splits_of(held_out, index.labelled, others=pseudo))
    if options.method == "online":
        write_unlabelled(folder, _unlabelled_cases(round_dir, index, pseudo, options))
    elif pseudo:
        write_sampling(
            folder, Sampling(tuple(map(case_key, index.labelled)), options.reference_share)
        )


def _unlabelled_cases(
    round_dir: RoundDir, index: Index, pseudo: Sequence[ImageFile], options: RetrainOptions
) -> dict[str, UnlabelledCase]:
    """Return the initial weights of the few-shot masks, by key in nnU-Net's data set.

    Whether the network is better than the few-shot branch is only known for sequences that have
    reference masks.
    """
    choices = read_state(round_dir.selection, Selection).choices
    weights = {choice.name: choice.fewshot_weight for choice in choices}
    fewshot = fewshot_dice(WorkDir(options.work_dir))
    return {
        case_key(image): UnlabelledCase(
            weight, fewshot if has_reference_masks(image, index) else None
        )
        for image in pseudo
        if (weight := weights[image.name]) is not None
    }


def has_reference_masks(image: ImageFile, index: Index) -> bool:
    """Return whether there are reference masks of the image's sequence."""
    known = {labelled.sequence for labelled in index.labelled}
    return image.sequence is not None and image.sequence in known


def online_settings(index: Index) -> OnlineSettings:
    """Return the schedule of an online training.

    If all unlabelled images are of sequences with reference masks, few-shot masks count only at
    first, and the training ends on reference masks alone. Otherwise it is not known whether the
    network has become better than the few-shot branch, so its masks count to the end.
    """
    of_one_domain = all(has_reference_masks(query, index) for query in index.queries)
    return OnlineSettings(finish=_FINISH) if of_one_domain else OnlineSettings(hand_over=None)


def train_folds(
    round_dir: RoundDir,
    options: RetrainOptions,
    *,
    stop: StopRequest,
    executor: Executor | None = None,
    folds: Sequence[int] | None = None,
) -> None:
    """Train the round's folds, or some of them, until done or stopped.

    Trained folds are kept, and stopped ones continue.

    Raises
    ------
    ModelError
        The checkpoint to start from does not fit.
    UsageError
        The device does not exist, or there are fewer GPUs.
    SslMedSam2Error
        A fold could not be trained; on a cluster the others are.
    """
    units = [FoldUnit(fold) for fold in (range(options.folds) if folds is None else folds)]
    work = FoldWork(round_dir, options, _train)
    map_units(work, units, stop=stop, executor=executor or ThisProcess())


def _train(round_dir: RoundDir, options: RetrainOptions, unit: FoldUnit, stop: StopRequest) -> None:
    work, device = WorkDir(options.work_dir), choose_device(options.device)
    planned = planned_network(read_plans(work.plans))
    check_gpus(options.gpus, device=device, batch_size=planned.batch_size)
    online = online_settings(read_index(work)) if options.method == "online" else None
    settings = TrainingSettings(
        epochs=options.epochs,
        iterations_per_epoch=options.iterations_per_epoch,
        contrast_probability=options.contrast_probability,
        measure_cpu=worth_measuring(options.epochs * options.iterations_per_epoch),
        deterministic=options.deterministic,
        seed=options.seed,
        online=online,
    )
    train_fold(
        round_dir.path,
        fold=unit.fold,
        settings=settings,
        device=device,
        warm_start=_warm_start(round_dir, unit.fold, options),
        gpus=options.gpus,
        stop=stop,
    )


def _warm_start(round_dir: RoundDir, fold: int, options: RetrainOptions) -> Path | None:
    """Return the same fold's network of the round before; it has the same held-out cases."""
    if round_dir.number == 1 or not options.warm_start:
        return options.start
    return final_checkpoint(WorkDir(options.work_dir).round(round_dir.number - 1).path, fold)


def check_trained(round_dir: RoundDir, options: RetrainOptions) -> None:
    """Raise :class:`UsageError` if a fold of the round is not trained to its end."""
    for fold in range(options.folds):
        if not final_checkpoint(round_dir.path, fold).is_file():
            raise UsageError(
                round_dir.path,
                reason=f"fold {fold} is not trained yet",
                remedy="Run refine train, or retrain, to its end",
            )


def validate_round(
    round_dir: RoundDir,
    index: Index,
    *,
    options: RetrainOptions,
    stop: StopRequest,
    executor: Executor | None = None,
) -> tuple[FoldScore, ...] | None:
    """Score each fold on its held-out reference masks; scores of the same checkpoints are kept.

    Returns None if it was stopped.

    Raises ModelError, InputError: a network or an image cannot be read.
    """
    sha256 = [sha256_file(final_checkpoint(round_dir.path, k)) for k in range(options.folds)]
    kept = read_record_or_none(round_dir.validation, tuple[RoundScore, ...])
    networks = set(enumerate(sha256))
    if kept and all((score.fold, score.checkpoint_sha256) in networks for score in kept):
        return kept
    units = fold_units(index, options)
    work = FoldWork(round_dir, options, _score)
    found = map_units(work, units, stop=stop, executor=executor or ThisProcess())
    if stop:
        return None
    by_fold = {unit.fold: scores for unit, scores in found}
    scores = tuple(
        RoundScore(**vars(score), checkpoint_sha256=sha256[unit.fold])
        for unit in units
        for score in by_fold[unit.fold]
    )
    write_record(round_dir.validation, scores)
    return scores


def _score(
    round_dir: RoundDir, options: RetrainOptions, unit: FoldUnit, _stop: StopRequest
) -> list[FoldScore]:
    model_dir = trained_model_dir(round_dir.path)
    segmenter = load_folds(model_dir, folds=[unit.fold], device=options.device)
    return score_fold(unit.held_out, segmenter=segmenter, fold=unit.fold)
