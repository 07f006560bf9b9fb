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
        frozen.json       of the best round: scores of the model as it is frozen
    round_2/ ...
    rounds.json           all rounds, the best, and why it ended: for people, never read back
    report/index.html     the same as a page

Stages are done in this order and each writes its JSON file last, so that what is there is whole.
What no longer holds is moved aside (``round_2.replaced-<UTC time>``), never deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sslmedsam2.errors import InputError, UsageError
from sslmedsam2.imaging.records import Record, read_record, read_record_or_none
from sslmedsam2.retrain.options import RetrainOptions
from sslmedsam2.retrain.selection import Decision, RoundFigures, Selection, decide
from sslmedsam2.weights.manifest import sha256_file


class _Part:
    """A file or folder of the dataclass that has it, which has a ``path``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: RoundDir | WorkDir, _kind: type) -> Path:
        return owner.path / self._name


@dataclass(frozen=True)
class RoundDir:
    """One round's part of the work directory."""

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
    report = _Part("report/index.html")

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

    Raises
    ------
    UsageError
        It is missing or damaged.
    """
    try:
        return read_record(path, kind)
    except InputError as error:
        raise UsageError(
            path,
            reason=error.reason,
            remedy="Run the earlier stages first, or begin anew in another work directory",
        ) from error


def options_of(work: WorkDir) -> RetrainOptions:
    """Read what a work directory, which may have been moved, was begun with; raises UsageError."""
    return replace(read_state(work.options, RetrainOptions), work_dir=work.path)


def finished_figures(work: WorkDir) -> tuple[RoundFigures, ...]:
    """Return what the finished rounds are judged by, in order; raises UsageError."""
    return tuple(
        read_state(round_dir.outcome, RoundFigures) for round_dir in work.finished_rounds()
    )


def decision_so_far(options: RetrainOptions) -> Decision | None:
    """Judge the finished rounds; None if there is none."""
    figures = finished_figures(WorkDir(options.work_dir))
    return decide(figures, options.rule) if figures else None


def ever_trained(round_dir: RoundDir, *, warm_start: bool) -> frozenset[str]:
    """Return the names of the queries that a round's networks have trained on.

    With ``warm_start`` they go on from those of the round before, and so have trained on what these
    had trained on, even if it was left out since. Raises UsageError.
    """
    first = 1 if warm_start else round_dir.number
    rounds = map(WorkDir(round_dir.path.parent).round, range(first, round_dir.number + 1))
    return frozenset().union(*(read_state(one.selection, Selection).trained for one in rounds))


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
        Whether the other folds trained on it, in this round or before a warm start.
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
        """Tell whether the mask is, or repeats, one that a person has corrected."""
        if self.error is not None or not mask.is_file():
            return False
        edited = self.mask_sha256 is not None and sha256_file(mask) != self.mask_sha256
        return self.manually_corrected or edited


def read_relabel_record(path: Path) -> RelabelRecord | None:
    """Read a record; None without one and, after a warning, if it is not usable."""
    return read_record_or_none(path, RelabelRecord)
