"""Stored voxels to float32, decompressed in parts into the final array.

Reading needs the float32 volume and little more, whatever the stored type. No size is taken from
a header on trust: what the file cannot hold is refused before memory is taken for it.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.stored import corrupt, truncated
from sslmedsam2.imaging.volume import ArrayZYX

LARGEST_DEFLATE_RATIO = 1032
"""Deflate cannot shrink anything further than this."""

_PART_VOXELS = 2**18
_PART_BYTES = 2**16
_AUTODETECT_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS


class ZlibStream(io.RawIOBase):
    """The content of a zlib or gzip stream that begins where a file stands, for reading.

    Raises
    ------
    EOFError
        The file ends within the stream.
    zlib.error
        The stream is damaged, or its checksum is wrong.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Begin at the position of ``file``."""
        self._file = file
        self._inflater = zlib.decompressobj(_AUTODETECT_ZLIB_OR_GZIP)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a part of a buffer of bytes; return how many, 0 at the end of the stream."""
        inflated = b""
        while buffer and not inflated and not self._inflater.eof:
            part = self._inflater.unconsumed_tail or self._file.read(_PART_BYTES)
            if not part:
                raise EOFError
            inflated = self._inflater.decompress(part, len(buffer))
        buffer[: len(inflated)] = inflated
        return len(inflated)


def refuse_impossible_size(path: Path, *, announced: int, stored: int, ratio: int = 1) -> None:
    """Refuse a header that announces more bytes than ``stored`` ones can hold, compressed or not.

    Raises
    ------
    InputError
        Of kind ``truncated_data``.
    """
    if announced > stored * ratio:
        raise truncated(path)


def read_voxels(
    path: Path,
    stream: BinaryIO,
    *,
    shape_zyx: tuple[int, ...],
    dtype: np.dtype,
    slope: float = 1.0,
    intercept: float = 0.0,
) -> tuple[ArrayZYX, bool]:
    """Read an array, and whether something else follows the compressed data.

    ``shape_zyx`` may have further axes: its last one is the fastest in the stream. Each voxel is
    ``stored * slope + intercept``.

    Raises
    ------
    InputError
        Of kind ``truncated_data`` or ``corrupt_data``.
    """
    voxels = np.empty(shape_zyx, dtype=np.float32)
    flat = voxels.reshape(-1)
    buffer = np.empty(min(_PART_VOXELS, flat.size), dtype=dtype)
    try:
        # A double may lie beyond float32's range; it becomes infinite, as the caller expects.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, flat.size, buffer.size):
                part = flat[start : start + buffer.size]
                stored = buffer[: part.size]
                _fill(stream, stored.view(np.uint8).data)
                part[:] = stored
                if slope != 1:
                    part *= np.float32(slope)
                if intercept != 0:
                    part += np.float32(intercept)
        return voxels, _has_trailing_bytes(stream)
    except (EOFError, zlib.error, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: EOFError | zlib.error | OSError) -> InputError | OSError:
    """Return what to raise for an error of reading compressed data.

    ``truncated_data`` or ``corrupt_data``; an error of the system, which has a number, unchanged.
    """
    if isinstance(error, EOFError):
        return truncated(path)
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return corrupt(path, error)


def _fill(stream: BinaryIO, buffer: memoryview) -> None:
    """Read until the buffer is full."""
    filled = 0
    while filled < len(buffer):
        count = cast(gzip.GzipFile, stream).readinto(buffer[filled:])
        if not count:
            raise EOFError
        filled += count


def _has_trailing_bytes(stream: BinaryIO) -> bool:
    """Read on to the end of the compressed data, which makes gzip and zlib compare the checksum."""
    try:
        stream.read(1)
    except gzip.BadGzipFile as error:
        # gzip(1) ignores it too. A wrong checksum says so in other words.
        if "Not a gzipped file" not in str(error):
            raise
        return True
    return False
