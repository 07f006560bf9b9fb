"""Find masks to compare: predictions, and reference masks under the usual names.

Forms, at any depth:

- ``LiSeg_pred/<Case>/<MOD>_pred.nii.gz`` and ``<case>_liver.nii.gz``: predictions;
- ``<Case>/mask_<MOD>.nii.gz``, ``<Case>/<MOD>_mask.nii.gz`` or ``_seg``, and flat
  ``mask_<case>``, ``<case>_mask`` or ``_seg``: reference masks, often with images beside them;
- ``<Case>/<MOD>.nii.gz`` and flat ``<case>.nii.gz``: in a folder that holds masks only.

One form is used for a folder. Predictions: the first of these groups that occurs. Reference masks:
the second, the third, then the first group. ``organs_*`` belongs to none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sslmedsam2.contract import names
from sslmedsam2.contract.folder_rules import (
    case_of_volume,
    find_vendor,
    folder_name,
    volume_stem,
)
from sslmedsam2.contract.outputs import GENERIC_SUFFIX, PREVIEW_FOLDER
from sslmedsam2.contract.walk import walk
from sslmedsam2.errors import InputError, NoInputError
from sslmedsam2.imaging.image_file import ImageFile

_Form = Literal["predicted", "named", "plain"]
_PREDICTION_FORMS: tuple[_Form, ...] = ("predicted", "named", "plain")
_REFERENCE_FORMS: tuple[_Form, ...] = ("named", "plain", "predicted")
_FORM_OF_KIND: dict[str, _Form] = {"pred": "predicted", "mask": "named", "seg": "named"}

MaskKey = tuple[str, str | None]


def mask_key(mask: ImageFile) -> MaskKey:
    """Return the key by which predictions and reference masks are matched."""
    return names.identity_key(mask.case), mask.sequence


@dataclass(frozen=True)
class MaskListing:
    """The masks below a folder, sorted by case and sequence, and the errors."""

    masks: tuple[ImageFile, ...]
    problems: tuple[InputError, ...]


def find_predictions(root: Path) -> MaskListing:
    """List predicted masks; raises NoInputError if there is no such folder, or none in it."""
    return _find_masks(root, forms=_PREDICTION_FORMS)


def find_references(root: Path) -> MaskListing:
    """List reference masks; raises NoInputError if there is no such folder, or none in it."""
    return _find_masks(root, forms=_REFERENCE_FORMS)


def _find_masks(root: Path, *, forms: tuple[_Form, ...]) -> MaskListing:
    if not root.is_dir():
        raise NoInputError(root, reason="there is no such folder", remedy="Check the path")
    tree = walk(root, skipped_names=frozenset({PREVIEW_FOLDER}))
    by_form: dict[_Form, list[ImageFile]] = defaultdict(list)
    for path in (path for folder in tree.folders for path in folder.volumes):
        form, image_stem = _form_of(volume_stem(path))
        if form is not None:
            by_form[form].append(_mask_file(path, image_stem, root=root))
    masks = next((by_form[form] for form in forms if form in by_form), [])
    if not masks:
        in_the_way = [*tree.problems, *(error for f in tree.folders for error in f.oddities)]
        cause = f" ({in_the_way[0].subject} {in_the_way[0].reason})" if in_the_way else ""
        raise NoInputError(
            root,
            reason=f"it holds no masks{cause}",
            remedy="See the command's --help for the names",
        )
    unique, clashes = _split_duplicates(masks)
    return MaskListing(masks=unique, problems=(*tree.problems, *clashes))


def _form_of(stem: str) -> tuple[_Form | None, str]:
    """Return how a file is named, and the stem of the image it belongs to; None: not a mask."""
    mask = names.parse_mask_stem(stem)
    if mask:
        return _FORM_OF_KIND.get(mask.kind), mask.image_stem
    if stem.endswith(GENERIC_SUFFIX):
        return "predicted", stem.removesuffix(GENERIC_SUFFIX)
    return "plain", stem


def _mask_file(path: Path, image_stem: str, *, root: Path) -> ImageFile:
    name = names.parse_sequence(image_stem)
    if name:
        case = folder_name(path.parent)
        by_folder, by_name = find_vendor(case, path.parent, root=root)
    else:
        case = case_of_volume(path.parent, image_stem, root=root)
        by_folder, by_name = find_vendor(image_stem, path.parent, root=root)
    sequence = name.sequence if name else None
    return ImageFile(case=case, vendor=by_folder or by_name, sequence=sequence, path=path)


def _split_duplicates(
    masks: Iterable[ImageFile],
) -> tuple[tuple[ImageFile, ...], list[InputError]]:
    """Separate masks that claim to be the mask of one image; sort the rest."""
    groups: dict[MaskKey, list[ImageFile]] = defaultdict(list)
    for mask in masks:
        groups[mask_key(mask)].append(mask)
    unique = [group[0] for group in groups.values() if len(group) == 1]
    clashes = [
        InputError(
            group[0].path,
            kind="duplicate_mask",
            reason=f"{', '.join(str(m.path) for m in group[1:])} is a mask of the same image",
            remedy="Keep one of them",
        )
        for group in groups.values()
        if len(group) > 1
    ]
    return tuple(sorted(unique, key=lambda m: (m.case, names.sequence_order(m.sequence)))), clashes
