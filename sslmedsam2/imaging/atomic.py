"""Atomic writes: a file is either complete or does not exist.

A file is written under a temporary name in its own folder and renamed when it is complete. A run
that is killed, or a full disk, leaves no partial file under a final name. Temporary names begin
with a dot, so that listings without hidden files skip them.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

from sslmedsam2.errors import OutputError, UsageError

logger = logging.getLogger(__name__)

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
_PARTIAL = ".partial-"
_OTHER_REMEDY = "Check that the output folder exists, is writable and has free space"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path that is renamed to ``path`` at the end, or removed after an error.

    The temporary file lies in the same folder (created if missing) and has the same extension,
    because image writers choose the format by it. Any ``OSError`` in the block counts as a failed
    write, so do nothing else in it.

    Raises OutputError: the folder or the file cannot be written.
    """
    partial = path.with_name(f".{uuid.uuid4().hex[:8]}{_PARTIAL}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _to_disk(partial)
        partial.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        _remove_quietly(partial)


@contextmanager
def locked(folder: Path, name: str = ".lock", *, what: str = "writing there") -> Iterator[None]:
    """Keep other processes, also on other machines, from doing ``what`` in ``folder``.

    The lock belongs to the process: it ends with it, forked processes do not inherit it, and it
    does not exclude other threads. Its file is removed at the end.

    Raises UsageError: another process has the lock; OutputError: the folder cannot be written.
    """
    path = folder / name
    if fcntl is None:
        logger.debug("there are no file locks on this system")
        yield
        return
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = _lock(path, what)
        # The former holder may have removed the file that was opened here.
        while not _is_same_file(stream, path):
            stream.close()
            stream = _lock(path, what)
    except OSError as error:
        raise output_error(folder, error) from error
    with stream:
        try:
            yield
        finally:
            _remove_quietly(path)
            if is_new:
                with suppress(OSError):
                    folder.rmdir()


def _lock(path: Path, what: str) -> TextIO:
    stream = path.open("a", encoding="utf-8")
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        stream.close()
        raise UsageError(
            path.parent,
            reason=f"another process is {what}",
            remedy="Wait until it ends, or stop it; then run the same command again",
        ) from error
    except OSError as error:
        logger.warning("%s: no file locks here (%s)", path.parent, error.strerror)
    return stream


def _is_same_file(stream: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def remove_partials(folder: Path, *, below: bool = True) -> None:
    """Remove partial files of killed runs in a folder, where no other process may write.

    ``below``: also in all folders below it.
    """
    pattern = f".*{_PARTIAL}*"
    for path in folder.rglob(pattern) if below else folder.glob(pattern):
        if path.name.partition(_PARTIAL)[0].removeprefix(".").isalnum() and path.is_file():
            _remove_quietly(path)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` whole or not at all; raises :class:`OutputError`."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_text_atomic(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` as UTF-8 whole or not at all; raises :class:`OutputError`."""
    write_bytes_atomic(path, content.encode("utf-8"))


def check_writable(folder: Path) -> None:
    """Raise OutputError unless files can be written in a folder, which is made if needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise output_error(folder, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """Return an OutputError that says why ``path`` could not be written."""
    cause = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(
        path,
        reason=f"cannot be written ({cause})",
        remedy=_REMEDIES.get(error.errno or 0, _OTHER_REMEDY),
    )


def _to_disk(partial: Path) -> None:
    """Flush the content to disk before the rename: a power cut must not leave an empty file."""
    with partial.open("r+b") as file:
        os.fsync(file.fileno())


def _remove_quietly(partial: Path) -> None:
    """Remove a temporary file if it is there; a failure here must not hide the first error."""
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        # The folder itself is unreachable: the error already on its way says so.
        return
