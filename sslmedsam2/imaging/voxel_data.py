"""Read stored voxels as float32, decompressed in parts into the final array.

Reading needs little more memory than the float32 volume. Sizes in a header are not trusted: data
that the file cannot contain is refused before memory is allocated for it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.stored import image_error, unreadable_header
from sslmedsam2.imaging.volume import ArrayZYX

LARGEST_DEFLATE_RATIO = 1032
"""Largest compression ratio of Deflate."""

Compression = Literal["", "gzip", "zlib", "bzip2"]
"""Compression of the voxels; ``zlib`` also reads gzip."""

# What lies before the voxels has to be decompressed too.
_LARGEST_SKIP = 2**26
_PART_VOXELS = 2**18
_PART_BYTES = 2**16
_AUTODETECT_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS


class _ZlibStream(io.RawIOBase):
    """Reads the content of a zlib or gzip stream from the current position of a file.

    Raises EOFError if the file ends within the stream, and ``zlib.error`` if it is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(_AUTODETECT_ZLIB_OR_GZIP)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        inflated = b""
        while buffer and not inflated and not self._inflater.eof:
            part = self._inflater.unconsumed_tail or self._file.read(_PART_BYTES)
            if not part:
                raise EOFError
            inflated = self._inflater.decompress(part, len(buffer))
        buffer[: len(inflated)] = inflated
        return len(inflated)


def decompressed(file: BinaryIO, compression: Compression) -> BinaryIO:
    """Return a stream of the content from the current position of a file."""
    if compression == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    if compression == "bzip2":
        return cast(BinaryIO, bz2.BZ2File(file))
    return cast(BinaryIO, _ZlibStream(file)) if compression == "zlib" else file


def truncated(path: Path) -> InputError:
    """Return the error of a file that ends before its last voxel."""
    reason = "the file ends before the last voxel that its header announces"
    return image_error(path, "truncated_data", reason)


@contextmanager
def damage_as_input_error(path: Path) -> Iterator[None]:
    """Convert errors of decompression to InputError (``truncated_data``, ``corrupt_data``).

    Errors of the operating system, which have a number, are not converted.
    """
    try:
        yield
    except EOFError as error:
        raise truncated(path) from error
    except (zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = f"the compressed data is damaged ({error})"
        raise image_error(path, "corrupt_data", reason) from error


def read_voxels(
    path: Path,
    file: BinaryIO,
    *,
    shape_zyx: tuple[int, ...],
    dtype: np.dtype,
    compression: Compression = "",
    start: int | None = 0,
    skip: int = 0,
    slope: float = 1.0,
    intercept: float = 0.0,
) -> tuple[ArrayZYX, bool]:
    """Read an array from a file; also return whether other bytes follow.

    Parameters
    ----------
    path
        The file to name in errors.
    shape_zyx
        May have further axes; the last one is the fastest in the file.
    start
        Where the data begin, compressed or not; None if the voxels are the last bytes of a file
        that is not compressed.
    skip
        Bytes of the content before the first voxel.
    slope, intercept
        Each voxel is ``stored * slope + intercept``.

    Raises InputError: of kind ``truncated_data``, ``corrupt_data`` or ``unreadable_header``.
    """
    n_bytes = math.prod(shape_zyx) * dtype.itemsize
    size = os.fstat(file.fileno()).st_size
    if start is None:
        start = max(size - n_bytes, 0)
    with damage_as_input_error(path):
        largest = size - start
        if compression == "bzip2" and skip <= _LARGEST_SKIP:
            # The ratio of bzip2 has no bound, so the size is known only after decompression.
            file.seek(start)
            largest = bz2.BZ2File(file).seek(skip + n_bytes)
        elif compression:
            largest *= LARGEST_DEFLATE_RATIO
        if skip + n_bytes > largest:
            raise truncated(path)
        if skip > _LARGEST_SKIP:
            raise unreadable_header(path, f"the header says that the voxels begin at byte {skip}")
        file.seek(start)
        stream = decompressed(file, compression)
        if skip:
            stream.seek(skip, os.SEEK_CUR)
        voxels = np.empty(shape_zyx, dtype=np.float32)
        flat = voxels.reshape(-1)
        buffer = np.empty(min(_PART_VOXELS, flat.size), dtype=dtype)
        # A double outside the range of float32 becomes infinite, as the caller expects.
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, flat.size, buffer.size):
                part = flat[first : first + buffer.size]
                stored = buffer[: part.size]
                _fill(stream, stored.view(np.uint8).data)
                part[:] = stored
                if slope != 1:
                    part *= np.float32(slope)
                if intercept != 0:
                    part += np.float32(intercept)
        return voxels, _has_trailing_bytes(stream)


def _fill(stream: BinaryIO, buffer: memoryview) -> None:
    """Read until the buffer is full."""
    filled = 0
    while filled < len(buffer):
        count = cast(gzip.GzipFile, stream).readinto(buffer[filled:])
        if not count:
            raise EOFError
        filled += count


def _has_trailing_bytes(stream: BinaryIO) -> bool:
    """Read to the end of the compressed data, so that gzip and zlib verify the checksum."""
    try:
        stream.read(1)
    except gzip.BadGzipFile as error:
        # gzip(1) ignores it too. A wrong checksum says so in other words.
        if "Not a gzipped file" not in str(error):
            raise
        return True
    return False
