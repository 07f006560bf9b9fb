"""Records on disk: frozen dataclasses as JSON files, checked against their annotations when read.

msgspec is used because it is small (no dependencies), fast, BSD-3-licensed, validates strictly and
works with plain frozen dataclasses. Fields added by a newer version are ignored. A field that is
missing or has another type raises an error that names file and field.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from sslmedsam2.errors import InputError, UsageError
from sslmedsam2.imaging.atomic import output_error, write_bytes_atomic

logger = logging.getLogger(__name__)

Record = TypeVar("Record")

_REMEDY: Final = "Restore the file, or remove it to begin anew"
_HASHED_AT_ONCE: Final = 1 << 20
"""Bytes."""


def check_words(options: object) -> None:
    """Check that each ``Literal`` field of a dataclass has one of its values.

    Raises UsageError: the message names the field and lists the values.
    """
    for name, hint in get_type_hints(type(options)).items():
        words = get_args(hint) if get_origin(hint) is Literal else ()
        value = getattr(options, name)
        if words and value not in words:
            raise UsageError(
                f"{name} {value!r}",
                reason=f"there is no such {name}",
                remedy=f"Use {' or '.join(map(repr, words))}",
            )


def read_record(path: Path, kind: type[Record], *, remedy: str = _REMEDY) -> Record:
    """Read a JSON file as an instance of ``kind``: a dataclass, or a tuple or mapping of them.

    Raises InputError: ``unreadable_record``: the file is missing or cannot be read. ``bad_record``:
    it is no JSON, or a field is missing or of another type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind, dec_hook=_from_plain)
    except OSError as error:
        raise InputError(
            path,
            kind="unreadable_record",
            reason=f"cannot be read ({error.strerror})",
            remedy="Check that it is there and that this user may read it",
        ) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(
            path, kind="bad_record", reason=f"it is not usable ({_in_words(error)})", remedy=remedy
        ) from error


def read_record_or_none(path: Path, kind: type[Record]) -> Record | None:
    """Read a record; None without the file and, after a warning, if it is not usable."""
    try:
        return read_record(path, kind) if path.is_file() else None
    except InputError as error:
        logger.warning("%s: %s; it is passed over", path, error.reason)
        return None


def write_record(path: Path, record: object) -> None:
    """Write a record, whole or not at all; numbers that are not finite become null.

    Raises OutputError: the file cannot be written; TypeError: the record holds what JSON cannot.
    """
    write_bytes_atomic(path, record_text(record).encode("utf-8"))


def record_text(record: object) -> str:
    """Return a record as `write_record` writes it; raises TypeError as that does."""
    return msgspec.json.format(_encoded(record), indent=1).decode("utf-8") + "\n"


def key_of(content: object) -> str:
    """Return the SHA-256 of any JSON content, independent of the order of mappings."""
    return hashlib.sha256(_encoded(content, order="deterministic")).hexdigest()


def utc_now() -> str:
    """Return the present time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def utc_date() -> str:
    """Return the present date as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).date().isoformat()


def move_aside(path: Path, *, why: str) -> Path:
    """Rename a file or folder to ``<name>.replaced-<UTC time>``, log it, and return the new path.

    Files that a person may have changed are never deleted or overwritten. Raises OutputError.
    """
    time = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
    target, number = path.with_name(f"{path.name}.replaced-{time}Z"), 2
    while target.exists():
        target, number = path.with_name(f"{path.name}.replaced-{time}Z-{number}"), number + 1
    try:
        path.rename(target)
    except OSError as error:
        raise output_error(target, error) from error
    logger.warning("%s was renamed to %s: %s", path, target.name, why)
    return target


def _encoded(content: object, *, order: Literal["deterministic"] | None = None) -> bytes:
    """Return content as JSON; names of files that are no UTF-8 have backslashes for those bytes."""
    try:
        return msgspec.json.encode(content, enc_hook=_to_plain, order=order)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(content, enc_hook=_to_plain)
        return msgspec.json.encode(_as_unicode(plain), order=order)


def _as_unicode(plain: Any) -> Any:
    if isinstance(plain, str):
        return plain.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(plain, dict):
        return {_as_unicode(key): _as_unicode(value) for key, value in plain.items()}
    return [_as_unicode(one) for one in plain] if isinstance(plain, (list, tuple)) else plain


def _to_plain(value: Any) -> Any:
    if type(value).__module__ == "numpy":
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} is nothing that JSON can hold")


def _from_plain(kind: type, value: Any) -> Any:
    """Convert to types that msgspec does not know: paths, and classes with ``from_plain``."""
    return Path(value) if kind is Path else kind.from_plain(value)  # type: ignore[attr-defined]


def _in_words(error: Exception) -> str:
    """Return msgspec's message with the place first: ``models[0]: ...``."""
    text, _, place = str(error).replace("`", "'").partition(" - at '$")
    place = place.strip("'.")
    return f"{place}: {text}" if place else text or type(error).__name__


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED_AT_ONCE):
            digest.update(chunk)
    return digest.hexdigest()
