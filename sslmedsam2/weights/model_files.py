"""The files of a model folder of nnU-Net: which folds and checkpoints it holds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from sslmedsam2.errors import ModelError

logger = logging.getLogger(__name__)

DATASET_FILE: Final = "dataset.json"
PLANS_FILE: Final = "plans.json"
CHECKPOINT_NAME: Final = "checkpoint_final.pth"
CONFIDENCE_FILE: Final = "confidence.json"
"""Calibration of the estimated Dice; optional."""
BEST_CHECKPOINT_NAME: Final = "checkpoint_best.pth"
_LFS_POINTER: Final = b"version https://git-lfs"
FOLD_PREFIX: Final = "fold_"
_FOLD_OF_ALL_CASES: Final = "all"


def checkpoint_file(fold: str, model_dir: Path | None = None) -> str:
    """Return where a fold's checkpoint lies, relative to the model folder.

    It is the final one, or, where ``model_dir`` holds only that, the best one of an unfinished
    training.

    >>> checkpoint_file("0")
    'fold_0/checkpoint_final.pth'
    """
    final, best = (
        f"{FOLD_PREFIX}{fold}/{name}" for name in (CHECKPOINT_NAME, BEST_CHECKPOINT_NAME)
    )
    has_best_only = (
        model_dir is not None and not (model_dir / final).is_file() and (model_dir / best).is_file()
    )
    return best if has_best_only else final


def model_files(folds: tuple[str, ...], model_dir: Path | None = None) -> tuple[str, ...]:
    """Return the files of a model with these folds, relative to its folder."""
    has_confidence = model_dir is not None and (model_dir / CONFIDENCE_FILE).is_file()
    optional = (CONFIDENCE_FILE,) if has_confidence else ()
    checkpoints = (checkpoint_file(fold, model_dir) for fold in folds)
    return (DATASET_FILE, PLANS_FILE, *checkpoints, *optional)


def find_folds(model_dir: Path) -> tuple[str, ...]:
    """Return the folds that have a final checkpoint: the numbered ones in order, or else "all".

    Where no fold has a final one, those with a best one are used, with a note.

    A network trained on all cases has seen the numbered folds' validation cases and adds nothing
    that they lack, so nnU-Net never mixes the two either.

    Raises ModelError: ``model_dir`` is not a model folder, or no fold of it has a checkpoint.
    """
    for name in (DATASET_FILE, PLANS_FILE):
        if not (model_dir / name).is_file():
            raise ModelError(
                model_dir, reason=f"it holds no {name}", remedy=_where_the_model_is(model_dir)
            )
    for checkpoint_name in (CHECKPOINT_NAME, BEST_CHECKPOINT_NAME):
        folds = {
            checkpoint.parent.name.removeprefix(FOLD_PREFIX)
            for checkpoint in model_dir.glob(f"{FOLD_PREFIX}*/{checkpoint_name}")
        }
        found = tuple(sorted((fold for fold in folds if fold.isdecimal()), key=int))
        if not found and _FOLD_OF_ALL_CASES in folds:
            found = (_FOLD_OF_ALL_CASES,)
        if found and checkpoint_name == BEST_CHECKPOINT_NAME:
            logger.warning(
                "%s: its training is not finished; %s is used", model_dir.name, checkpoint_name
            )
        if found:
            return found
    raise ModelError(
        model_dir,
        reason=f"none of its fold_* folders holds a {CHECKPOINT_NAME}",
        remedy="Finish the training, or copy the checkpoint into fold_0",
    )


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer, which a clone without Git LFS has instead of a large file.

    Raises ModelError: the file is a pointer; OSError: it cannot be read.
    """
    with path.open("rb") as file:
        is_pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    if is_pointer:
        raise ModelError(
            path,
            reason="it is a Git LFS pointer, not the file itself",
            remedy="Fetch the file: git lfs pull",
        )


def _where_the_model_is(model_dir: Path) -> str:
    """Return a hint where a model folder, or a zip of one, is near a folder that is none."""
    if (model_dir.parent / PLANS_FILE).is_file():
        return "Give the folder above it, which holds plans.json"
    patterns = ("/".join([*["*"] * depth, PLANS_FILE]) for depth in (1, 2, 3))
    below = next((plans for pattern in patterns for plans in model_dir.glob(pattern)), None)
    if below is not None:
        return f"Give {below.parent.relative_to(model_dir)} in it, which holds plans.json"
    if archive := next(model_dir.glob("*.zip"), None):
        return f"Unpack {archive.name} in it, and give the folder that holds plans.json"
    return (
        "Give an nnU-Net v2 model folder, with dataset.json, plans.json and fold_*, or a folder"
        " with a manifest.json"
    )
