"""Names inside an ordinary nnU-Net v2 model folder.

A model folder holds ``dataset.json``, ``plans.json`` and, for each fold,
``fold_<k>/checkpoint_final.pth``. Nothing else is needed to predict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sslmedsam2.errors import ModelError

DATASET_FILE: Final = "dataset.json"
PLANS_FILE: Final = "plans.json"
CHECKPOINT_NAME: Final = "checkpoint_final.pth"
_FOLD_PREFIX: Final = "fold_"
_FOLD_OF_ALL_CASES: Final = "all"


def checkpoint_file(fold: str) -> str:
    """Return where a fold's checkpoint lies, relative to the model folder.

    >>> checkpoint_file("0")
    'fold_0/checkpoint_final.pth'
    """
    return f"{_FOLD_PREFIX}{fold}/{CHECKPOINT_NAME}"


def model_files(folds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files of a model with these folds, relative to its folder."""
    return (DATASET_FILE, PLANS_FILE, *(checkpoint_file(fold) for fold in folds))


def find_folds(model_dir: Path) -> tuple[str, ...]:
    """Return the folds that have a final checkpoint: the numbered ones in order, or else "all".

    A network trained on all cases has seen the numbered folds' validation cases and adds nothing
    that they lack, so nnU-Net never mixes the two either.

    Raises
    ------
    ModelError
        ``model_dir`` is not a model folder, or no fold of it is trained to the end.
    """
    for name in (DATASET_FILE, PLANS_FILE):
        if not (model_dir / name).is_file():
            raise ModelError(
                model_dir,
                reason=f"it holds no {name}",
                remedy="Point to an nnU-Net v2 model folder, with dataset.json, plans.json and"
                " fold_*, or to a folder with a manifest.json",
            )
    folds = {
        checkpoint.parent.name.removeprefix(_FOLD_PREFIX)
        for checkpoint in model_dir.glob(f"{_FOLD_PREFIX}*/{CHECKPOINT_NAME}")
    }
    numbered = sorted((fold for fold in folds if fold.isdecimal()), key=int)
    if numbered:
        return tuple(numbered)
    if _FOLD_OF_ALL_CASES in folds:
        return (_FOLD_OF_ALL_CASES,)
    raise ModelError(
        model_dir,
        reason=f"none of its fold_* folders holds a {CHECKPOINT_NAME}",
        remedy="Finish the training, or copy the checkpoint into fold_0",
    )
