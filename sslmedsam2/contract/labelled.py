"""Labelled volumes: images with a ``mask_*`` file beside them, as in the training release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MASK_PREFIX: Final = "mask_"
_ORGANS_PREFIX: Final = "organs_"


@dataclass(frozen=True)
class LabelledSeries:
    """One image with its expert liver mask.

    ``organs_path`` is an optional label map of liver and other organs on the same grid.
    """

    case: str
    sequence: str
    image_path: Path
    mask_path: Path
    organs_path: Path | None


def find_labelled_series(root: Path) -> tuple[LabelledSeries, ...]:
    """Find every ``<SEQ>.nii.gz`` that has a ``mask_<SEQ>.nii.gz`` beside it, at any depth.

    Returns them sorted by case and sequence; empty if there are none.
    """
    found = []
    for mask_path in sorted(root.rglob(f"{_MASK_PREFIX}*.nii*")):
        name = mask_path.name.removeprefix(_MASK_PREFIX)
        image_path = mask_path.with_name(name)
        organs_path = mask_path.with_name(f"{_ORGANS_PREFIX}{name}")
        if not image_path.is_file():
            continue
        found.append(
            LabelledSeries(
                case=mask_path.parent.name,
                sequence=name.split(".")[0],
                image_path=image_path,
                mask_path=mask_path,
                organs_path=organs_path if organs_path.is_file() else None,
            )
        )
    return tuple(sorted(found, key=lambda series: (series.case, series.sequence)))
