"""Bring an official checkpoint into a folder: from its publisher, a mirror or a local file.

A file gets its final name only when its size and SHA-256 are those of the catalogue. Until then it
lies beside it as ``.<name>.part``, which a later call goes on with, and which is removed when its
content turns out to be wrong.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from sslmedsam2.errors import ModelError, OutputError, UsageError
from sslmedsam2.imaging.atomic import output_error, write_text_atomic
from sslmedsam2.weights.catalogue import CatalogueEntry, difference
from sslmedsam2.weights.download import RETRY_WAITS_S, DownloadError, download, public_url

Progress = Callable[[int], None]
"""Told how many bytes of the file are there, each time that some arrive."""

_CHUNK_BYTES: Final = 1 << 20
_REMEDY: Final = (
    "Check the network and the proxy, or give the URL of a mirror or a file that was downloaded"
    " elsewhere with --from"
)

logger = logging.getLogger(__name__)


def fetch(
    entry: CatalogueEntry,
    *,
    to_dir: Path,
    source: str | Path | None = None,
    progress: Progress | None = None,
    waits_s: Sequence[float] = RETRY_WAITS_S,
) -> Path:
    """Make an official checkpoint lie in ``to_dir``, with its terms beside it; return its path.

    A right file that is there already is left as it is, a wrong one is replaced. The terms are
    not asked about here: whoever calls this has shown them to the user.

    Parameters
    ----------
    source
        URL of a mirror's copy, or a file; None for the publisher's addresses, in their order.
    waits_s
        Pauses in seconds between attempts at one address.

    Raises
    ------
    ModelError
        No source gives the right file.
    OutputError
        ``to_dir`` cannot be written, is too small, or is being fetched into by another process.
    """
    target = to_dir / entry.file_name
    partial = to_dir / f".{entry.file_name}.part"
    try:
        to_dir.mkdir(parents=True, exist_ok=True)
        with _alone_in(to_dir):
            if _is_right(target, entry):
                if not record_path(target).exists():
                    _write_record(entry, target, source=str(target))
                return target
            used = _bring(entry, partial, source=source, progress=progress, waits_s=waits_s)
            # The terms first: a file without them would be worse than terms without a file.
            _write_record(entry, target, source=used)
            partial.replace(target)
    except OSError as error:
        raise output_error(target, error) from error
    return target


def record_path(path: Path) -> Path:
    """Return where the terms and the origin of a fetched file are written down."""
    return path.with_name(f"{path.name}.licence.json")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep a second process out, which would write to the same partial file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                folder,
                reason="another process is fetching into this folder",
                remedy="Wait until it ends",
            ) from error
        except OSError:
            logger.debug("%s: this file system has no locks", folder)
        yield
    finally:
        os.close(descriptor)


def _is_right(target: Path, entry: CatalogueEntry) -> bool:
    if not target.exists():
        return False
    problem = difference(target, entry)
    if problem is not None:
        logger.warning("%s: %s; it will be replaced", target, problem)
    return problem is None


def _bring(
    entry: CatalogueEntry,
    partial: Path,
    *,
    source: str | Path | None,
    progress: Progress | None,
    waits_s: Sequence[float],
) -> str:
    """Make ``partial`` the right file; return where it came from."""
    local = _local_file(source)
    if local is not None:
        _copy(local, partial, entry=entry, progress=progress)
        return str(local)
    urls = entry.urls if source is None else (_checked_url(str(source)),)
    failures: list[tuple[str, DownloadError]] = []
    for url in urls:
        try:
            _download(url, partial, entry=entry, progress=progress, waits_s=waits_s)
        except DownloadError as error:
            logger.debug("%s: %s", public_url(url), error)
            failures.append((public_url(url), error))
        else:
            return public_url(url)
    (subject, reason), *others = failures
    also = "".join(f"; {url}: {error}" for url, error in others)
    raise ModelError(subject, reason=f"{reason}{also}", remedy=_REMEDY)


def _local_file(source: str | Path | None) -> Path | None:
    """Return the file that ``source`` names, or None if it names an address or nothing."""
    if source is None or isinstance(source, Path):
        return source
    scheme, separator, _ = source.partition("://")
    if not separator:
        return Path(source)
    if scheme.lower() == "file":
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(source).path))
    return None


def _checked_url(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            url,
            reason="is neither a file nor an http or https address",
            remedy="Give the path of a file, or an address that a browser would open",
        )
    if parts.username is not None:
        # Not repeated here: it holds a password.
        raise UsageError(
            parts.hostname,
            reason="an address with a user's name or password in it is not accepted",
            remedy="Download the file with another tool and give its path",
        )
    return url


def _download(
    url: str,
    partial: Path,
    *,
    entry: CatalogueEntry,
    progress: Progress | None,
    waits_s: Sequence[float],
) -> None:
    present = partial.stat().st_size if partial.exists() else 0
    _require_space(partial, entry.size_bytes - present)
    logger.info(
        "fetching %s from %s%s",
        entry.file_name,
        public_url(url),
        f", going on after {present} of {entry.size_bytes} bytes" if present else "",
    )
    download(url, partial, size_bytes=entry.size_bytes, waits_s=waits_s, progress=progress)
    problem = difference(partial, entry)
    if problem is None:
        return
    partial.unlink()
    if present:
        # What an earlier call left may have come from elsewhere and be to blame.
        logger.warning("%s: %s; starting over", public_url(url), problem)
        _download(url, partial, entry=entry, progress=progress, waits_s=waits_s)
    else:
        raise DownloadError(f"{problem}; what it sent is removed")


def _copy(source: Path, partial: Path, *, entry: CatalogueEntry, progress: Progress | None) -> None:
    remedy = f"Give the file {entry.file_name} of revision {entry.revision}"
    if source.is_dir():
        raise ModelError(source, reason="is a folder", remedy=remedy)
    try:
        # Before copying, so that a wrong file costs neither space nor an earlier partial one.
        problem = difference(source, entry)
    except OSError as error:
        raise ModelError(
            source, reason=f"cannot be read ({error.strerror})", remedy=remedy
        ) from error
    if problem is not None:
        raise ModelError(source, reason=problem, remedy=remedy)
    _require_space(partial, entry.size_bytes)
    with source.open("rb") as reader, partial.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            if progress is not None:
                progress(writer.tell())


def _require_space(partial: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if n_bytes > free:
        raise OutputError(
            partial.parent,
            reason=f"{n_bytes / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free",
            remedy="Free space, or choose another folder with --to",
        )


def _write_record(entry: CatalogueEntry, target: Path, *, source: str) -> None:
    content = {
        "name": entry.name,
        "file": entry.file_name,
        "source": source,
        "revision": entry.revision,
        "bytes": entry.size_bytes,
        "sha256": entry.sha256,
        "licence": entry.licence.name,
        "terms": entry.licence.summary,
        "terms_url": entry.licence.url,
        "fetched": datetime.now(timezone.utc).date().isoformat(),
    }
    write_text_atomic(record_path(target), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
