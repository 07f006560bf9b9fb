"""Lines and numbers of the text headers of MetaImage and NRRD, and the file that holds the voxels.

A header is read line by line up to a fixed size. Numbers are plain ASCII decimals: what Python
would take beyond that (``1_0``, other digits) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.stored import image_error, unreadable_header

# More are a damaged header.
_MAX_AXES = 10
_MAX_HEADER_BYTES = 2**20
_MAX_WHOLE_DIGITS = 18
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?|[+-]?(nan|inf)", re.I)
_SHOWN_CHARACTERS = 60


def header_lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Give the lines of a header without their ends, until the file ends.

    The position of ``file`` is then behind the line that was given last.

    Raises InputError: of kind ``unreadable_header`` if the header does not end within 1 MiB.
    """
    left = _MAX_HEADER_BYTES
    while line := file.readline(left):
        left -= len(line)
        if left <= 0:
            raise unreadable_header(path, f"the header is longer than {_MAX_HEADER_BYTES} bytes")
        yield line.decode("latin-1").rstrip("\r\n")


def check_fields(path: Path, fields: Mapping[str, str], *names: str) -> None:
    """Refuse a header without one of the fields (kind ``unreadable_header``)."""
    for name in names:
        if name not in fields:
            raise unreadable_header(path, f"the header has no field {name!r}")


def number_of_axes(path: Path, key: str, text: str) -> int:
    """Parse how many axes an image has, or raise InputError of kind ``unreadable_header``."""
    axes = whole_number(path, key, text)
    if not 1 <= axes <= _MAX_AXES:
        raise unreadable_header(path, f"the header announces {axes} axes")
    return axes


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

    Raises InputError: ``unreadable_header``: the name stands for several files.
    ``data_file_elsewhere``: it, or a symbolic link, leads out of the header's folder, whether or
    not a file is there. ``missing_data_file``: there is none.
    """
    if name.startswith("LIST") or "%" in name:
        raise unreadable_header(header, "its voxels lie in several files, which is not read")
    # A header that is a link may have its data beside the link or beside the file.
    folders = {header.parent.resolve(), header.resolve().parent}
    name = name.replace("\0", "")
    target = (header.parent / name).resolve()
    is_inside = any(target != one and target.is_relative_to(one) for one in folders)
    shown = repr(name[:_SHOWN_CHARACTERS])
    if not is_inside or name.startswith("/") or ".." in Path(name).parts:
        reason = f"the data file {shown} is not in the folder of the header"
        raise image_error(header, "data_file_elsewhere", reason)
    if not target.is_file():
        reason = f"the data file {shown} of the header is not there"
        raise image_error(header, "missing_data_file", reason)
    return target
