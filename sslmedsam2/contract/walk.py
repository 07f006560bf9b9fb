"""Walk an input folder: any depth, each real folder once, no hidden files, no fatal error.

An output folder among the scans is recognised by its ``run_report.json``.

Paths are asked through `os.path`: pathlib raises where a link leads into a closed folder.
"""

# ruff: noqa: PTH110, PTH112, PTH113, PTH114

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sslmedsam2.contract.names import VOLUME_SUFFIXES, is_hidden, split_volume_name
from sslmedsam2.contract.outputs import PREDICTION_FOLDER, SEG_FOLDER, report_path
from sslmedsam2.errors import InputError, NoInputError
from sslmedsam2.imaging.formats import ARCHIVE_SUFFIX

_OWN_FOLDERS = frozenset({PREDICTION_FOLDER.lower(), SEG_FOLDER})
_CLOSED = "may not be read: this user may not enter a folder on the way"
_OPEN_IT = "Make it readable for the user that runs the program"


@dataclass(frozen=True)
class Folder:
    """The entries of one folder, sorted by name.

    Attributes
    ----------
    path
        The folder.
    volumes
        Regular files whose names end like volumes.
    others
        Other regular files.
    oddities
        One error for each entry that is named like a volume but is no file: a broken link, a link
        into a closed folder, a folder, a pipe.
    """

    path: Path
    volumes: tuple[Path, ...]
    others: tuple[Path, ...]
    oddities: tuple[InputError, ...]


@dataclass(frozen=True)
class Tree:
    """All folders below ``root`` that could be read, by path, with the errors."""

    root: Path
    folders: tuple[Folder, ...]
    problems: tuple[InputError, ...]
    notes: tuple[str, ...]


def walk_input(path: Path, only: Sequence[Path] = ()) -> Tree:
    """List an input, a folder or a single file, without results of this program.

    Raises NoInputError: the path does not exist or may not be read.
    """
    if os.path.isdir(path):
        return walk(path, only=only, skip_results=True)
    if _is_closed(path):
        raise NoInputError(path, reason=_CLOSED, remedy=_OPEN_IT)
    if not os.path.isfile(path):
        raise NoInputError(
            path,
            reason="does not exist",
            remedy=f"Give a folder, or a file that ends in {', '.join(VOLUME_SUFFIXES)}",
        )
    return Tree(path.parent, folders=(_folder_of(path.parent, [path]),), problems=(), notes=())


def require_folder(path: Path) -> None:
    """Raise NoInputError if a path is no folder: missing, closed, an archive or another file."""
    if os.path.isdir(path):
        return
    reason, remedy = "there is no such folder", "Check the path"
    if _is_closed(path):
        reason, remedy = _CLOSED, _OPEN_IT
    elif os.path.isfile(path):
        reason, remedy = "it is a file", "Give the folder that holds the images"
        if path.name.lower().endswith(ARCHIVE_SUFFIX):
            reason, remedy = "it is an archive, which is not opened here", "Unpack it first"
    raise NoInputError(path, reason=reason, remedy=remedy)


def walk(root: Path, *, only: Sequence[Path] = (), skip_results: bool = False) -> Tree:
    """List ``root`` and everything below it, or ``only`` these files and folders below it.

    A folder that can be reached in several ways is listed once, preferably under its real path,
    so that links in a circle end; links that lead above ``root`` are not followed.
    ``skip_results`` leaves out the folders ``LiSeg_pred`` and ``dicom_seg``, and the files that a
    ``run_report.json`` lists as written.
    """
    folders: list[Folder] = []
    problems: list[InputError] = []
    notes: list[str] = []
    results: set[Path] = set()
    seen: dict[tuple[int, int], Path] = {}
    above = {_identity_of(parent) for parent in root.resolve().parents}
    starts = [path for path in only if os.path.isdir(path)] if only else [root]
    waiting, linked = deque(starts), deque[Path]()
    while waiting or linked:
        # Links wait until all real folders are listed: a case is named by its real folder.
        path = waiting.popleft() if waiting else linked.popleft()
        try:
            identity = _identity_of(path)
            # Below the mirror of an input with archives, only a link itself tells what is above.
            if identity in above or leads_above(path):
                notes.append(f"{path}: leads to a folder that holds the input; skipped")
                continue
            known = seen.setdefault(identity, path)
            if known != path:
                notes.append(f"{path}: leads to {known}, which is listed already; skipped")
                continue
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(_unreadable(path, error))
            continue
        if skip_results:
            results |= _results_in(path)
        entries = [
            entry
            for entry in entries
            if not is_hidden(entry.name) and path / entry.name not in results
        ]
        folders.append(_list_folder(path, entries))
        for entry in entries:
            # A folder named like a volume is reported instead.
            is_open = split_volume_name(entry.name) is None and _is(entry.is_dir)
            is_own = skip_results and entry.name.lower() in _OWN_FOLDERS
            if is_open and not is_own:
                (linked if entry.is_symlink() else waiting).append(path / entry.name)
    listed = {folder.path for folder in folders}
    files: dict[Path, set[Path]] = defaultdict(set)
    for path in only:
        if os.path.isfile(path) and path.parent not in listed:
            files[path.parent].add(path)
    folders += [_folder_of(path, sorted(found)) for path, found in files.items()]
    folders.sort(key=lambda folder: folder.path)
    return Tree(root=root, folders=tuple(folders), problems=tuple(problems), notes=tuple(notes))


def _results_in(folder: Path) -> frozenset[Path]:
    """Return the files that a run wrote, if its report is in this folder."""
    try:
        series = json.loads(report_path(folder).read_bytes())["series"]
        written = [
            name
            for one in series
            for name in (
                *(one["output_path"], one.get("dicom_seg_path"), one.get("preview_path")),
                *one.get("map_paths", ()),
            )
        ]
        return frozenset(folder / name for name in written if name is not None)
    # Any file may have this name; json raises RecursionError for one that is nested deeply.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return frozenset()


def leads_above(path: Path) -> bool:
    """Return whether a path is a link to a folder that holds it."""
    if not os.path.islink(path):
        return False
    # Unlike Path.resolve, this takes a link in a circle.
    folder, target = (Path(os.path.realpath(one)) for one in (path.parent, path))
    return folder.is_relative_to(target)


def _identity_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _list_folder(path: Path, entries: list[os.DirEntry[str]]) -> Folder:
    files = [path / entry.name for entry in entries if _is(entry.is_file)]
    rest = [path / entry.name for entry in entries if not _is(entry.is_file)]
    oddities = tuple(_oddity(entry) for entry in rest if split_volume_name(entry.name))
    return replace(_folder_of(path, files), oddities=oddities)


def _folder_of(path: Path, files: list[Path]) -> Folder:
    volumes = tuple(file for file in files if split_volume_name(file.name))
    others = tuple(file for file in files if not split_volume_name(file.name))
    return Folder(path=path, volumes=volumes, others=others, oddities=())


def _is(kind: Callable[[], bool]) -> bool:
    """Call ``is_dir`` or ``is_file`` of an entry; False if it cannot be read."""
    try:
        return kind()
    except OSError:
        return False


def _oddity(path: Path) -> InputError:
    """Describe an entry named like a volume that cannot be opened as a file."""
    if _is_closed(path):
        return InputError(path, kind="permission_denied", reason=_CLOSED, remedy=_OPEN_IT)
    if os.path.isdir(path):
        return InputError(
            path,
            kind="folder_as_volume",
            reason="is a folder though it is named like a volume",
            remedy="Move the file inside it up one level",
        )
    if os.path.islink(path) and not os.path.exists(path):
        return InputError(
            path,
            kind="broken_link",
            reason="is a link that leads nowhere",
            remedy="Mount or copy the folder the link points to",
        )
    return InputError(
        path,
        kind="not_a_file",
        reason="is neither a file nor a folder",
        remedy="Replace it with a regular file",
    )


def _is_closed(path: Path) -> bool:
    """Return whether this user may not enter a folder on the way to a path."""
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        path,
        kind="unreadable_folder",
        reason=f"cannot be listed ({error.strerror})",
        remedy=_OPEN_IT,
    )
