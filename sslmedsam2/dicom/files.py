"""Find DICOM files by content, whatever their names.

Imports no DICOM package. Files that are named like volumes are not opened.
"""

from __future__ import annotations

import importlib
import logging
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.contract.walk import Tree
from sslmedsam2.errors import missing_packages

_PREAMBLE_BYTES = 128
_MARKER = b"DICM"
_START_BYTES = 1024
_ENOUGH_ELEMENTS = 4
_LONGEST_VALUE = 512
_LONG_KINDS = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"OD", b"OL", b"UC", b"UR")
_DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")


@dataclass(frozen=True)
class DicomFiles:
    """The DICOM files of a tree, sorted by path.

    Attributes
    ----------
    root
        The root of the tree.
    files
        Files that begin like DICOM, with or without a preamble.
    impostors
        Files with a DICOM name only: damaged, empty or unreadable.
    """

    root: Path
    files: tuple[Path, ...]
    impostors: tuple[Path, ...]


def find_dicom_files(tree: Tree) -> DicomFiles:
    """Find the DICOM files of an input."""
    others = sorted(path for folder in tree.folders for path in folder.others)
    files = tuple(path for path in others if _is_dicom(path))
    named = [path for path in others if path.suffix.lower() in _DICOM_SUFFIXES]
    return DicomFiles(tree.root, files, tuple(path for path in named if path not in set(files)))


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError:
        return False
    has_marker = start[_PREAMBLE_BYTES : _PREAMBLE_BYTES + len(_MARKER)] == _MARKER
    return has_marker or _begins_with_elements(start)


def _begins_with_elements(start: bytes) -> bool:
    """Return whether a file begins with data elements of group 2 or 8, in ascending order.

    These are data sets without the preamble of 128 bytes. Only little endian is recognised.
    """
    place, last, count = 0, (0, 0), 0
    while place + 12 <= len(start) and count < _ENOUGH_ELEMENTS:
        group, element = struct.unpack_from("<HH", start, place)
        tag = (group, element)
        if group not in (2, 8) or (count and tag <= last):
            return False
        kind = start[place + 4 : place + 6]
        if kind in _LONG_KINDS:
            [length] = struct.unpack_from("<I", start, place + 8)
            place += 12
        elif kind.isalpha() and kind.isupper():
            [length] = struct.unpack_from("<H", start, place + 6)
            place += 8
        else:
            [length] = struct.unpack_from("<I", start, place + 4)
            place += 8
        if length % 2 or length > _LONGEST_VALUE:
            return False
        place += length
        last, count = tag, count + 1
    return count >= _ENOUGH_ELEMENTS


_PACKAGES = ("pydicom", "highdicom")


def require_dicom() -> None:
    """Import pydicom and highdicom and silence their messages, which may identify patients.

    Raises UsageError: one of them is not installed.
    """
    try:
        for package in _PACKAGES:
            importlib.import_module(package)
    except ImportError as error:
        raise missing_packages("DICOM", *_PACKAGES) from error
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=rf"{package}(\..*)?$")
