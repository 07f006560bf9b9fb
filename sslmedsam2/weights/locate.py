"""Search order of models, and which of them serves a sequence.

The order: the folder the user names, then ``/opt/ml/model`` (where challenge platforms mount an
uploaded model), then the folder included with the program. The first one found is used or
refused; a broken model is never skipped in favour of another.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sslmedsam2.errors import ModelError
from sslmedsam2.weights.manifest import (
    ANY_SEQUENCE,
    MANIFEST_NAME,
    FileEntry,
    ModelCard,
    ModelEntry,
    hash_model,
    read_manifest,
    verify,
)
from sslmedsam2.weights.model_files import find_folds

PLATFORM_DIR: Final = Path("/opt/ml/model")
_IN_WHEEL: Final = Path(__file__).resolve().parent / "included"
SHIPPED_DIR: Final = (
    _IN_WHEEL if _IN_WHEEL.is_dir() else Path(__file__).resolve().parents[2] / "weights"
)
"""The included models: in the package if a wheel is installed, else ``weights/`` of the clone."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelLocation:
    """A complete model folder.

    Attributes
    ----------
    sequences
        Sequences that it serves; ``"*"`` means all that no other model names.
    folds
        The names behind ``fold_``.
    files
        Its files with their hashes: computed now, or those of the manifest.
    verified
        Whether the files were compared with a manifest.
    card
        Texts and figures of the manifest; None without one.
    """

    path: Path
    name: str
    sequences: tuple[str, ...]
    folds: tuple[str, ...]
    files: tuple[FileEntry, ...]
    verified: bool
    card: ModelCard | None

    @property
    def sha256(self) -> dict[str, str]:
        """The hash of each file, by its name in the folder."""
        return {file.path: file.sha256 for file in self.files}


def locate_models(
    model_dir: Path | None = None, *, hash_weights: bool = True
) -> tuple[ModelLocation, ...]:
    """Return the models to use, every listed file compared with its manifest.

    Parameters
    ----------
    model_dir
        A folder with a ``manifest.json``, one model folder beside such a file, or any nnU-Net v2
        model folder (then not verified); None to search the usual places.
    hash_weights
        Also hash the checkpoints of listed models. Not needed if they are loaded next, because
        loading compares them with the hashes of ``files``.

    Raises ModelError: there is no model, or it is incomplete or altered.
    """
    # Unlike Path.resolve, this takes a link in a circle.
    folder = Path(os.path.realpath(_search() if model_dir is None else model_dir))
    if folder.is_file():
        raise ModelError(
            folder,
            reason="there is no such folder: it is a file",
            remedy="Unpack it, and give the folder that holds plans.json"
            if zipfile.is_zipfile(folder)
            else "Give the model folder that it lies in",
        )
    if not folder.is_dir():
        raise ModelError(
            folder,
            reason="there is no such folder",
            remedy="Give the path of a model folder to --model",
        )
    if (folder / MANIFEST_NAME).is_file():
        manifest = read_manifest(folder / MANIFEST_NAME)
        return tuple(
            _listed(folder / entry.name, entry, hash_weights=hash_weights)
            for entry in manifest.models
        )
    if (folder.parent / MANIFEST_NAME).is_file():
        entry = read_manifest(folder.parent / MANIFEST_NAME).entry(folder.name)
        if entry is not None:
            return (_listed(folder, entry, hash_weights=hash_weights),)
    return (_unlisted(folder),)


def model_for_sequence(models: Sequence[ModelLocation], sequence: str) -> ModelLocation:
    """Return the model that names ``sequence``, else the one that serves any.

    Raises ModelError: none of the models serves it.
    """
    for wanted in (sequence, ANY_SEQUENCE):
        for model in models:
            if wanted in model.sequences:
                return model
    served = sorted({name for model in models for name in model.sequences})
    raise ModelError(
        sequence,
        reason=f"no model serves this sequence (served: {', '.join(served)})",
        remedy="Leave the sequence out, or give a model for it to --model",
    )


def _search() -> Path:
    if _holds_something(PLATFORM_DIR):
        return PLATFORM_DIR
    if _holds_something(SHIPPED_DIR):
        return SHIPPED_DIR
    raise ModelError(
        "model",
        reason=f"none was found in {PLATFORM_DIR} or {SHIPPED_DIR}",
        remedy="Give the path of a model folder to --model",
    )


def _holds_something(folder: Path) -> bool:
    """Return whether a folder has visible content: platforms mount an empty one without a model.

    Raises ModelError: it may not be read.
    """
    try:
        return folder.is_dir() and any(not item.name.startswith(".") for item in folder.iterdir())
    except OSError as error:
        raise ModelError(
            folder,
            reason=f"cannot be listed ({error.strerror})",
            remedy="Make it readable, or give the path of a model folder to --model",
        ) from error


def _listed(folder: Path, entry: ModelEntry, *, hash_weights: bool) -> ModelLocation:
    verify(folder, entry, hash_weights=hash_weights)
    return ModelLocation(
        path=folder,
        name=entry.name,
        sequences=entry.sequences,
        folds=entry.folds,
        files=entry.files,
        verified=True,
        card=entry.card,
    )


def _unlisted(folder: Path) -> ModelLocation:
    folds = find_folds(folder)
    logger.warning("%s: no manifest lists this model, so its files are not verified", folder)
    return ModelLocation(
        path=folder,
        name=folder.name,
        sequences=(ANY_SEQUENCE,),
        folds=folds,
        files=hash_model(folder, folds),
        verified=False,
        card=None,
    )
