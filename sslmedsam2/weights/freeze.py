"""From a training folder of nnU-Net to a model folder with manifest entry."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

from sslmedsam2.errors import ModelError
from sslmedsam2.imaging.atomic import output_error, write_text_atomic
from sslmedsam2.imaging.records import move_aside, sha256_file
from sslmedsam2.weights.checkpoint import freeze_checkpoint
from sslmedsam2.weights.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    ModelCard,
    ModelEntry,
    check_manifest,
    hash_model,
    read_manifest,
    verify,
    write_manifest,
)
from sslmedsam2.weights.model_files import (
    CONFIDENCE_FILE,
    DATASET_FILE,
    PLANS_FILE,
    checkpoint_file,
    find_folds,
    model_files,
)

_MACHINE_KEYS = {DATASET_FILE: {"dataset"}, PLANS_FILE: {"continue_training"}}
"""Keys that describe one training and not the model; ``dataset`` lists images by their paths."""


def freeze_model(
    training_dir: Path,
    weights_dir: Path,
    *,
    name: str,
    sequences: tuple[str, ...],
    card: ModelCard,
    folds: tuple[str, ...] | None = None,
    half: bool = False,
) -> ModelEntry:
    """Freeze a trained model into ``weights_dir/name`` and list it in the manifest there.

    A model of the same name is moved aside, its manifest entry replaced; others stay as they are.

    Parameters
    ----------
    training_dir
        nnU-Net's ``<results>/<dataset>/<trainer>__<plans>__<configuration>`` folder.
    folds
        Names behind ``fold_``; None for all that have a final checkpoint.
    half
        Store the weights as float16.

    Raises ModelError: the training folder is incomplete, a checkpoint is unusable, or the entry
    contradicts the manifest; OutputError: the model cannot be written.
    """
    folds = find_folds(training_dir) if folds is None else folds
    # Not find_folds: beside numbered folds it leaves out a network trained on all cases.
    for fold in folds:
        if not (training_dir / checkpoint_file(fold)).is_file():
            raise ModelError(
                training_dir / checkpoint_file(fold),
                reason="it is missing",
                remedy=f"Finish the training of fold {fold}, or freeze without it",
            )
    partial = _partial(weights_dir, name)
    try:
        for file in (DATASET_FILE, PLANS_FILE):
            _copy_json(training_dir / file, partial / file, without=_MACHINE_KEYS[file])
        for fold in folds:
            relative = checkpoint_file(fold)
            freeze_checkpoint(training_dir / relative, partial / relative, half=half)
        return _list_model(partial, weights_dir, ModelEntry(name, sequences, folds, (), card))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_model(model_dir: Path, weights_dir: Path, entry: ModelEntry) -> ModelEntry:
    """Move a frozen model into ``weights_dir``, also of another disk, and list it there.

    A model of the same name is treated as by `freeze_model`; raises ModelError and OutputError.
    """
    partial = _partial(weights_dir, entry.name)
    try:
        weights_dir.mkdir(parents=True, exist_ok=True)
        shutil.move(model_dir, partial)
        return _list_model(partial, weights_dir, entry)
    except OSError as error:
        raise output_error(weights_dir, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(weights_dir: Path, name: str) -> Path:
    return weights_dir / f".{uuid.uuid4().hex[:8]}.partial-{name}"


def _list_model(partial: Path, weights_dir: Path, entry: ModelEntry) -> ModelEntry:
    """Give a complete model folder its name, and list it with its hashes in the manifest."""
    manifest_path = weights_dir / MANIFEST_NAME
    others = _without(manifest_path, entry.name)
    _keep_calibration(weights_dir / entry.name, partial, folds=entry.folds)
    entry = replace(entry, files=hash_model(partial, entry.folds))
    # The manifest first: it is checked before anything is replaced, and a model folder that
    # does not match it is refused, so that stopping in between does no silent harm.
    write_manifest(replace(others, models=(*others.models, entry)), manifest_path)
    _put_in_place(partial, weights_dir / entry.name, entry)
    return entry


def check_freezable(weights_dir: Path, *, name: str, sequences: tuple[str, ...]) -> None:
    """Refuse, before anything is trained, what `freeze_model` would refuse in the end.

    Raises ModelError: the name is no plain folder name, or another model there serves one of the
    sequences; OutputError: the folder cannot be written.
    """
    manifest_path = weights_dir / MANIFEST_NAME
    files = tuple(FileEntry(path, 0, "0" * 64) for path in model_files(("0",)))
    entry = ModelEntry(name, sequences, ("0",), files, ModelCard("", "", "", ""))
    others = _without(manifest_path, name)
    check_manifest(replace(others, models=(*others.models, entry)), manifest_path)
    there = next(one for one in (weights_dir, *weights_dir.resolve().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return
    except OSError as error:
        raise output_error(weights_dir, error) from error


def _without(manifest_path: Path, name: str) -> Manifest:
    """Return the manifest without a model of that name; an empty one where there is none."""
    if not manifest_path.exists():
        return Manifest(())
    manifest = read_manifest(manifest_path)
    return replace(manifest, models=tuple(one for one in manifest.models if one.name != name))


def _copy_json(source: Path, target: Path, *, without: set[str]) -> None:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            source,
            reason=f"cannot be read ({error})",
            remedy="Use the file that nnU-Net wrote beside the folds",
        ) from error
    kept = {key: value for key, value in content.items() if key not in without}
    write_text_atomic(target, json.dumps(kept, indent=2) + "\n")


def _keep_calibration(present: Path, new: Path, *, folds: tuple[str, ...]) -> None:
    """Copy the calibration of the existing model, if the new one has the same weights."""
    names = [checkpoint_file(fold) for fold in folds]
    if (present / CONFIDENCE_FILE).is_file() and all(
        (present / name).is_file() and sha256_file(present / name) == sha256_file(new / name)
        for name in names
    ):
        shutil.copyfile(present / CONFIDENCE_FILE, new / CONFIDENCE_FILE)


def _put_in_place(new: Path, target: Path, entry: ModelEntry) -> None:
    """Rename a frozen model to its final name, unless an identical one exists."""
    if target.exists():
        try:
            verify(target, entry)
        except ModelError:
            move_aside(target, why="another model is frozen under its name")
        else:
            return
    try:
        new.replace(target)
    except OSError as error:
        raise output_error(target, error) from error
