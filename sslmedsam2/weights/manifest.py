"""``manifest.json``: the models of a folder, with the SHA-256 of each of their files.

It lies beside the model folders that it lists::

    weights/manifest.json
    weights/<name>/dataset.json, plans.json, fold_<k>/checkpoint_final.pth
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from sslmedsam2.errors import InputError, ModelError
from sslmedsam2.imaging.records import read_record, sha256_file, write_record
from sslmedsam2.weights.model_files import FOLD_PREFIX, model_files

logger = logging.getLogger(__name__)

MANIFEST_NAME: Final = "manifest.json"
ANY_SEQUENCE: Final = "*"
"""Stands in ``ModelEntry.sequences`` for every sequence that no other model names."""

_FORMAT_VERSION: Final = 1
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_REMEDY: Final = "Restore the file as it was shipped, or freeze the model again"


@dataclass(frozen=True)
class FileEntry:
    """One file of a model: its path relative to the model folder (``/``), size and hash.

    The names are those in ``manifest.json``.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelCard:
    """Origin, licence and measured figures of a model.

    Attributes
    ----------
    training_data, recipe, licence
        Free text.
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

    @property
    def checkpoints(self) -> dict[str, str]:
        """The SHA-256 of each checkpoint, by its path in the model folder."""
        return {one.path: one.sha256 for one in self.files if one.path.endswith(".pth")}


@dataclass(frozen=True)
class Manifest:
    """The models that lie beside a manifest file; ``sam2`` lists SAM2 checkpoints there."""

    models: tuple[ModelEntry, ...]
    sam2: tuple[FileEntry, ...] = ()

    def entry(self, name: str) -> ModelEntry | None:
        """Return the model of that name, or None."""
        return next((model for model in self.models if model.name == name), None)


def hash_model(model_dir: Path, folds: tuple[str, ...]) -> tuple[FileEntry, ...]:
    """Return size and hash of the files that these folds of a model consist of.

    Raises ModelError: a file is missing or cannot be read.
    """
    return tuple(_measure(model_dir, path) for path in model_files(folds, model_dir))


def verify(model_dir: Path, entry: ModelEntry, *, hash_weights: bool = True) -> None:
    """Refuse a model folder that differs from its manifest entry.

    Hidden files (``.DS_Store``, ``._*``) are passed over: no reader of a model looks at them.
    Without ``hash_weights`` checkpoints are compared by size only: for a caller that loads them.

    Raises ModelError: a file is missing, cannot be read, has another size or content, or is not
    listed.
    """
    for expected in entry.files:
        is_hashed = hash_weights or not expected.path.startswith(FOLD_PREFIX)
        _compare(model_dir, expected, is_hashed=is_hashed)
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


def verify_sam2(folder: Path) -> tuple[FileEntry, ...]:
    """Compare the SAM2 checkpoints of a folder with its manifest, and return them.

    Raises ModelError: a file is missing, cannot be read, or differs.
    """
    listed = read_manifest(folder / MANIFEST_NAME).sam2
    for expected in listed:
        _compare(folder, expected)
    return listed


def _compare(folder: Path, expected: FileEntry, *, is_hashed: bool = True) -> None:
    """Refuse a file that differs from its entry: by size only unless ``is_hashed``."""
    path = folder / expected.path
    actual = _measure(folder, expected.path, None if is_hashed else expected.sha256)
    if actual.bytes != expected.bytes:
        reason = (
            f"it has {actual.bytes} bytes where the manifest says {expected.bytes}:"
            " the copy is incomplete or altered"
        )
        raise ModelError(path, reason=reason, remedy=_REMEDY)
    if actual.sha256 != expected.sha256:
        reason = (
            f"its content was altered: SHA-256 {actual.sha256[:12]}... where the manifest says"
            f" {expected.sha256[:12]}..."
        )
        raise ModelError(path, reason=reason, remedy=_REMEDY)


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest file.

    Raises ModelError: it cannot be read, is not of this format, lacks something, contradicts
    itself, or names a path outside its own folder.
    """
    try:
        stored = read_record(path, StoredManifest)
    except InputError as error:
        raise ModelError(path, reason=error.reason, remedy=_REMEDY) from error
    manifest = Manifest(tuple(map(_from_stored, stored.models)), stored.sam2)
    if problem := _problem(manifest, stored.format_version):
        raise ModelError(path, reason=problem, remedy=_REMEDY)
    return manifest


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest file, whole or not at all.

    Raises ModelError: the manifest contradicts itself; nothing is written; OutputError: the file
    cannot be written.
    """
    check_manifest(manifest, path)
    models = tuple(map(_to_stored, manifest.models))
    write_record(path, StoredManifest(_FORMAT_VERSION, models, manifest.sam2))


def check_manifest(manifest: Manifest, path: Path) -> None:
    """Refuse a manifest that contradicts itself; raises ModelError with ``path`` as subject."""
    if problem := _problem(manifest, _FORMAT_VERSION):
        raise ModelError(path, reason=problem, remedy="Choose another name, folder or sequences")


@dataclass(frozen=True)
class _StoredModel:
    name: str
    sequences: tuple[str, ...]
    folds: tuple[str | int, ...]
    training_data: str
    recipe: str
    licence: str
    created: str
    measured: Mapping[str, float]
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class StoredManifest:
    """``manifest.json`` as it lies on disk: a `Manifest` with the cards laid flat."""

    format_version: int
    models: tuple[_StoredModel, ...]
    sam2: tuple[FileEntry, ...] = ()


def _from_stored(model: _StoredModel) -> ModelEntry:
    return ModelEntry(
        name=model.name,
        sequences=model.sequences,
        folds=tuple(str(fold) for fold in model.folds),
        files=model.files,
        card=ModelCard(
            model.training_data, model.recipe, model.licence, model.created, model.measured
        ),
    )


def _to_stored(model: ModelEntry) -> _StoredModel:
    return _StoredModel(
        name=model.name,
        sequences=model.sequences,
        folds=model.folds,
        files=model.files,
        **asdict(model.card),
    )


def _problem(manifest: Manifest, format_version: int) -> str | None:
    """Return what is wrong with a manifest, as one clause, or None."""
    if format_version != _FORMAT_VERSION:
        return f"its format version is {format_version} and this program reads {_FORMAT_VERSION}"
    if not manifest.models:
        return "it lists no model"
    served = [sequence for model in manifest.models for sequence in model.sequences]
    problems = (
        *(_problem_of_model(model) for model in manifest.models),
        _repeated([model.name for model in manifest.models], "two models are named"),
        _repeated(served, "two models serve the sequence"),
    )
    return next(filter(None, problems), None)


def _problem_of_model(model: ModelEntry) -> str | None:
    where = f"model {model.name}"
    if not _SAFE_NAME.fullmatch(model.name):
        return f"a model is named {model.name!r}, which is no plain folder name"
    if not model.folds:
        return f"{where} has no fold"
    if not model.sequences or not all(model.sequences):
        return f"'sequences' of {where} is no list of names"
    for file in model.files:
        pure = PurePosixPath(file.path)
        outside = pure.is_absolute() or ".." in pure.parts or "\\" in file.path
        if outside or pure.as_posix() != file.path:
            return f"file {file.path!r} of {where} is no plain path inside the model folder"
        if not _SHA256.fullmatch(file.sha256):
            return f"'sha256' of file {file.path!r} of {where} is not 64 hexadecimal digits"
    paths = [file.path for file in model.files]
    if missing := sorted(set(model_files(model.folds)) - set(paths)):
        return f"{where} does not list {missing[0]}"
    return _repeated(paths, f"{where} lists twice")


def _repeated(values: list[str], problem: str) -> str | None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    return f"{problem} {repeated[0]!r}" if repeated else None


def _measure(model_dir: Path, relative: str, sha256: str | None = None) -> FileEntry:
    path = model_dir / relative
    try:
        return FileEntry(relative, path.stat().st_size, sha256 or sha256_file(path))
    except FileNotFoundError as error:
        raise ModelError(path, reason="it is missing", remedy=_REMEDY) from error
    except OSError as error:
        raise ModelError(
            path, reason=f"cannot be read ({error.strerror})", remedy="Check its permissions"
        ) from error
