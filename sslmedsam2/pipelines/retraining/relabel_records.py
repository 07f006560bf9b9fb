"""What is kept of each re-predicted image beside its new mask."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from sslmedsam2.imaging.atomic import write_text_atomic

logger = logging.getLogger(__name__)


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
