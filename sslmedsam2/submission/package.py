"""``package``: pack an output folder as the zip for the validation board."""

from __future__ import annotations

import csv
import io
import logging
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.contract import names
from sslmedsam2.contract.outputs import (
    GENERIC_SUFFIX,
    MASK_EXTENSION,
    PREDICTION_FOLDER,
    prediction_name,
    report_path,
)
from sslmedsam2.errors import InputError, NoInputError, UsageError
from sslmedsam2.imaging.atomic import atomic_path
from sslmedsam2.imaging.records import sha256_file
from sslmedsam2.reporting.run_report import SeriesStatus, load_report

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

    Raises NoInputError: the folder holds no mask below ``LiSeg_pred``.
    """
    folder = output_dir / PREDICTION_FOLDER
    by_name = {prediction_name(sequence): sequence for sequence in names.PREDICTED_SEQUENCES}
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
        raise _nothing_to_pack(output_dir)
    cases = sorted({case for case, _ in found})
    return PackagePlan(
        masks=tuple(masks),
        sequence_list=_as_csv((_LIST_HEADER, *rows)) if rows else None,
        left_out=tuple(left_out),
        without_required=tuple(c for c in cases if (c, names.REQUIRED_SEQUENCE) not in found),
    )


def _nothing_to_pack(output_dir: Path) -> NoInputError:
    remedy = "Run predict first, or check --output"
    if not output_dir.is_dir():
        return NoInputError(output_dir, reason="there is no such folder", remedy=remedy)
    if any(output_dir.glob(f"*{GENERIC_SUFFIX}{MASK_EXTENSION}")):
        return NoInputError(
            output_dir,
            reason="its masks are of scans without a sequence, and the challenge scores sequences",
            remedy="Name the scans by their sequence or give --sequence, and run predict again",
        )
    folder = output_dir / PREDICTION_FOLDER
    return NoInputError(folder, reason="it holds no mask to pack", remedy=remedy)


def _as_csv(rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


_LOG = logging.getLogger(__name__)
_EARLIEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE_MODE = 0o100644
_MADE_ON_UNIX = 3


def package(
    *,
    output_dir: Path,
    zip_path: Path,
    description: Path | None = None,
    with_fallbacks: bool = False,
) -> PackagePlan:
    """Write the zip, whole or not at all, and return what is in it.

    The same masks always give the same bytes: members are sorted and carry a fixed time.

    Raises
    ------
    NoInputError
        There is no mask to pack.
    InputError
        A mask cannot be read.
    UsageError
        The description cannot be read; or a mask is a guess of ``predict`` and ``with_fallbacks``
        is not given.
    OutputError
        The zip cannot be written.
    """
    plan = plan_package(output_dir)
    guesses = guessed_masks(output_dir) & {path for _, path in plan.masks}
    if guesses and not with_fallbacks:
        raise UsageError(
            min(guesses),
            reason=f"it is a guess, no mask of the network; there are {len(guesses)} of them",
            remedy="Pack them with --with-fallbacks, or remove them",
        )
    texts = {}
    if plan.sequence_list is not None:
        texts[SEQUENCE_LIST_NAME] = plan.sequence_list.encode("utf-8")
    if description is not None:
        texts[DESCRIPTION_NAME] = _read_description(description)
    for path in plan.left_out:
        _LOG.warning("%s: no mask of the contract; left out", path)
    for case in plan.without_required:
        _LOG.warning("%s: has no GED4 mask, which the challenge requires", case)
    with atomic_path(zip_path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, path in plan.masks:
            # Masks are compressed already.
            archive.writestr(_member(name, zipfile.ZIP_STORED), _read_mask(path))
        for name, content in sorted(texts.items()):
            archive.writestr(_member(name, zipfile.ZIP_DEFLATED), content)
    return plan


def guessed_masks(output_dir: Path) -> set[Path]:
    """Return the masks that the run's report calls guesses; none where there is no report.

    A guess that a person has corrected is none any more.
    """
    path = report_path(output_dir)
    try:
        series = load_report(path).series if path.is_file() else ()
    except InputError as error:
        _LOG.warning("whether masks are guesses is not known: %s", error)
        return set()
    guesses = {
        output_dir / one.output_path: one.mask_sha256
        for one in series
        if one.status is SeriesStatus.FALLBACK and one.output_path is not None
    }
    return {
        path
        for path, made in guesses.items()
        if path.is_file() and made in (None, sha256_file(path))
    }


def _read_mask(path: Path) -> bytes:
    try:
        return path.read_bytes()
    # Not the error of a zip that cannot be written.
    except OSError as error:
        raise InputError(
            path,
            kind="unreadable",
            reason=f"cannot be read ({error.strerror})",
            remedy="Make it readable, or run predict again",
        ) from error


def _read_description(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            path,
            reason=f"the description cannot be read ({error.strerror})",
            remedy="Check --description",
        ) from error


def _member(name: str, compression: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, date_time=_EARLIEST_ZIP_TIME)
    member.compress_type = compression
    member.external_attr = _PLAIN_FILE_MODE << 16
    member.create_system = _MADE_ON_UNIX
    return member
