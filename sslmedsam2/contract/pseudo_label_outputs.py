"""Paths and names in the output folder of ``pseudo-label``, and shards of its work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from sslmedsam2.contract.names import PROBABILITY_PREFIX, UNCERTAINTY_PREFIX
from sslmedsam2.contract.outputs import MASK_EXTENSION, PREDICTION_SUFFIX, checked_case
from sslmedsam2.errors import UsageError
from sslmedsam2.imaging.image_file import ImageFile

CALIBRATION_NAME: Final = "calibration.json"
TABLE_NAME: Final = "pseudo_labels.csv"
_RECORD_SUFFIX: Final = "_pseudo.json"
_PREVIEW_SUFFIX: Final = "_pseudo.png"
_SHARD: Final = re.compile(r"(\d+)\s*/\s*(\d+)")

Item = TypeVar("Item")


@dataclass(frozen=True)
class PseudoLabelPaths:
    """The files of one pseudo label."""

    mask: Path
    probability: Path
    uncertainty: Path
    record: Path
    preview: Path


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of the work; ``index`` counts from 1."""

    index: int
    count: int

    def of(self, items: Sequence[Item]) -> tuple[Item, ...]:
        """Return the items of this shard: every ``count``-th, so that shards have equal size."""
        return tuple(items[self.index - 1 :: self.count])


def parse_shard(text: str) -> Shard:
    """Read ``2/8``, the second of eight.

    Raises UsageError: the text is of another form, or there is no such part.
    """
    match = _SHARD.fullmatch(text.strip())
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise UsageError(
            f"shard {text!r}",
            reason="it is not a part of a whole, counted from 1",
            remedy="Write 2/8 for the second of eight",
        )
    return Shard(index, count)


def pseudo_label_paths(output_dir: Path, series: ImageFile) -> PseudoLabelPaths:
    """Return the files of the pseudo label of a series; raises as `mask_path`."""
    folder, stem = output_dir, checked_case(series.case)
    if series.sequence is not None:
        folder, stem = output_dir / stem, series.sequence
    return PseudoLabelPaths(
        mask=folder / f"{stem}{PREDICTION_SUFFIX}{MASK_EXTENSION}",
        probability=folder / f"{PROBABILITY_PREFIX}{stem}{MASK_EXTENSION}",
        uncertainty=folder / f"{UNCERTAINTY_PREFIX}{stem}{MASK_EXTENSION}",
        record=folder / f"{stem}{_RECORD_SUFFIX}",
        preview=folder / f"{stem}{_PREVIEW_SUFFIX}",
    )


def find_records(output_dir: Path) -> tuple[Path, ...]:
    """Return the JSON files of all pseudo labels of an output folder, by path."""
    pattern = f"[!.]*{_RECORD_SUFFIX}"
    return tuple(sorted([*output_dir.glob(pattern), *output_dir.glob(f"[!.]*/{pattern}")]))


def run_record_path(output_dir: Path, shard: Shard | None) -> Path:
    """Return the path of the record of a run; each shard keeps its own."""
    name = "run" if shard is None else f"run_{shard.index}_of_{shard.count}"
    return output_dir / f"{name}.json"
