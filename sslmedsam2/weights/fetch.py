"""Put an official checkpoint into a folder: from its publisher, a mirror or a local file.

A file gets its final name only when its size and SHA-256 are those of the catalogue.
"""

from __future__ import annotations

import http.client
import logging
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Final

from sslmedsam2.errors import ModelError, OutputError, UsageError
from sslmedsam2.imaging.atomic import atomic_path, output_error
from sslmedsam2.imaging.records import utc_date, write_record
from sslmedsam2.weights.catalogue import CatalogueEntry, difference

logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 30.0
_REMEDY: Final = (
    "Check the network and the proxy (SSL_CERT_FILE names the certificate authority of a proxy), "
    "or give the URL of a mirror or a file that was downloaded elsewhere with --from"
)


def fetch(
    entry: CatalogueEntry,
    *,
    to_dir: Path,
    source: str | Path | None = None,
    show_progress: bool = False,
) -> Path:
    """Put an official checkpoint into ``to_dir``, with its terms beside it; return its path.

    A right file that is there already is left as it is, a wrong one is replaced. The terms are
    not asked about here: the caller has shown them to the user.

    Parameters
    ----------
    source
        URL of a mirror's copy, or a file; None for the publisher's addresses, in their order.
    show_progress
        Whether a download shows a progress bar on standard error.

    Raises
    ------
    UsageError
        ``source`` is neither a file nor an address.
    ModelError
        No source gives the right file.
    OutputError
        ``to_dir`` cannot be written or is too small.
    """
    target = to_dir / entry.file_name
    local = _local_file(source)
    urls = entry.urls if source is None else () if local else (_checked_url(str(source)),)
    try:
        if target.exists():
            problem = difference(target, entry)
            if problem is None:
                if not record_path(target).exists():
                    _write_record(entry, target, source=str(target))
                return target
            logger.warning("%s: %s; it will be replaced", target, problem)
        if local is not None:
            _check_local(local, entry)
        to_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(target, error) from error
    _require_space(to_dir, entry.size_bytes)
    with atomic_path(target) as partial:
        if local is not None:
            shutil.copyfile(local, partial)
            used = str(local)
        else:
            used = _download(urls, partial, entry=entry, show_progress=show_progress)
        # The terms first: a file without them would be worse than terms without a file.
        _write_record(entry, target, source=used)
    return target


def public_url(url: str) -> str:
    """Return an address without its query and fragment, where signed addresses keep secrets.

    >>> public_url("https://mirror.example:8080/sam2.pt?token=1")
    'https://mirror.example:8080/sam2.pt'
    """
    return urllib.parse.urlsplit(url)._replace(query="", fragment="").geturl()


def record_path(path: Path) -> Path:
    """Return where the terms and the origin of a fetched file are written down."""
    return path.with_name(f"{path.name}.licence.json")


def _download(
    urls: tuple[str, ...], partial: Path, *, entry: CatalogueEntry, show_progress: bool
) -> str:
    """Download from the first address that gives the right file, and return that address."""
    from torch.hub import download_url_to_file

    failures = []
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        for url in urls:
            logger.info("fetching %s from %s", entry.file_name, public_url(url))
            try:
                download_url_to_file(
                    url, str(partial), hash_prefix=entry.sha256, progress=show_progress
                )
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} {error.reason}"
            except urllib.error.URLError as error:
                reason = f"cannot be reached ({error.reason})"
            except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
                reason = f"the connection broke ({error})"
            except RuntimeError:
                reason = f"it does not send the {entry.size_bytes} bytes of the published SHA-256"
            else:
                return public_url(url)
            failures.append((public_url(url), reason))
    finally:
        socket.setdefaulttimeout(before)
    (subject, reason), *others = failures
    also = "".join(f"; {url}: {text}" for url, text in others)
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


def _check_local(path: Path, entry: CatalogueEntry) -> None:
    problem = "is a folder" if path.is_dir() else difference(path, entry)
    if problem is not None:
        remedy = f"Give the file {entry.file_name} of revision {entry.revision}"
        raise ModelError(path, reason=problem, remedy=remedy)


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


def _require_space(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OutputError(
            folder,
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
        "fetched": utc_date(),
    }
    write_record(record_path(target), content)
