"""Labelled volumes: images with a ``mask_*`` file beside them, as in the training release.

Anything ambiguous is an error: a case left out of a training without notice, or trained with the
wrong mask, would be found too late.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from sslmedsam2.contract import names
from sslmedsam2.contract.folder_rules import folder_name, volume_stem
from sslmedsam2.contract.walk import Folder, walk
from sslmedsam2.errors import InputError, NoInputError
from sslmedsam2.imaging.image_file import ImageFile

_REFERENCE_KINDS: Final = ("mask", "seg")
"""``X_pred`` is what a program wrote."""
_ORGANS_KIND: Final = "organs"


def find_labelled_series(root: Path, *, label: int | None = None) -> tuple[ImageFile, ...]:
    """Find every image that has a mask of its name beside it, at any depth.

    Masks are ``mask_X``, ``X_mask`` and ``X_seg``, maps of organs ``organs_X``. Images without a
    mask are passed over. Returns the rest sorted by case and sequence; empty if there are none.
    ``label`` is the value of the liver in their masks; None for the only foreground value.

    Raises
    ------
    NoInputError
        ``root`` is no folder.
    InputError
        A folder cannot be listed, a mask has no image, two files could be meant where one is
        wanted, or two images have the same case and sequence.
    """
    if not root.is_dir():
        raise NoInputError(root, reason="there is no such folder", remedy="Check the path")
    tree = walk(root)
    if tree.problems:
        raise tree.problems[0]
    found = [series for folder in tree.folders for series in _read_folder(folder, label)]
    _check_distinct(found)
    return tuple(sorted(found, key=lambda series: (series.case, series.sequence_or_volume)))


def _read_folder(folder: Folder, label: int | None) -> list[ImageFile]:
    images: dict[str, list[Path]] = defaultdict(list)
    masks: dict[str, list[Path]] = defaultdict(list)
    organs: dict[str, list[Path]] = defaultdict(list)
    for path in folder.volumes:
        mask = names.parse_mask_stem(volume_stem(path))
        if mask is None:
            images[names.identity_key(volume_stem(path))].append(path)
        elif mask.kind in _REFERENCE_KINDS:
            masks[names.identity_key(mask.image_stem)].append(path)
        elif mask.kind == _ORGANS_KIND:
            organs[names.identity_key(mask.image_stem)].append(path)
    return [
        replace(_labelled(folder, image=images[key], mask=paths, organs=organs[key]), label=label)
        for key, paths in masks.items()
    ]


def _labelled(
    folder: Folder, *, image: list[Path], mask: list[Path], organs: list[Path]
) -> ImageFile:
    if not image:
        raise InputError(
            mask[0],
            kind="mask_without_image",
            reason="there is no image of that name beside the mask",
            remedy="Add the image, or remove the mask",
        )
    for paths in (image, mask, organs):
        if len(paths) > 1:
            raise InputError(
                paths[0],
                kind="ambiguous_label",
                reason=f"{' and '.join(path.name for path in paths)} belong to one image",
                remedy="Keep one of them",
            )
    stem = volume_stem(image[0])
    parsed = names.parse_sequence(stem)
    return ImageFile(
        case=folder_name(folder.path),
        sequence=parsed.sequence if parsed else stem,
        path=image[0],
        mask=mask[0],
        organs=organs[0] if organs else None,
    )


def _check_distinct(found: Iterable[ImageFile]) -> None:
    """Refuse two images of one case and sequence: they would be one case to the training."""
    known: dict[tuple[str, str], ImageFile] = {}
    for series in found:
        key = names.identity_key(series.case), names.identity_key(series.sequence_or_volume)
        first = known.setdefault(key, series)
        if first is not series:
            raise InputError(
                series.path,
                kind="duplicate_case",
                reason=f"{first.path} is also {series.sequence} of case {series.case}",
                remedy="Rename one of the case folders, or remove one of the images",
            )
