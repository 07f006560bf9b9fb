"""Zip archives of an input, opened as folders of the same name.

They are unpacked into a temporary folder that mirrors the input: everything else in it is a link,
so that all rules of this package see one tree in which ``scan.zip`` is a folder. An archive with
unsafe members is refused as a whole, before anything is written.
"""

from __future__ import annotations

import errno
import logging
import lzma
import os
import shutil
import signal
import stat
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import IO, Final

from sslmedsam2.contract.folder_rules import folder_name
from sslmedsam2.contract.names import is_hidden
from sslmedsam2.contract.walk import leads_above, walk
from sslmedsam2.errors import InputError, SslMedSam2Error
from sslmedsam2.imaging.atomic import output_error
from sslmedsam2.imaging.formats import ARCHIVE_SUFFIX

logger = logging.getLogger(__name__)

_MOST_MEMBERS: Final = 100_000
_MOST_BYTES: Final = 64 * 10**9
"""Largest unpacked size of all archives of an input together."""
_LARGEST_RATIO: Final = 250
"""Largest ratio of unpacked to packed bytes, for archives larger than `_SMALL_BYTES` unpacked."""
_SMALL_BYTES: Final = 10**9
_ENCRYPTED: Final = 0x1
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


@dataclass(frozen=True)
class OpenedInput:
    """An input whose archives are folders.

    Attributes
    ----------
    path, only
        Paths to read instead of the given ones; the same paths without an archive.
    unpacked
        The folders of the unpacked archives.
    problems
        An error for each archive that cannot be used.
    given
        The given input; None without an archive.
    """

    path: Path
    only: tuple[Path, ...] = ()
    unpacked: tuple[Path, ...] = ()
    problems: tuple[InputError, ...] = ()
    given: Path | None = None

    def shown(self, text: str) -> str:
        """Return a message with the given paths instead of temporary ones."""
        return text if self.given is None else text.replace(str(self.path), str(self.given))


@contextmanager
def open_archives(
    input_path: Path, *, only: Sequence[Path] = (), temporary: Path | None = None
) -> Iterator[OpenedInput]:
    """Unpack zip archives while the context is open: those below an input, or the input itself.

    Archives in archives are not unpacked. Errors that leave the context name the given paths.
    SIGTERM raises SystemExit, unless it has another handler.

    Parameters
    ----------
    only
        The files and folders of the input to use; empty for all.
    temporary
        Folder for the temporary folder; None for the default of the system.

    Raises OutputError: the temporary folder cannot be written.
    """
    # Unlike those of pathlib, these do not raise for a path in a closed folder.
    if os.path.isfile(input_path) and _is_archive(input_path):  # noqa: PTH113
        root, only = input_path.parent, (input_path,)
    else:
        root = input_path
    archives = _find(root, only)
    if not archives:
        yield OpenedInput(input_path, tuple(only))
        return
    if temporary is not None:
        temporary.mkdir(parents=True, exist_ok=True)
    with (
        _unwound_by_sigterm(),
        tempfile.TemporaryDirectory(prefix=".unpacked-", dir=temporary) as folder,
    ):
        copy = Path(folder) / folder_name(root)
        try:
            sizes, problems = _checked(archives, free=shutil.disk_usage(folder).free)
            _mirror(root, copy, archives, only=() if root in only else only)
            unpacked = []
            for archive, size in sizes.items():
                logger.info("unpacking %s (%.1f MB)", archive, size / 1e6)
                target = copy / archive.relative_to(root)
                try:
                    _unpack(archive, target)
                except InputError as error:
                    problems.append(error)
                    shutil.rmtree(target)
                else:
                    unpacked.append(target)
        except OSError as error:
            raise output_error(Path(folder), error) from error
        opened = OpenedInput(
            path=copy,
            only=tuple(copy / one.relative_to(root) for one in only),
            unpacked=tuple(unpacked),
            problems=tuple(_moved(problem, root, copy) for problem in problems),
            given=root,
        )
        try:
            yield opened
        except SslMedSam2Error as error:
            raise error.reworded(opened.shown) from error


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM leave the context as an error does: images of patients must not stay behind."""

    def is_main() -> bool:
        return threading.current_thread() is threading.main_thread()

    if not is_main() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def leave(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise SystemExit(128 + number)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        # An unfinished context is closed later, in any thread.
        if is_main() and signal.getsignal(signal.SIGTERM) is leave:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _moved(problem: InputError, root: Path, copy: Path) -> InputError:
    """Return a problem of an archive with its path in the copy, like all other paths."""
    archive = Path(problem.subject)
    return InputError(
        copy / archive.relative_to(root),
        kind=problem.kind,
        reason=problem.reason,
        remedy=problem.remedy,
    )


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIX)


def _find(root: Path, only: Sequence[Path]) -> list[Path]:
    if not os.path.isdir(root):  # noqa: PTH112
        return []
    folders = walk(root, only=only).folders
    found = [path for folder in folders for path in folder.others if _is_archive(path)]
    # A file comes before links to it.
    return sorted(found, key=lambda path: (os.path.islink(path), path))  # noqa: PTH114


def _mirror(real: Path, copy: Path, archives: Sequence[Path], *, only: Sequence[Path]) -> None:
    """Create ``copy`` as a folder of links to the entries of ``real``, without the archives."""
    copy.mkdir()
    inside = {archive.relative_to(real).parts for archive in archives if archive != real}
    wanted = [one.relative_to(real).parts for one in only if one != real]
    for entry in real.iterdir():
        name = entry.name
        if wanted and not any(parts[0] == name for parts in wanted):
            continue
        if leads_above(entry):
            logger.info("%s: leads to a folder that holds the input; skipped", entry)
            continue
        below = [entry.joinpath(*parts[1:]) for parts in inside if parts[0] == name]
        if below == [entry]:
            continue
        if below:
            deeper = [entry.joinpath(*parts[1:]) for parts in wanted if parts[0] == name]
            _mirror(entry, copy / name, below, only=[] if entry in deeper else deeper)
        else:
            (copy / name).symlink_to(entry.absolute())


def _checked(archives: Sequence[Path], *, free: int) -> tuple[Mapping[Path, int], list[InputError]]:
    """Return the unpacked size of each usable archive, and the errors of the others."""
    sizes: dict[Path, int] = {}
    problems = []
    seen: dict[Path, Path] = {}
    for archive in archives:
        first = seen.setdefault(archive.resolve(), archive)
        if first != archive:
            logger.info("%s: leads to %s, which is opened already; skipped", archive, first)
            continue
        try:
            sizes[archive] = _check(archive, room=min(free, _MOST_BYTES) - sum(sizes.values()))
        except InputError as error:
            problems.append(error)
    return sizes, problems


def _check(archive: Path, *, room: int) -> int:
    """Return the unpacked size of an archive; raise InputError if it is damaged or unsafe."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise _damaged(archive, error) from error
    if len(members) > _MOST_MEMBERS:
        raise _refused(archive, "large_archive", f"it holds more than {_MOST_MEMBERS} files")
    places: set[PurePosixPath] = set()
    for member in members:
        place = _place(member)
        fault = None
        if not member.filename:
            fault = "a file without a name"
        elif place.is_absolute() or ".." in place.parts or ":" in str(place)[:2]:
            fault = "a file that would be written elsewhere"
        elif stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            fault = "a link or a device"
        elif place in places and not member.is_dir():
            fault = "two files of one name"
        if fault:
            reason = f"it holds {fault} ({member.filename[:60]!r})"
            raise _refused(archive, "unsafe_archive", reason)
        places.add(place)
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise _refused(archive, "encrypted_archive", "it is encrypted")
    size = sum(member.file_size for member in members)
    packed = archive.stat().st_size
    if sum(member.compress_size for member in members) > packed or (
        size > max(_SMALL_BYTES, _LARGEST_RATIO * packed)
    ):
        reason = f"{packed / 1e6:.1f} MB would become {size / 1e6:.0f} MB: no scan is packed so"
        raise _refused(archive, "unsafe_archive", reason)
    if size > room:
        reason = f"unpacked it needs {size / 1e9:.1f} GB, and there is room for {room / 1e9:.1f} GB"
        raise _refused(archive, "large_archive", reason)
    return size


def _place(member: zipfile.ZipInfo) -> PurePosixPath:
    """Return the relative path of a member; some programs write Windows separators."""
    return PurePosixPath(member.filename.replace("\\", "/"))


def _unpack(archive: Path, target: Path) -> None:
    """Write the members of a checked archive, except hidden ones, into a new folder.

    Raises InputError: a member is damaged; OSError: the disk is full.
    """
    target.mkdir()
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            place = _place(member)
            if member.is_dir() or any(map(is_hidden, place.parts)):
                continue
            path = target / place
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                to = path.open("xb")
            except OSError as error:
                if error.errno in _FULL:
                    raise
                reason = (
                    f"a file of it cannot be written ({member.filename[:60]!r}: {error.strerror})"
                )
                raise _refused(archive, "unsafe_archive", reason) from error
            with to:
                try:
                    source = file.open(member)
                # A wrong offset of a member raises OSError or ValueError.
                except (zipfile.BadZipFile, RuntimeError, OSError, ValueError) as error:
                    raise _damaged(archive, error) from error
                with source:
                    _copy(source, to, archive)


def _copy(source: IO[bytes], to: IO[bytes], archive: Path) -> None:
    while True:
        try:
            part = source.read(2**20)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            raise _damaged(archive, error) from error
        if not part:
            return
        to.write(part)


def _damaged(archive: Path, error: Exception) -> InputError:
    return InputError(
        archive,
        kind="damaged_archive",
        reason=f"the archive cannot be read ({' '.join(str(error).split())[:100]})",
        remedy="Copy it again, or unpack it and give the folder",
    )


def _refused(archive: Path, kind: str, reason: str) -> InputError:
    return InputError(
        archive, kind=kind, reason=reason, remedy="Unpack it yourself and give the folder"
    )
