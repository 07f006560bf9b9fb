"""Lines and numbers of the text headers of MetaImage and NRRD, and the file that holds the voxels.

A header is read line by line up to a fixed size. Numbers are plain ASCII decimals: what Python
would take beyond that (``1_0``, other digits) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.stored import missing_data_file, unreadable_header

MAX_AXES = 10
"""More axes than this are a damaged header."""

_MAX_HEADER_BYTES = 2**20
_MAX_WHOLE_DIGITS = 18
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?|[+-]?(nan|inf)", re.I)
_SHOWN_CHARACTERS = 60


def header_lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Give the lines of a header without their ends, until the file ends.

    The position of ``file`` is then behind the line that was given last.

    Raises
    ------
    InputError
        Of kind ``unreadable_header`` if the header does not end within 1 MiB.
    """
    left = _MAX_HEADER_BYTES
    while line := file.readline(left):
        left -= len(line)
        if left <= 0:
            raise unreadable_header(path, f"the header is longer than {_MAX_HEADER_BYTES} bytes")
        yield line.decode("latin-1").rstrip("\r\n")


def whole_number(path: Path, key: str, text: str) -> int:
    """Parse a whole number, or raise :class:`InputError` of kind ``unreadable_header``."""
    if not _WHOLE.fullmatch(text) or len(text) > _MAX_WHOLE_DIGITS:
        raise _not_numbers(path, key, text, "a whole number")
    return int(text)


def whole_numbers(path: Path, key: str, text: str, *, count: int) -> tuple[int, ...]:
    """Parse exactly ``count`` whole numbers that white space separates."""
    return tuple(whole_number(path, key, word) for word in _words(path, key, text, count))


def numbers(path: Path, key: str, text: str, *, count: int) -> list[float]:
    """Parse exactly ``count`` numbers that white space separates; NaN and infinity are numbers."""
    words = _words(path, key, text, count)
    if not all(_NUMBER.fullmatch(word) for word in words):
        raise _not_numbers(path, key, text, "numbers")
    return [float(word) for word in words]


def _words(path: Path, key: str, text: str, count: int) -> list[str]:
    words = text.split()
    if len(words) != count:
        raise _not_numbers(path, key, text, f"{count} numbers")
    return words


def _not_numbers(path: Path, key: str, text: str, what: str) -> InputError:
    shown = text[:_SHOWN_CHARACTERS]
    return unreadable_header(path, f"{key} is {shown!r} where {what} should be")


def data_file(header: Path, name: str) -> Path:
    """Return the file beside a header that holds its voxels.

    Raises
    ------
    InputError
        Of kind ``data_file_elsewhere`` if the name, or a symbolic link, leads out of the header's
        folder, whether or not a file is there; of kind ``missing_data_file`` if there is none.
    """
    # A header that is a link may have its data beside the link or beside the file.
    folders = {header.parent.resolve(), header.resolve().parent}
    name = name.replace("\0", "")
    target = (header.parent / name).resolve()
    is_inside = any(target != one and target.is_relative_to(one) for one in folders)
    if not is_inside or name.startswith("/") or ".." in Path(name).parts:
        raise InputError(
            header,
            kind="data_file_elsewhere",
            reason=f"the data file {name[:_SHOWN_CHARACTERS]!r} is not in the folder of the header",
            remedy="Put the data file beside the header and write its name alone into the header",
        )
    if not target.is_file():
        raise missing_data_file(header, name[:_SHOWN_CHARACTERS])
    return target
