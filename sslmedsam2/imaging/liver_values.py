"""Which voxels of a mask are liver, by their values."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.stored import image_error, repair
from sslmedsam2.imaging.volume import ArrayZYX, MaskZYX

SOFT: Final = 1e-3
"""Voxels of a mask that differ by at most this from 0 or its foreground value are rounded."""

ROUNDED: Final = repair("soft_mask", f"voxels within {SOFT:g} of a whole label were rounded to it")
_LISTED_VALUES: Final = 8
_MOST_LABELS: Final = 150
"""More different values than label maps of whole bodies have."""


def liver_by_value(
    path: Path, voxels_zyx: ArrayZYX, *, label: int | None, strict: bool
) -> tuple[MaskZYX, tuple[str, ...]]:
    """Return the liver as 0 and 1, and notes on rounding.

    Parameters
    ----------
    path
        The mask's file, for messages.
    label
        The value that is liver; None for the only foreground value.
    strict
        Require ``label`` even if the mask has only one foreground value.

    Raises InputError: several foreground values and no ``label`` (``not_a_mask``), or other values
    than ``label`` only (``no_such_label``).
    """
    value = float(voxels_zyx.max())
    if np.isfinite(value) and value > SOFT and (label is None or not strict):
        liver = np.abs(voxels_zyx - value) <= SOFT
        if (liver | (np.abs(voxels_zyx) <= SOFT)).all():
            notes = []
            if label is None and abs(value - 1) > SOFT:
                notes.append(repair("label", f"the value {value:g} is taken as the liver"))
            if (np.where(liver, value, 0) != voxels_zyx).any():
                notes.append(ROUNDED)
            return liver.view(np.uint8), tuple(notes)
    if not voxels_zyx.any():
        return np.zeros(voxels_zyx.shape, np.uint8), ()
    if label is None or not off_whole_numbers(voxels_zyx) <= SOFT:
        values = np.unique(voxels_zyx)
        what = "more than two values" if len(values) > 2 else "other values than 0 and one above"
        raise InputError(
            path,
            kind="not_a_mask",
            reason=f"it holds {what} ({_listed(values)})",
            remedy="It looks like an image: give its mask"
            if len(values) > _MOST_LABELS
            else "Choose the liver's with --label, or give a mask of the liver alone",
        )
    liver = np.abs(voxels_zyx - label) <= SOFT
    if not liver.any():
        raise no_such_label(path, label, found=f"the values {_listed(np.unique(voxels_zyx))}")
    return liver.view(np.uint8), (ROUNDED,) if (voxels_zyx[liver] != label).any() else ()


def _listed(values: npt.NDArray[np.float32]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:_LISTED_VALUES])
    more = len(values) - _LISTED_VALUES
    return f"{shown} and {more} more" if more > 0 else shown


def no_such_label(path: Path, label: int, *, found: str) -> InputError:
    """Return the error of a mask without the label asked for; ``found`` says what it holds."""
    return image_error(path, "no_such_label", f"no voxel has the label {label}; it holds {found}")


def off_whole_numbers(voxels_zyx: ArrayZYX) -> float:
    """Return the largest distance of a voxel from a whole number; NaN if a voxel is not finite."""
    with np.errstate(invalid="ignore"):
        return float(np.abs(voxels_zyx - np.rint(voxels_zyx)).max())
