"""One file over HTTP, going on where an earlier attempt stopped.

What the server says of the file's size is compared with the size that is wanted before anything
is written; whether the content is right is for the caller to judge.
"""

from __future__ import annotations

import http.client
import logging
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sslmedsam2 import __version__

RETRY_WAITS_S: Final = (1.0, 2.0, 4.0)
"""Pauses after failures that may pass; one attempt more than there are pauses."""

_TIMEOUT_S: Final = 30.0
_CHUNK_BYTES: Final = 1 << 18
_PASSING_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

logger = logging.getLogger(__name__)


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
