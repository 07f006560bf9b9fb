"""Find labelled volumes: images with a mask of the liver, in common layouts of data sets.

Anything ambiguous is an error, because a case that is silently left out of a training, or trained
with the wrong mask, is noticed too late.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sslmedsam2.contract import names
from sslmedsam2.contract.folder_rules import case_name, folder_name, volume_stem
from sslmedsam2.contract.identity import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    channel_of,
    identify,
    is_in,
    named_by_folder,
    nnunet_partner,
    without_channel,
)
from sslmedsam2.contract.sequence_map import NO_MAP, NO_SEQUENCE, SKIP, SequenceMap
from sslmedsam2.contract.walk import Folder, Tree, require_folder, walk
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.formats import ARCHIVE_SUFFIX, unread_image
from sslmedsam2.imaging.image_file import ImageFile

logger = logging.getLogger(__name__)

_REFERENCE_KINDS: Final = ("mask", "seg")
"""Not ``pred``: ``X_pred`` is a prediction."""
_ORGANS_KIND: Final = "organs"

_Paths = dict[str, list[Path]]


def find_labelled_series(
    root: Path, *, label: int | None = None, sequence_map: SequenceMap = NO_MAP
) -> tuple[ImageFile, ...]:
    """Find every image that has a mask, at any depth.

    Masks lie beside their image ``X`` and are named as `parse_mask_stem` says (``mask_X``,
    ``X_seg``, ``X.seg.nrrd``, ``X-label``, ...), maps of organs ``organs_X``; or they are the
    ``labelsTr`` of an nnU-Net raw data set. Case and sequence are found by `identify`; an image
    without a sequence is called by its name. Images without a mask are passed over.

    Parameters
    ----------
    label
        The value of the liver in the masks; None for the only foreground value.
    sequence_map
        Sequences of files by the user; takes precedence over names.

    Returns
    -------
    The images, sorted by case and sequence; empty if there are none.

    Raises NoInputError: ``root`` is no folder; InputError: a folder cannot be listed, a mask has no
    image, two files could be meant where one is wanted, or two images have the same case and
    sequence.
    """
    require_folder(root)
    tree = walk(root)
    # A data set that was fetched in part has links that lead nowhere.
    odd_masks = [odd for folder in tree.folders for odd in folder.oddities if _is_mask(odd)]
    problems = [*tree.problems, *odd_masks]
    if problems:
        raise problems[0]
    for path in (path for folder in tree.folders for path in folder.others):
        if path.name.lower().endswith(ARCHIVE_SUFFIX):
            logger.warning("%s is left out: %s", path, unread_image(path))
    found = [
        image
        for folder in tree.folders
        for files in _read_folder(folder, tree)
        for image in _labelled(*files, root=root, sequences=sequence_map, label=label)
    ]
    found = named_by_folder(found, root=root)
    _check_distinct(found)
    return tuple(sorted(found, key=lambda series: (series.case, series.sequence_or_volume)))


def _is_mask(odd: InputError) -> bool:
    path = Path(odd.subject)
    parsed = names.parse_mask_stem(volume_stem(path))
    return is_in(LABEL_FOLDERS, path) or (
        parsed is not None and parsed.kind in (*_REFERENCE_KINDS, _ORGANS_KIND)
    )


def _read_folder(folder: Folder, tree: Tree) -> list[tuple[Path, Path, Path | None]]:
    """Return each labelled image of a folder with its mask and its map of organs, or None."""
    partner = nnunet_partner(folder, tree)
    if partner is not None:
        # Images are found by their labels.
        are_labels = folder_name(folder.path).lower() in LABEL_FOLDERS
        return _read_nnunet(folder, partner) if are_labels else []
    images: _Paths = defaultdict(list)
    masks: _Paths = defaultdict(list)
    organs: _Paths = defaultdict(list)
    alone = []
    for path in folder.volumes:
        mask = names.parse_mask_stem(volume_stem(path))
        if mask is None:
            images[_key(volume_stem(path))].append(path)
        elif mask.kind == _ORGANS_KIND:
            organs[_key(mask.image_stem)].append(path)
        elif mask.kind in _REFERENCE_KINDS:
            if mask.image_stem:
                masks[_key(mask.image_stem)].append(path)
            else:
                alone.append(path)
    for path in alone:
        if len(images) > 1:
            raise InputError(
                path,
                kind="ambiguous_label",
                reason=f"its name does not say which of {len(images)} images it belongs to",
                remedy="Name it mask_<image>, or keep one image in the folder",
            )
        masks[next(iter(images), "")].append(path)
    return [
        (
            _one(images[key], paths),
            _one(paths),
            _one(organs[key]) if organs[key] else None,
        )
        for key, paths in masks.items()
    ]


def _key(stem: str) -> str:
    return names.identity_key(without_channel(stem))


def _one(paths: list[Path], masks: list[Path] | None = None) -> Path:
    """Return the only path; ``masks`` are those of the image, to name in errors."""
    if not paths:
        assert masks
        raise InputError(
            masks[0],
            kind="mask_without_image",
            reason="there is no image of that name beside the mask",
            remedy="Add the image, or remove the mask",
        )
    if len(paths) > 1:
        raise InputError(
            paths[0],
            kind="ambiguous_label",
            reason=f"{' and '.join(path.name for path in paths)} belong to one image",
            remedy="Keep one of them",
        )
    return paths[0]


def _read_nnunet(labels: Folder, images: Folder) -> list[tuple[Path, Path, Path | None]]:
    """Match ``imagesTr/<case>_0000``, and further channels, with ``labelsTr/<case>``."""
    by_case: _Paths = defaultdict(list)
    for path in images.volumes:
        stem = volume_stem(path)
        channel = channel_of(path)
        by_case[names.identity_key(stem.removesuffix(f"_{channel}"))].append(path)
    found: list[tuple[Path, Path, Path | None]] = []
    for mask in labels.volumes:
        channels = by_case[names.identity_key(volume_stem(mask))]
        if not channels:
            raise InputError(
                mask,
                kind="mask_without_image",
                reason=f"there is no {volume_stem(mask)}_0000 in {images.path.name}",
                remedy="Add the image, or remove the mask",
            )
        found += [(path, mask, None) for path in channels]
    return found


def _labelled(
    path: Path,
    mask: Path,
    organs: Path | None,
    *,
    root: Path,
    sequences: SequenceMap,
    label: int | None,
) -> list[ImageFile]:
    """Return the image with case and sequence; empty if the sequence map says to skip it."""
    stem = volume_stem(path)
    entry = sequences.of_file(path, root=root, stem=stem)
    if entry == SKIP:
        return []
    in_case_folder = path.parent != root and not is_in(IMAGE_FOLDERS, path)
    case, sequence = identify(path, root=root, sequences=sequences) or (
        (case_name(path.parent, root=root), stem)
        if in_case_folder
        else (without_channel(stem), None)
    )
    if entry:
        sequence = None if entry == NO_SEQUENCE else entry
    return [
        ImageFile(case=case, sequence=sequence, path=path, mask=mask, organs=organs, label=label)
    ]


def _check_distinct(found: Iterable[ImageFile]) -> None:
    """Refuse two images of one case and sequence."""
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
