"""Check file names of an output folder. Voxels are not read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sslmedsam2.contract import names
from sslmedsam2.contract.folder_rules import Study
from sslmedsam2.contract.outputs import PREDICTION_FOLDER, mask_path
from sslmedsam2.contract.studies import Discovery
from sslmedsam2.imaging.image_file import ImageFile

CheckStatus = Literal["PASS", "FAIL", "NOTE"]


@dataclass(frozen=True)
class Check:
    """One line of a validation. ``rule`` is a short stable name."""

    status: CheckStatus
    rule: str
    subject: str
    detail: str


@dataclass(frozen=True)
class MaskPair:
    """A mask that is there, and the image that it has to match."""

    series: ImageFile
    mask: Path


@dataclass(frozen=True)
class ListingReport:
    """What the names alone show, and the pairs whose content is still to be compared."""

    checks: tuple[Check, ...]
    pairs: tuple[MaskPair, ...]


def series_label(series: ImageFile) -> str:
    """Return how a series is called in a line for people: ``0930-A/GED4``."""
    return f"{series.case}/{series.sequence}" if series.sequence else series.case


def check_listing(discovery: Discovery, output_dir: Path) -> ListingReport:
    """Compare the output folder's names with the studies of the input.

    Every case with GED4 needs its GED4 mask; every image outside the challenge's layout needs
    its mask; other sequences are optional. Below ``LiSeg_pred`` nothing else may lie.
    """
    series = [one for study in discovery.studies for one in study.series]
    expected = {mask_path(output_dir, one): one for one in series}
    present = {path: one for path, one in expected.items() if path.is_file()}
    checks = [Check("NOTE", "input", error.subject, error.reason) for error in discovery.problems]
    in_cases = {one.path.parent for one in series if one.sequence is not None}
    checks += [
        _presence(
            one,
            is_there=path in present,
            is_optional=one.sequence is None and one.path.parent in in_cases,
        )
        for path, one in expected.items()
    ]
    cases = {study.case: study for study in discovery.studies if not study.has_no_sequence}
    folder = output_dir / PREDICTION_FOLDER
    if cases or folder.exists():
        checks += _check_folder(folder, expected=expected.keys(), cases=cases)
    pairs = tuple(MaskPair(series=one, mask=path) for path, one in present.items())
    return ListingReport(checks=tuple(checks), pairs=pairs)


def _presence(series: ImageFile, *, is_there: bool, is_optional: bool) -> Check:
    subject = series_label(series)
    if is_there:
        return Check("PASS", "present", subject, "the mask is there")
    if not is_optional and series.sequence in (names.REQUIRED_SEQUENCE, None):
        return Check("FAIL", "present", subject, "the required mask is missing")
    return Check("NOTE", "present", subject, "no mask (optional)")


def _check_folder(
    folder: Path, *, expected: Collection[Path], cases: dict[str, Study]
) -> list[Check]:
    """Check that the prediction folder exists and holds the expected masks only."""
    if not folder.is_dir():
        return [Check("FAIL", "folder", PREDICTION_FOLDER, "the output has no such folder")]
    found = sorted(folder.rglob("*"))
    parents = {parent for path in expected for parent in path.parents}
    wrong = [
        Check("FAIL", rule, str(path.relative_to(folder)), detail)
        for path in found
        if path not in expected and not (path in parents and path.is_dir() and any(path.iterdir()))
        for rule, detail in _faults(path, folder=folder, cases=cases)
    ]
    if wrong:
        return wrong
    return [Check("PASS", "names", PREDICTION_FOLDER, "flat by case, nothing but expected masks")]


def _faults(path: Path, *, folder: Path, cases: dict[str, Study]) -> Iterator[tuple[str, str]]:
    """Say what is wrong with an entry that was not expected.

    A folder that holds anything is not faulted itself unless it is a vendor level: its content
    is.
    """
    parts = path.relative_to(folder).parts
    if path.is_dir():
        if names.vendor_of_folder(path.name):
            yield "vendor_level", "a vendor folder; the prediction folder is flat by case"
        elif not any(path.iterdir()):
            yield "extra", "an empty folder"
    elif names.is_hidden(path.name):
        yield "extra", "a hidden or temporary file"
    elif len(parts) != 2:
        yield "depth", f"lies at depth {len(parts)}; masks are <Case>/<MOD>_pred.nii.gz"
    elif parts[0] not in cases:
        yield "unknown_case", f"the input has no case {parts[0]}"
    else:
        yield "name", _name_fault(path.name)


def _name_fault(name: str) -> str:
    """Say why a file in a case's folder is not one of the case's masks."""
    canonical = {
        f"{sequence}_pred.nii.gz".lower(): sequence for sequence in names.PREDICTED_SEQUENCES
    }
    sequence = canonical.get(name.lower())
    if sequence is None:
        return f"not one of {', '.join(f'{s}_pred.nii.gz' for s in names.PREDICTED_SEQUENCES)}"
    if name != f"{sequence}_pred.nii.gz":
        return f"the name has to be spelled {sequence}_pred.nii.gz"
    return f"the case has no image {sequence}"
