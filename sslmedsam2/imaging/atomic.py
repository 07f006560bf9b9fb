"""Atomic writes: a file is either complete or not there.

A file is written under a temporary name in its own folder and renamed when it is complete. A run
that is killed, or a full disk, leaves no partial file under a final name. Temporary names begin
with a dot, so that listings without hidden files skip them.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sslmedsam2.errors import OutputError

_REMEDIES = {
    errno.EACCES: "Make the output folder writable for the user that runs the program",
    errno.EPERM: "Make the output folder writable for the user that runs the program",
    errno.EROFS: "The file system is read-only: mount the output folder writable",
    errno.ENOSPC: "The disk is full: free space or choose another output folder",
    errno.EDQUOT: "The disk quota is used up: free space or choose another output folder",
    errno.EFBIG: "The file is larger than the system allows: raise the limit on file sizes",
    errno.ENOTDIR: "A part of the path is a file: choose another output folder",
    errno.EEXIST: "A part of the path is a file: choose another output folder",
    errno.EISDIR: "A folder has the name of the file to write: move it away",
    errno.ENAMETOOLONG: "Choose a shorter name",
}
_OTHER_REMEDY = "Check that the output folder exists, is writable and has free space"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path that becomes ``path`` if the block ends well, and vanishes if not.

    The temporary path lies in the same folder (made if missing) and keeps the name's extension,
    since image writers choose their format by it. Any ``OSError`` in the block is taken for a
    failed write: do nothing else in it.

    Raises
    ------
    OutputError
        If the folder or the file cannot be written.
    """
    partial = path.with_name(f".{uuid.uuid4().hex[:8]}.partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _to_disk(partial)
        partial.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        _remove_quietly(partial)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` whole or not at all; raises :class:`OutputError`."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_text_atomic(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` as UTF-8 whole or not at all; raises :class:`OutputError`."""
    write_bytes_atomic(path, content.encode("utf-8"))


def output_error(path: Path, error: OSError) -> OutputError:
    """Say in the project's words why ``path`` could not be written."""
    cause = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(
        path,
        reason=f"cannot be written ({cause})",
        remedy=_REMEDIES.get(error.errno or 0, _OTHER_REMEDY),
    )


def _to_disk(partial: Path) -> None:
    """Have the content on the disk before its name: a power cut leaves no empty file."""
    with partial.open("r+b") as file:
        os.fsync(file.fileno())


def _remove_quietly(partial: Path) -> None:
    """Remove a temporary file if it is there; a failure here must not hide the first error."""
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        # The folder itself is unreachable: the error already on its way says so.
        return
