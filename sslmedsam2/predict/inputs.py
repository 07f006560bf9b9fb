"""Scans of an input path: files by the rules of `sslmedsam2.contract`, and DICOM series.

pydicom is imported only if there are DICOM files. Messages about DICOM contain no file names, see
:mod:`sslmedsam2.dicom.discovery`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path

from sslmedsam2.contract.archives import OpenedInput, open_archives
from sslmedsam2.contract.folder_rules import Discovery, LeftOut
from sslmedsam2.contract.names import PREDICTED_SEQUENCES, split_volume_name
from sslmedsam2.contract.sequence_map import NO_MAP, SequenceMap
from sslmedsam2.contract.studies import find_studies
from sslmedsam2.contract.walk import walk_input
from sslmedsam2.dicom.files import DicomFiles, find_dicom_files, require_dicom
from sslmedsam2.dicom.model import DicomDiscovery, DicomVolume, NamedVolume, SeriesRow
from sslmedsam2.errors import InputError, NoInputError, UsageError
from sslmedsam2.imaging.atomic import atomic_path
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.reading import read_volume
from sslmedsam2.imaging.volume import Volume
from sslmedsam2.reporting.volume_table import csv_text

logger = logging.getLogger(__name__)

DICOM_SCHEME = "dicom:"
"""Prefix of the input name of a DICOM series; the rest is its neutral name."""

_KEY_COLUMNS = (
    "case",
    "series",
    "patient_id",
    "study_instance_uid",
    "series_instance_uid",
    "description",
    "place",
)


def input_name(path: Path, root: Path) -> str:
    """Return the name in ``run_report.json`` of a file below ``root``, or of ``root`` itself."""
    base = root if root.is_dir() else root.parent
    return Path(os.path.relpath(path, base)).as_posix()


def place_of_problem(problem: InputError, root: Path) -> tuple[str, str | None, str]:
    """Return case, file name and input name of a folder or file below ``root`` with an error.

    The file name is None for the folder of a case.
    """
    path = Path(problem.subject)
    is_file = split_volume_name(path.name) is not None
    case, file = (path.parent.name, path.name) if is_file else (path.name, None)
    return case, file, input_name(path, root)


@dataclass(frozen=True)
class Inputs:
    """All scans of an input.

    ``dicom`` is None without DICOM, or if there are other files and DICOM cannot be read.
    """

    studies: Discovery
    dicom: DicomDiscovery | None

    @property
    def dicom_rows(self) -> tuple[SeriesRow, ...]:
        """A row for every DICOM series."""
        return self.dicom.rows if self.dicom else ()

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Files other than DICOM that are or may be images and are not used."""
        return self.studies.left_out

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for information; no action is needed."""
        said = {note.partition(": ")[0] for note in self.studies.notes}
        files = (
            f"{one.path} is left out: {one.reason}"
            for one in self.left_out
            if str(one.path) not in said
        )
        if self.dicom is None:
            return (*self.studies.notes, *files)
        left_out = (
            f"{row.case}/{row.series} is left out: {row.reason}"
            for row in self.dicom.rows
            if row.use == "left_out"
        )
        return (*self.studies.notes, *self.dicom.notes, *files, *left_out)


def find_inputs(
    input_path: Path,
    *,
    only: Sequence[Path] = (),
    sequences: tuple[str, ...] | None,
    sequence_map: SequenceMap = NO_MAP,
) -> Inputs:
    """List all scans below a path, or in the parts ``only`` of it.

    Raises NoInputError: as :func:`find_studies`; UsageError: there is only DICOM, and the packages
    to read it are not installed.
    """
    found = _find(input_path, only, sequences=sequences, sequence_map=sequence_map)
    used = found.dicom.used_keys if found.dicom else None
    sequence_map.warn_of_unused(input_path, only=only, used=used)
    return found


def with_archives(found: Inputs, opened: OpenedInput) -> Inputs:
    """Return the inputs with the archives that cannot be used, and those without an image."""
    studies = found.studies
    images = [
        *(image.path for image in studies.series),
        *(one.path for one in studies.left_out),
        *(Path(problem.subject) for problem in studies.problems),
    ]
    places = (
        [opened.path / one.place for one in found.dicom.identities.values()] if found.dicom else []
    )
    left_out = [
        LeftOut(archive, "it is an archive without an image")
        for archive in opened.unpacked
        if not any(path.is_relative_to(archive) for path in images)
        and not any(place.is_relative_to(archive) for place in places)
    ]
    studies = replace(
        studies,
        problems=(*studies.problems, *opened.problems),
        left_out=(*studies.left_out, *left_out),
    )
    return replace(found, studies=studies)


def _find(
    input_path: Path,
    only: Sequence[Path],
    *,
    sequences: tuple[str, ...] | None,
    sequence_map: SequenceMap,
) -> Inputs:
    tree = walk_input(input_path, only)
    files = find_dicom_files(tree)
    studies = Discovery()
    if not files.files or input_path.is_dir():
        studies = find_studies(
            input_path, only=only, tree=tree, sequences=sequences, sequence_map=sequence_map
        )
    if not files.files:
        impostors = tuple(
            LeftOut(path, "it is named like DICOM and does not begin so")
            for path in files.impostors
        )
        left_out = tuple(one for one in studies.left_out if one.path not in files.impostors)
        notes = (_impostors(files), *studies.notes) if files.impostors else studies.notes
        studies = replace(studies, notes=notes, left_out=(*left_out, *impostors))
        return Inputs(studies, None)
    studies = _beside(files, studies)
    try:
        return Inputs(studies, _discover(files, sequences, sequence_map))
    except UsageError as error:
        if not studies.series:
            raise
        logger.warning("%d DICOM files are left alone: %s", len(files.files), error)
        return Inputs(studies, None)


def list_dicom(
    input_path: Path,
    *,
    sequences: tuple[str, ...] | None,
    sequence_map: SequenceMap = NO_MAP,
) -> DicomDiscovery:
    """List the DICOM series below a path, with sequence and use as `find_inputs` finds them.

    Raises NoInputError: the path does not exist or holds no DICOM file; UsageError: the packages to
    read DICOM are not installed.
    """
    if not input_path.exists():
        raise NoInputError(
            input_path,
            reason="there is no such folder or file",
            remedy="Give a folder of DICOM files",
        )
    with open_archives(input_path) as opened:
        found = _list_dicom(opened.path, sequences, sequence_map)
        identities = {
            key: replace(one, place=opened.shown(one.place))
            for key, one in found.identities.items()
        }
        problems = [opened.shown(str(problem)) for problem in opened.problems]
        return replace(found, identities=identities, notes=(*found.notes, *problems))


def write_key(found: DicomDiscovery, path: Path) -> int:
    """Write the patient, study and series of each neutral name; return the number of rows.

    The key is a CSV file that only its owner may read. An earlier key is replaced.

    Raises UsageError: another file has this name; OutputError: the file cannot be written.
    """
    rows = [
        dict(zip(_KEY_COLUMNS, (case, series, *astuple(identity)), strict=True))
        for (case, series), identity in sorted(found.identities.items())
    ]
    text = csv_text(_KEY_COLUMNS, rows)
    if path.exists() and not _is_key(path):
        raise UsageError(
            path, reason="it exists and is not a key", remedy="Give a new file to --key"
        )
    with atomic_path(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    return len(rows)


def _is_key(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.readline().rstrip() == ",".join(_KEY_COLUMNS).encode()
    except OSError:
        return False


def _list_dicom(
    input_path: Path, sequences: tuple[str, ...] | None, sequence_map: SequenceMap
) -> DicomDiscovery:
    files = find_dicom_files(walk_input(input_path))
    if not files.files:
        named = f" ({_impostors(files)})" if files.impostors else ""
        raise NoInputError(
            input_path,
            reason=f"there is no DICOM file{named}",
            remedy="Give a folder of DICOM files; their names do not matter",
        )
    found = _discover(files, sequences, sequence_map)
    sequence_map.warn_of_unused(input_path, used=found.used_keys)
    return found


def _discover(
    files: DicomFiles, sequences: tuple[str, ...] | None, sequence_map: SequenceMap
) -> DicomDiscovery:
    require_dicom()
    from sslmedsam2.dicom.discovery import discover

    return discover(files, sequences=sequences or PREDICTED_SEQUENCES, sequence_map=sequence_map)


def dicom_input_name(case: str, series: str) -> str:
    """Return the name in ``run_report.json`` of a DICOM series."""
    return f"{DICOM_SCHEME}{case}/{series}"


def dicom_series(named: NamedVolume) -> ImageFile:
    """Return a DICOM volume as an `ImageFile`.

    A volume without a sequence is a case of its own, like a file without a sequence name.
    """
    volume, sequence = named.volume, named.row.sequence
    case = volume.case if sequence else f"{volume.case}_{volume.series}"
    return ImageFile(case=case, vendor=None, sequence=sequence, path=Path(volume.name))


class InputImages:
    """Reads the images of a run by their input names in ``run_report.json``.

    ``input_path`` and ``only`` are those of the run: nothing else is unpacked or searched.
    """

    def __init__(self, input_path: Path, *, only: Sequence[Path] = ()) -> None:
        self._input_dir = input_path if input_path.is_dir() else input_path.parent
        self._archives = open_archives(input_path, only=only)

    def holds(self, input_name: str) -> bool:
        """Whether there is an image of this name; True for DICOM, which is not searched."""
        return (
            input_name.startswith(DICOM_SCHEME)
            or (self._input_dir / input_name).exists()
            or (self._opened.path / input_name).exists()
        )

    def read(self, input_name: str) -> Volume:
        """Read an image.

        Raises InputError: it does not exist or cannot be read; UsageError: it is DICOM, and the
        packages to read DICOM are not installed.
        """
        if not input_name.startswith(DICOM_SCHEME):
            path = self._input_dir / input_name
            # A file in an archive has no folder on the disk.
            if path.parent == self._input_dir or path.parent.is_dir():
                return read_volume(path)
            try:
                return read_volume(self._opened.path / input_name)
            except InputError as error:
                raise error.reworded(self._opened.shown) from error
        name = input_name.removeprefix(DICOM_SCHEME)
        volume = self._volumes.get(name)
        if volume is None:
            raise InputError(
                name,
                kind="missing_series",
                reason="there is no such DICOM volume",
                remedy="Give the input that the run was made from",
            )
        from sslmedsam2.dicom.reading import read_dicom

        return read_dicom(volume)

    @cached_property
    def _volumes(self) -> dict[str, DicomVolume]:
        require_dicom()
        from sslmedsam2.dicom.discovery import find_volumes

        opened = self._opened
        return find_volumes(find_dicom_files(walk_input(opened.path, opened.only)))

    @cached_property
    def _opened(self) -> OpenedInput:
        """The input with its archives unpacked, for the lifetime of this object."""
        return self._archives.__enter__()


def _impostors(files: DicomFiles) -> str:
    return f"{len(files.impostors)} files are named like DICOM and do not begin so"


def _beside(files: DicomFiles, studies: Discovery) -> Discovery:
    """Drop messages of the rules for files about DICOM files and the folders that hold them."""
    folders = {folder for path in files.files for folder in path.parents}
    named = {str(path) for path in files.files}
    return replace(
        studies,
        problems=tuple(
            problem
            for problem in studies.problems
            if not (problem.kind == "empty_case" and Path(problem.subject) in folders)
        ),
        left_out=tuple(one for one in studies.left_out if str(one.path) not in named),
        # If the rules for files find nothing, all their notes are about folders of DICOM files.
        notes=tuple(
            note
            for note in studies.notes
            if studies.series and note.partition(": ")[0] not in named
        ),
    )
