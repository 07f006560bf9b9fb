"""Options of ``retrain``, and ``options.json`` in the work directory."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final, Literal

from sslmedsam2.contract.sequence_map import SequenceMap
from sslmedsam2.imaging.records import check_words
from sslmedsam2.inference.device import Device
from sslmedsam2.nnunet.plans import CompactPreset, Preset
from sslmedsam2.retrain.selection import IGNORE_ABOVE, StoppingRule

FinalModel = Literal["ensemble", "best-fold", "average"]
Method = Literal["rounds", "online"]

_FOLDERS: Final = ("labelled_dir", "unlabelled_dir", "start")
_NOT_DECISIVE: Final = (
    *("weights_dir", "name", "training_data", "licence", "final"),
    *("device", "deterministic", "gpus", "force"),
)
"""Options that may change between two calls on one work directory: no stage before freezing
depends on them, or they only say what computes and how exactly it repeats itself."""


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
        All that is made on the way, see :mod:`sslmedsam2.retrain.state`.
    weights_dir
        Where to freeze the model of the best round under ``name``; None to leave that out.
    sam2
        As in ``pseudo-label``.
    sequences
        Canonical names that take part, in both folders; None for all. The frozen model then
        serves only these.
    method
        ``rounds`` trains on pseudo masks and makes them anew, several times. ``online`` is one
        longer training, in which the network's average predicts the unlabelled images on the way
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
        Begin each later round with the networks of the one before, else as round 1.
    reference_masks_first
        Train round 1 on reference masks alone, so that the first pseudo labels to train on are
        those of both branches.
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
        Train deterministically on a GPU too, which is slower; on a CPU it always is.
    gpus
        Number of GPUs for each training.
    force
        Freeze even a network that is worse than the few-shot branch it learned from.
    preset
        Size of the network.
    label
        The value of the liver in the reference masks; None for their only foreground value.
    sequence_map
        What the user says of files; overrides their names.
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
    """Return the options as ``options.json`` holds them: with absolute paths, without the map.

    Keys of a sequence map may say something of a patient; what it led to is in the index.
    """
    paths = {
        name: value.resolve() for name, value in vars(options).items() if isinstance(value, Path)
    }
    return replace(options, sequence_map=SequenceMap(), **paths)  # type: ignore[arg-type]


def changed_options(before: RetrainOptions, now: RetrainOptions) -> tuple[str, ...]:
    """Return the names of the options that two calls on one work directory must agree on and don't.

    The rule may change: rounds that are done stay, and the new rule decides about the next.
    """
    left_out = {*_FOLDERS, *_NOT_DECISIVE, "work_dir", "rule", "sequence_map"}
    names = sorted(item.name for item in fields(RetrainOptions) if item.name not in left_out)
    return tuple(name for name in names if getattr(before, name) != getattr(now, name))
