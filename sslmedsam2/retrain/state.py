"""The work directory of ``retrain``: its files and its options.

::

    options.json          the options
    index.json            the images that take part, with their hashes
    pseudo_labels/        of the few-shot branch, as `pseudo-label` writes them
    plans.json            nnU-Net's plans, the same in all rounds
    round_1/
        selection.json    which pseudo labels train, which wait, and why
        training_masks/   0, 1, and 2 or 3 (probably liver) where the loss ignores voxels
        preprocessed/     nnU-Net's data set
        results/          nnU-Net's networks, logs and curves, one folder a fold
        validation.json   each fold on the reference masks it never saw
        relabelled/       new masks of all unlabelled volumes, out of fold
        outcome.json      Dice to the masks before, decision; written last
        frozen.json       of the best round: scores of the model as it is frozen
    round_2/ ...
    rounds.json           all rounds, the best, and why it ended: for users, never read back
    report/index.html     the same as a page

Stages run in this order. Each writes its JSON file last, so a stage with a JSON file is complete.
Results that are out of date are moved aside (``round_2.replaced-<UTC time>``), never deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final, Literal

from sslmedsam2.contract.sequence_map import SequenceMap
from sslmedsam2.errors import InputError, UsageError
from sslmedsam2.imaging.records import Record, check_words, read_record
from sslmedsam2.inference.device import Device
from sslmedsam2.nnunet.plans import CompactPreset, Preset
from sslmedsam2.pseudo_label.records import is_edited
from sslmedsam2.retrain.stopping import Decision, RoundFigures, StoppingRule, decide

FinalModel = Literal["ensemble", "best-fold", "average"]
Method = Literal["rounds", "online"]

_FREE_TO_CHANGE: Final = frozenset(
    (
        *("labelled_dir", "unlabelled_dir", "start", "sam2", "work_dir", "sequence_map", "rule"),
        *("weights_dir", "name", "training_data", "licence", "final"),
        *("device", "deterministic", "gpus", "force"),
    )
)
"""Options that may change between two calls on one work directory. The index compares the content
of the folders, of start and of SAM2. The new rule decides about the next round only. The others
concern freezing, or the device and how exactly it reproduces results."""

IGNORE_ABOVE: Final = 0.95
"""Bits. Of the voxels near the liver that it ignores 43 % are wrong, against 15 % of all voxels
there. A lower threshold ignores more wrong voxels, but mostly right ones
(``benchmarks/ignore_threshold.py``)."""


@dataclass(frozen=True)
class RetrainOptions:
    """What ``retrain`` is asked to do.

    Attributes
    ----------
    labelled_dir
        Case folders with ``<SEQ>.nii.gz`` and ``mask_<SEQ>.nii.gz``.
    unlabelled_dir
        Volumes to learn from, in any layout that ``predict`` reads. May be the same folder.
    work_dir
        For all intermediate results, see :mod:`sslmedsam2.retrain.state`.
    weights_dir
        Where to freeze the model of the best round under ``name``; None to freeze nothing.
    sam2
        As in ``pseudo-label``.
    sequences
        Canonical names that take part, in both folders; None for all. The frozen model then
        serves only these.
    method
        ``rounds`` trains on pseudo masks and relabels, several times. ``online`` is one longer
        training, during which the average of the network's weights predicts the unlabelled images
        (:mod:`sslmedsam2.nnunet.online`); its rule is that of a single round.
    rule
        When the rounds end.
    folds
        Networks a round; each re-predicts the unlabelled patients it was not trained on.
    contrast_probability
        Share of the patches that are repainted with a random contrast.
    start
        A checkpoint of the same plans, trained on none of these data, to begin round 1 with.
    warm_start
        Start each later round from the networks of the round before; else as round 1.
    reference_masks_first
        Train round 1 on reference masks alone, so that the first pseudo labels to train on come
        from both branches.
    reference_share
        Share of the training patches with reference masks.
    ignore_above
        Uncertainty in bits, 0 to 1, above which a voxel of a pseudo label is ignored.
    agreement_needed
        Dice between networks from which a doubtful pseudo label is used.
    final
        What is frozen of the best round: all folds, the best of them, or one network with the
        mean of their weights.
    deterministic
        Train deterministically on a GPU too, which is slower. Training on a CPU always is.
    gpus
        Number of GPUs for each training.
    force
        Freeze even a network that is worse than the few-shot branch it learned from.
    preset
        Size of the network.
    label
        The value of the liver in the reference masks; None for their only foreground value.
    sequence_map
        Sequences of files by the user; takes precedence over names.
    """

    labelled_dir: Path
    unlabelled_dir: Path
    work_dir: Path
    weights_dir: Path | None = None
    sam2: str = "compact"
    sequences: tuple[str, ...] | None = None
    method: Method = "rounds"
    rule: StoppingRule = field(default_factory=StoppingRule)
    folds: int = 3
    epochs: int = 30
    iterations_per_epoch: int = 50
    contrast_probability: float = 0.7
    start: Path | None = None
    warm_start: bool = True
    reference_masks_first: bool = False
    reference_share: float = 0.5
    ignore_above: float = IGNORE_ABOVE
    agreement_needed: float = 0.85
    final: FinalModel = "ensemble"
    device: Device = "auto"
    deterministic: bool = False
    gpus: int = 1
    force: bool = False
    seed: int = 20260
    preset: Preset = field(default_factory=CompactPreset)
    label: int | None = None
    sequence_map: SequenceMap = field(default_factory=SequenceMap)
    name: str = "liver"
    training_data: str = "not stated"
    licence: str = "not stated"

    def __post_init__(self) -> None:
        """Check the words; raises UsageError."""
        check_words(self)


def as_stored(options: RetrainOptions) -> RetrainOptions:
    """Return the options as ``options.json`` holds them: absolute paths, no sequence map.

    Keys of a sequence map may identify a patient. Its effects are in the index.
    """
    paths = {
        name: value.resolve() for name, value in vars(options).items() if isinstance(value, Path)
    }
    return replace(options, sequence_map=SequenceMap(), **paths)  # type: ignore[arg-type]


def changed_options(before: RetrainOptions, now: RetrainOptions) -> tuple[str, ...]:
    """Return the names of options that differ and must not, on one work directory."""
    names = {item.name for item in fields(RetrainOptions)} - _FREE_TO_CHANGE
    return tuple(name for name in sorted(names) if getattr(before, name) != getattr(now, name))


class _Part:
    """A file or folder below the ``path`` of the dataclass that it is an attribute of."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: RoundDir | WorkDir, _kind: type) -> Path:
        return owner.path / self._name


@dataclass(frozen=True)
class RoundDir:
    """The folder of one round in the work directory."""

    path: Path
    number: int

    selection = _Part("selection.json")
    training_masks = _Part("training_masks")
    validation = _Part("validation.json")
    relabelled = _Part("relabelled")
    frozen = _Part("frozen.json")
    outcome = _Part("outcome.json")


@dataclass(frozen=True)
class WorkDir:
    """The whole work directory."""

    path: Path

    options = _Part("options.json")
    index = _Part("index.json")
    pseudo_labels = _Part("pseudo_labels")
    plans = _Part("plans.json")
    rounds = _Part("rounds.json")
    page = _Part("report/index.html")

    def round(self, number: int) -> RoundDir:
        """Return a round's folder; rounds count from 1."""
        return RoundDir(self.path / f"round_{number}", number)

    def rounds_after(self, round_dir: RoundDir) -> tuple[RoundDir, ...]:
        """Return the later rounds that have been begun, in order."""
        found: list[RoundDir] = []
        while (later := self.round(round_dir.number + 1 + len(found))).path.is_dir():
            found.append(later)
        return tuple(found)

    def finished_rounds(self) -> tuple[RoundDir, ...]:
        """Return the rounds whose outcome is known, in order."""
        found: list[RoundDir] = []
        while (round_dir := self.round(len(found) + 1)).outcome.is_file():
            found.append(round_dir)
        return tuple(found)


def read_state(path: Path, kind: type[Record]) -> Record:
    """Read a record of the work directory.

    Raises UsageError: it is missing or damaged.
    """
    try:
        return read_record(path, kind)
    except InputError as error:
        raise UsageError(
            path,
            reason=error.reason,
            remedy="Remove the file and run retrain again: finished trainings are kept"
            if path.is_file()
            else "Run the earlier stages first, or begin anew in another work directory",
        ) from error


def options_of(work: WorkDir) -> RetrainOptions:
    """Read the options of a work directory, which may have been moved; raises UsageError."""
    return replace(read_state(work.options, RetrainOptions), work_dir=work.path)


def finished_figures(work: WorkDir) -> tuple[RoundFigures, ...]:
    """Return the figures of the finished rounds, in order; raises UsageError."""
    return tuple(
        read_state(round_dir.outcome, RoundFigures) for round_dir in work.finished_rounds()
    )


def decision_so_far(options: RetrainOptions) -> Decision | None:
    """Return the decision after the finished rounds; None if there is none."""
    figures = finished_figures(WorkDir(options.work_dir))
    return decide(figures, options.rule) if figures else None


@dataclass(frozen=True)
class RelabelRecord:
    """What a round's networks made of one unlabelled image.

    Attributes
    ----------
    key
        Equal only for the same image and the same networks.
    folds
        The networks that predicted it; none of them had trained on it.
    trained
        Whether the other folds trained on it, in this round or before a warm start.
    fewshot_weight
        Weight of the few-shot branch in the new mask; the networks have the rest.
    agreement
        Mean Dice between the masks of ``folds``; None for one alone.
    change_dice
        Dice between the mask before and the new one; None if there was none.
    mean_confidence
        Mean foreground probability over the new mask; None if it is empty.
    error
        One line; then there is no new mask.
    manually_corrected
        Whether the new mask repeats one that a person has corrected.
    mask_sha256
        Of the mask as written; one with another was corrected manually since.
    """

    case: str
    sequence: str | None
    key: str
    folds: tuple[int, ...]
    trained: bool
    fewshot_weight: float = 0.0
    agreement: float | None = None
    change_dice: float | None = None
    volume_ml: float = 0.0
    mean_confidence: float | None = None
    error: str | None = None
    manually_corrected: bool = False
    mask_sha256: str | None = None

    def is_corrected(self, mask: Path) -> bool:
        """Return whether the mask is, or repeats, one that a person has corrected."""
        if self.error is not None or not mask.is_file():
            return False
        return self.manually_corrected or is_edited(mask, self.mask_sha256)
