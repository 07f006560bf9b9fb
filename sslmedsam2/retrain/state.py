"""The work directory of ``retrain``: one place that knows its names.

::

    options.json          what was asked for
    index.json            the images that take part, with their hashes
    pseudo_labels/        of the few-shot branch, as `pseudo-label` writes them
    plans.json            nnU-Net's plans, the same in all rounds
    round_1/
        selection.json    which pseudo labels train, which wait, and why
        training_masks/   0, 1, and 2 or 3 (probably liver) where the loss looks away
        preprocessed/     nnU-Net's data set
        results/          nnU-Net's networks, logs and curves, one folder a fold
        validation.json   each fold on the reference masks it never saw
        relabelled/       new masks of all unlabelled volumes, out of fold
        outcome.json      Dice to the masks before, decision; written last
    round_2/ ...
    rounds.json           all rounds, the best, and why it ended
    report/index.html     the same for people

Stages are done in this order and each writes its JSON file last, so that what is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sslmedsam2.errors import UsageError
from sslmedsam2.imaging.atomic import write_text_atomic
from sslmedsam2.retrain.options import RetrainOptions
from sslmedsam2.retrain.selection import Decision, RoundFigures, decide

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundDir:
    """One round's part of the work directory."""

    path: Path
    number: int

    @property
    def selection(self) -> Path:
        """Which pseudo labels train."""
        return self.path / "selection.json"

    @property
    def training_masks(self) -> Path:
        """Masks with ignore labels."""
        return self.path / "training_masks"

    @property
    def validation(self) -> Path:
        """Scores on reference masks."""
        return self.path / "validation.json"

    @property
    def relabelled(self) -> Path:
        """New masks of the unlabelled volumes."""
        return self.path / "relabelled"

    @property
    def outcome(self) -> Path:
        """The round's figures and decision."""
        return self.path / "outcome.json"


@dataclass(frozen=True)
class WorkDir:
    """The whole work directory."""

    path: Path

    @property
    def options(self) -> Path:
        """What was asked for."""
        return self.path / "options.json"

    @property
    def index(self) -> Path:
        """The images that take part."""
        return self.path / "index.json"

    @property
    def pseudo_labels(self) -> Path:
        """Output of the few-shot branch."""
        return self.path / "pseudo_labels"

    @property
    def plans(self) -> Path:
        """nnU-Net's plans."""
        return self.path / "plans.json"

    @property
    def rounds(self) -> Path:
        """All rounds in short."""
        return self.path / "rounds.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report" / "index.html"

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


def read_json(path: Path) -> Any:
    """Read a file of the work directory.

    Raises
    ------
    UsageError
        It is missing or garbled.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            path,
            reason=f"it cannot be read ({error})",
            remedy="Run the earlier stages first, or begin anew in another work directory",
        ) from error


def write_json(path: Path, content: object) -> None:
    """Write a file of the work directory, whole or not at all; raises OutputError."""
    write_text_atomic(path, json.dumps(content, indent=1) + "\n")


def key_of(content: object) -> str:
    """Return a hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def finished_figures(work: WorkDir) -> tuple[RoundFigures, ...]:
    """Return what the finished rounds are judged by, in order."""
    outcomes = [read_json(round_dir.outcome) for round_dir in work.finished_rounds()]
    return tuple(
        RoundFigures(item["round"], item["validation_dice"], item["change_dice"])
        for item in outcomes
    )


def decision_so_far(options: RetrainOptions) -> Decision | None:
    """Judge the finished rounds; None if there is none."""
    figures = finished_figures(WorkDir(options.work_dir))
    return decide(figures, options.rule) if figures else None


@dataclass(frozen=True)
class RelabelRecord:
    """How a round's networks saw one unlabelled image.

    Attributes
    ----------
    key
        Equal only for the same image and the same networks.
    folds
        The networks that predicted it, none of which had trained on it.
    trained
        Whether the round's other folds trained on it.
    fewshot_weight
        Of the few-shot branch in the new mask; the networks have the rest.
    agreement
        Mean Dice between the masks of ``folds``; None for one alone.
    change_dice
        Dice between the mask before and the new one; None if there was none.
    mean_confidence
        Mean foreground probability over the new mask; None if it is empty.
    error
        One line; then there is no new mask.
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


def write_relabel_record(record: RelabelRecord, path: Path) -> None:
    """Write a record as JSON, whole or not at all; raises OutputError."""
    write_text_atomic(path, json.dumps(asdict(record), indent=2) + "\n")


def read_relabel_record(path: Path) -> RelabelRecord | None:
    """Read a record; None, and a warning, if the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return RelabelRecord(**{**content, "folds": tuple(content["folds"])})
    except (OSError, ValueError, TypeError, LookupError) as error:
        logger.warning("%s: cannot be read as a record and is passed over (%s)", path, error)
        return None
