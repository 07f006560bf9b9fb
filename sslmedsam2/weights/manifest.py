"""The list of shipped models: what each is, and the SHA-256 of each of its files.

``manifest.json`` lies beside the model folders that it lists::

    weights/manifest.json
    weights/<name>/dataset.json, plans.json, fold_<k>/checkpoint_final.pth

Reading it is strict about what is needed to choose a model and to recognise its files, and
tolerant about the rest: unknown keys are passed over, so that an older program reads a newer
manifest of the same format version.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from sslmedsam2.errors import ModelError
from sslmedsam2.imaging.atomic import write_text_atomic
from sslmedsam2.weights.layout import model_files

MANIFEST_NAME: Final = "manifest.json"
ANY_SEQUENCE: Final = "*"
"""Stands in ``ModelEntry.sequences`` for every sequence that no other model names."""

_FORMAT_VERSION: Final = 1
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES: Final = 1 << 20
_REMEDY: Final = "Restore the file as it was shipped, or freeze the model again"


@dataclass(frozen=True)
class FileEntry:
    """One file of a model: its path relative to the model folder (``/``), size and hash."""

    path: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelCard:
    """Where a model comes from and what it is worth.

    Attributes
    ----------
    training_data, recipe, licence
        In words, for people.
    created
        ISO 8601 date.
    measured
        Figures by name, such as ``{"chaos_mr_t2_dice": 0.93}``.
    """

    training_data: str
    recipe: str
    licence: str
    created: str
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelEntry:
    """One model of a manifest. ``folds`` are the names behind ``fold_``: "0", "1", "all"."""

    name: str
    sequences: tuple[str, ...]
    folds: tuple[str, ...]
    files: tuple[FileEntry, ...]
    card: ModelCard


@dataclass(frozen=True)
class Manifest:
    """The models that lie beside a manifest file."""

    models: tuple[ModelEntry, ...]

    def entry(self, name: str) -> ModelEntry | None:
        """Return the model of that name, or None."""
        return next((model for model in self.models if model.name == name), None)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_model(model_dir: Path, folds: tuple[str, ...]) -> tuple[FileEntry, ...]:
    """Return size and hash of the files that these folds of a model consist of.

    Raises
    ------
    ModelError
        A file is missing or cannot be read.
    """
    return tuple(_measure(model_dir, path) for path in model_files(folds))


def verify(model_dir: Path, entry: ModelEntry) -> None:
    """Refuse a model folder that differs from its manifest entry.

    Hidden files (``.DS_Store``, ``._*``) are passed over: no reader of a model looks at them.

    Raises
    ------
    ModelError
        A file is missing, cannot be read, has another size or content, or is not listed.
    """
    for expected in entry.files:
        path = model_dir / expected.path
        actual = _measure(model_dir, expected.path)
        if actual.n_bytes != expected.n_bytes:
            reason = (
                f"it has {actual.n_bytes} bytes where the manifest says {expected.n_bytes}:"
                " the copy is incomplete or altered"
            )
            raise ModelError(path, reason=reason, remedy=_REMEDY)
        if actual.sha256 != expected.sha256:
            reason = (
                "its content was altered: SHA-256"
                f" {actual.sha256[:12]}... where the manifest says {expected.sha256[:12]}..."
            )
            raise ModelError(path, reason=reason, remedy=_REMEDY)
    listed = {expected.path for expected in entry.files}
    for path in sorted(model_dir.rglob("*")):
        relative = path.relative_to(model_dir)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and relative.as_posix() not in listed:
            raise ModelError(
                path,
                reason="the manifest does not list this file",
                remedy="Remove it from the model folder",
            )


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest file.

    Raises
    ------
    ModelError
        It cannot be read, is not of this format, lacks something, contradicts itself, or names
        a path outside its own folder.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(path, reason=f"cannot be read ({error})", remedy=_REMEDY) from error
    try:
        return _parse(content)
    except _MalformedError as error:
        raise ModelError(path, reason=str(error), remedy=_REMEDY) from error


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest file, whole or not at all.

    Raises
    ------
    ModelError
        The manifest contradicts itself; nothing is written.
    OutputError
        The file cannot be written.
    """
    content = {
        "format_version": _FORMAT_VERSION,
        "models": [_as_table(model) for model in manifest.models],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    try:
        _parse(json.loads(text))
    except _MalformedError as error:
        raise ModelError(path, reason=str(error), remedy="Correct the model's entry") from error
    write_text_atomic(path, text + "\n")


class _MalformedError(Exception):
    """What is wrong with a manifest's content, as one clause."""


def _measure(model_dir: Path, relative: str) -> FileEntry:
    path = model_dir / relative
    try:
        return FileEntry(relative, n_bytes=path.stat().st_size, sha256=sha256_file(path))
    except FileNotFoundError as error:
        raise ModelError(path, reason="it is missing", remedy=_REMEDY) from error
    except OSError as error:
        raise ModelError(
            path, reason=f"cannot be read ({error.strerror})", remedy="Check its permissions"
        ) from error


def _as_table(model: ModelEntry) -> dict[str, Any]:
    return {
        "name": model.name,
        "sequences": list(model.sequences),
        "folds": list(model.folds),
        "training_data": model.card.training_data,
        "recipe": model.card.recipe,
        "licence": model.card.licence,
        "created": model.card.created,
        "measured": dict(model.card.measured),
        "files": [
            {"path": file.path, "bytes": file.n_bytes, "sha256": file.sha256}
            for file in model.files
        ],
    }


def _parse(content: object) -> Manifest:
    if not isinstance(content, dict):
        raise _MalformedError("it does not hold a table")
    version = content.get("format_version")
    if version != _FORMAT_VERSION:
        raise _MalformedError(
            f"its format version is {version!r} and this program reads {_FORMAT_VERSION}"
        )
    tables = _get(content, "models", list, "it")
    if not tables:
        raise _MalformedError("it lists no model")
    models = tuple(_parse_model(table, f"model {i}") for i, table in enumerate(tables))
    _refuse_repeats([model.name for model in models], "two models are named")
    served = [sequence for model in models for sequence in model.sequences]
    _refuse_repeats(served, "two models serve the sequence")
    return Manifest(models)


def _parse_model(table: object, where: str) -> ModelEntry:
    name = _get(table, "name", str, where)
    if not _SAFE_NAME.fullmatch(name):
        raise _MalformedError(f"{where} is named {name!r}, which is no plain folder name")
    where = f"model {name}"
    folds = tuple(str(fold) for fold in _get(table, "folds", list, where))
    if not folds:
        raise _MalformedError(f"{where} has no fold")
    files = tuple(_parse_file(file, where) for file in _get(table, "files", list, where))
    paths = [file.path for file in files]
    _refuse_repeats(paths, f"{where} lists twice")
    if missing := sorted(set(model_files(folds)) - set(paths)):
        raise _MalformedError(f"{where} does not list {missing[0]}")
    return ModelEntry(
        name=name,
        sequences=_parse_sequences(_get(table, "sequences", list, where), where),
        folds=folds,
        files=files,
        card=_parse_card(table, where),
    )


def _parse_sequences(values: list[object], where: str) -> tuple[str, ...]:
    sequences = tuple(value for value in values if isinstance(value, str) and value)
    if not sequences or len(sequences) != len(values):
        raise _MalformedError(f"'sequences' of {where} is no list of names")
    return sequences


def _parse_file(table: object, where: str) -> FileEntry:
    path = _get(table, "path", str, f"a file of {where}")
    where = f"file {path!r} of {where}"
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or pure.as_posix() != path:
        raise _MalformedError(f"{where} is no plain path inside the model folder")
    n_bytes = _get(table, "bytes", int, where)
    sha256 = _get(table, "sha256", str, where)
    if not _SHA256.fullmatch(sha256):
        raise _MalformedError(f"'sha256' of {where} is not 64 hexadecimal digits")
    return FileEntry(path, n_bytes=n_bytes, sha256=sha256)


def _parse_card(table: object, where: str) -> ModelCard:
    measured = _get(table, "measured", dict, where)
    for figure, value in measured.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _MalformedError(f"the figure {figure!r} of {where} is no number")
    return ModelCard(
        training_data=_get(table, "training_data", str, where),
        recipe=_get(table, "recipe", str, where),
        licence=_get(table, "licence", str, where),
        created=_get(table, "created", str, where),
        measured=measured,
    )


def _get(table: object, key: str, kind: type, where: str) -> Any:
    """Return ``table[key]`` if it is there and of that kind."""
    if not isinstance(table, dict):
        raise _MalformedError(f"{where} is no table")
    if key not in table:
        raise _MalformedError(f"{where} has no {key!r}")
    value = table[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _MalformedError(f"{key!r} of {where} is no {_KIND_NAMES[kind]}")
    return value


_KIND_NAMES: Final = {str: "text", int: "whole number", list: "list", dict: "table"}


def _refuse_repeats(values: list[str], problem: str) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise _MalformedError(f"{problem} {repeated[0]!r}")
