"""Contents of the zip for the validation board."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.contract import names
from sslmedsam2.contract.outputs import MASK_EXTENSION, PREDICTION_FOLDER, PREDICTION_SUFFIX
from sslmedsam2.errors import NoInputError

DEFAULT_ZIP_NAME = "CARE-Liver-Submission.zip"
SEQUENCE_LIST_NAME = "Unsupervised_Segmentation_List.csv"
DESCRIPTION_NAME = "Method_Description.md"
_LIST_HEADER = ("Case", "Modality")
_NAMES_IN_LIST = {"DWI_800": "DWI"}
"""The list says DWI though the mask is called DWI_800_pred."""


@dataclass(frozen=True)
class PackagePlan:
    """The content of a submission.

    Attributes
    ----------
    masks
        Name in the zip and file, sorted by name.
    sequence_list
        The text of the list of other sequences than GED4; None where there are none.
    left_out
        Files below the prediction folder that are no masks of the contract.
    without_required
        Cases that have masks, and none of GED4.
    """

    masks: tuple[tuple[str, Path], ...]
    sequence_list: str | None
    left_out: tuple[Path, ...]
    without_required: tuple[str, ...]


def plan_package(output_dir: Path) -> PackagePlan:
    """List what to pack of an output folder.

    Raises
    ------
    NoInputError
        The folder holds no mask below ``LiSeg_pred``.
    """
    folder = output_dir / PREDICTION_FOLDER
    by_name = {
        f"{sequence}{PREDICTION_SUFFIX}{MASK_EXTENSION}": sequence
        for sequence in names.PREDICTED_SEQUENCES
    }
    masks, rows, left_out, found = [], [], [], set()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        parts = path.relative_to(folder).parts
        sequence = by_name.get(parts[-1]) if len(parts) == 2 else None
        if sequence is None:
            left_out.append(path)
            continue
        masks.append(("/".join((PREDICTION_FOLDER, *parts)), path))
        found.add((parts[0], sequence))
        if sequence != names.REQUIRED_SEQUENCE:
            rows.append((parts[0], _NAMES_IN_LIST.get(sequence, sequence)))
    if not masks:
        raise NoInputError(
            folder if output_dir.is_dir() else output_dir,
            reason="it holds no mask to pack" if output_dir.is_dir() else "there is no such folder",
            remedy="Run predict first, or check --output",
        )
    cases = sorted({case for case, _ in found})
    return PackagePlan(
        masks=tuple(masks),
        sequence_list=_as_csv((_LIST_HEADER, *rows)) if rows else None,
        left_out=tuple(left_out),
        without_required=tuple(c for c in cases if (c, names.REQUIRED_SEQUENCE) not in found),
    )


def _as_csv(rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
