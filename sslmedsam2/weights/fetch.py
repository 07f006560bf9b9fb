"""Bring an official checkpoint into a folder: from its publisher, a mirror or a local file.

A file gets its final name only when its size and SHA-256 are those of the catalogue. Until then it
lies beside it as ``.<name>.part``, which a later call goes on with, and which is removed when its
content turns out to be wrong.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import logging
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from sslmedsam2 import __version__
from sslmedsam2.errors import ModelError, OutputError, UsageError
from sslmedsam2.imaging.atomic import output_error, write_text_atomic
from sslmedsam2.weights.catalogue import CatalogueEntry, difference

logger = logging.getLogger(__name__)

RETRY_WAITS_S: Final = (1.0, 2.0, 4.0)
"""Pauses after failures that may pass; one attempt more than there are pauses."""

_TIMEOUT_S: Final = 30.0
_CHUNK_BYTES: Final = 1 << 18
_PASSING_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class DownloadError(Exception):
    """Why an address did not give the file, as one clause.

    ``may_pass`` tells whether another attempt could end better.
    """

    def __init__(self, reason: str, *, may_pass: bool = False) -> None:
        """Keep the reason and whether it may pass."""
        self.may_pass = may_pass
        super().__init__(reason)


def download(
    url: str,
    partial: Path,
    *,
    size_bytes: int,
    waits_s: Sequence[float] = RETRY_WAITS_S,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Complete ``partial`` to ``size_bytes`` from an HTTP or HTTPS address.

    Bytes that are there already are kept where the server can send the rest, and stay for the
    next call where this one fails. A partial file that is long enough is left as it is.

    Parameters
    ----------
    progress
        Told how many bytes are there, each time that some arrive.

    Raises
    ------
    DownloadError
        The address does not give a file of this size.
    OSError
        ``partial`` cannot be written.
    """
    for wait_s in (*waits_s, None):
        try:
            _attempt(url, partial, size_bytes=size_bytes, progress=progress)
        except DownloadError as error:
            if wait_s is None or not error.may_pass:
                raise
            logger.warning("%s: %s; trying again in %g s", public_url(url), error, wait_s)
            time.sleep(wait_s)
        else:
            return


def public_url(url: str) -> str:
    """Return an address without its query and fragment, where signed addresses keep secrets.

    >>> public_url("https://mirror.example:8080/sam2.pt?token=1")
    'https://mirror.example:8080/sam2.pt'
    """
    return urllib.parse.urlsplit(url)._replace(query="", fragment="").geturl()


def _attempt(
    url: str, partial: Path, *, size_bytes: int, progress: Callable[[int], None] | None
) -> None:
    present = partial.stat().st_size if partial.exists() else 0
    if present >= size_bytes:
        return
    with _open(url, first_byte=present, size_bytes=size_bytes) as response:
        start = _first_byte(response, wanted=present, size_bytes=size_bytes)
        # Not "ab" alone: a server that cannot send a part sends all, from the first byte.
        with partial.open("ab" if start else "wb") as file:
            received = start
            while received < size_bytes and (chunk := _read(response)):
                received += file.write(chunk)
                if progress is not None:
                    progress(min(received, size_bytes))
    if received < size_bytes:
        raise DownloadError(
            f"the connection ended after {received} of {size_bytes} bytes", may_pass=True
        )


def _open(url: str, *, first_byte: int, size_bytes: int) -> http.client.HTTPResponse:
    # Compressed on the way, sizes and ranges would mean something else.
    headers = {"User-Agent": f"sslmedsam2/{__version__}", "Accept-Encoding": "identity"}
    if first_byte:
        headers["Range"] = f"bytes={first_byte}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise DownloadError(
                f"its file ends before byte {first_byte} of {size_bytes}"
            ) from error
        raise DownloadError(
            f"the server answers {error.code} {error.reason}",
            may_pass=error.code in _PASSING_STATUS,
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(error) from error


def _unreachable(error: Exception) -> DownloadError:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return DownloadError(
            f"its certificate is not trusted ({cause.verify_message}); behind a proxy with its own"
            " authority, name that authority's file in SSL_CERT_FILE"
        )
    return DownloadError(f"cannot be reached ({cause})", may_pass=isinstance(cause, OSError))


def _first_byte(response: http.client.HTTPResponse, *, wanted: int, size_bytes: int) -> int:
    """Return which byte of the file the body begins with: the wanted one or the very first."""
    start, total = 0, response.headers["Content-Length"]
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.headers["Content-Range"] or "")
        if match is None or int(match[1]) != wanted:
            raise DownloadError("the server sends another part of the file than was asked for")
        start, total = wanted, match[2]
    if total and total.isdecimal() and int(total) != size_bytes:
        raise DownloadError(f"its file has {total} bytes instead of {size_bytes}")
    return start


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"the connection broke ({str(error) or type(error).__name__})", may_pass=True
        ) from error


Progress = Callable[[int], None]
"""Told how many bytes of the file are there, each time that some arrive."""

_HASHED_AT_ONCE_BYTES: Final = 1 << 20
_REMEDY: Final = (
    "Check the network and the proxy, or give the URL of a mirror or a file that was downloaded"
    " elsewhere with --from"
)


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
        while chunk := reader.read(_HASHED_AT_ONCE_BYTES):
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
