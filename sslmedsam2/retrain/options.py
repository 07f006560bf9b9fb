"""What ``retrain`` is asked to do, and its record in the work directory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from sslmedsam2.inference.device import Device
from sslmedsam2.nnunet.plans import CompactPreset, Preset
from sslmedsam2.retrain.selection import IGNORE_ABOVE, StoppingRule

Final_ = Literal["ensemble", "best-fold", "average"]

_FOLDERS: Final = ("labelled_dir", "unlabelled_dir", "start")
_NOT_DECISIVE: Final = (
    *("weights_dir", "name", "training_data", "licence", "final"),
    *("device", "deterministic", "gpus"),
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
    experts_first
        Let round 1 learn from reference masks alone, so that pseudo masks are those of both
        branches before anything trains on them.
    expert_share
        Of the training patches that show reference masks.
    ignore_above
        Uncertainty in bits, 0 to 1, from which a voxel of a pseudo mask is not trained on.
    agreement_needed
        Dice between networks from which a doubtful pseudo label is taken in.
    final
        What is frozen of the best round: all folds, the best of them, or one network with the
        mean of their weights.
    deterministic
        Let a GPU give the same weights each time, at the price of speed; a CPU always does.
    gpus
        That share each training.
    preset
        Size of the network.
    label
        The value of the liver in the reference masks; None for their only foreground value.
    """

    labelled_dir: Path
    unlabelled_dir: Path
    work_dir: Path
    weights_dir: Path | None = None
    sam2: str = "compact"
    sequences: tuple[str, ...] | None = None
    rule: StoppingRule = field(default_factory=StoppingRule)
    folds: int = 3
    epochs: int = 30
    iterations_per_epoch: int = 50
    contrast_probability: float = 0.7
    start: Path | None = None
    warm_start: bool = True
    experts_first: bool = False
    expert_share: float = 0.5
    ignore_above: float = IGNORE_ABOVE
    agreement_needed: float = 0.85
    final: Final_ = "ensemble"
    device: Device = "auto"
    deterministic: bool = False
    gpus: int = 1
    seed: int = 20260
    preset: Preset = field(default_factory=CompactPreset)
    label: int | None = None
    name: str = "liver"
    training_data: str = "not stated"
    licence: str = "not stated"


def as_record(options: RetrainOptions) -> dict[str, Any]:
    """Return the options as JSON can hold them."""
    record = asdict(options)
    for name, value in record.items():
        if isinstance(value, Path):
            record[name] = str(value.resolve())
    return record


def from_record(record: dict[str, Any], *, work_dir: Path) -> RetrainOptions:
    """Read what :func:`as_record` gave; the work directory may have been moved."""
    known = {item.name for item in fields(RetrainOptions)}
    chosen = {name: value for name, value in record.items() if name in known}
    for name in (*_FOLDERS, "weights_dir"):
        if chosen[name] is not None:
            chosen[name] = Path(chosen[name])
    chosen |= {
        "work_dir": work_dir,
        "rule": StoppingRule(**chosen["rule"]),
        "preset": Preset.from_plain(chosen["preset"]),
        "sequences": None if chosen["sequences"] is None else tuple(chosen["sequences"]),
    }
    return RetrainOptions(**chosen)


def decisive(record: dict[str, Any]) -> dict[str, Any]:
    """Return what two calls on one work directory must agree on, of a JSON record.

    The rule may change: rounds that are done stay, and the new rule decides about the next.
    """
    left_out = (*_FOLDERS, *_NOT_DECISIVE, "work_dir", "rule")
    return {name: value for name, value in record.items() if name not in left_out}
