"""Find masks to compare: predictions, and reference masks under the usual names.

Forms, at any depth:

- ``LiSeg_pred/<Case>/<MOD>_pred.nii.gz`` and ``<case>_liver.nii.gz``: predictions;
- ``<Case>/mask_<MOD>.nii.gz`` and the other names of `parse_mask_stem` (``<MOD>_seg``,
  ``<MOD>.seg.nrrd``, ``<MOD>-label``, ...), flat ``mask_<case>`` and the like, and nnU-Net's
  ``labelsTr/<case>``: reference masks, often with images beside them;
- ``<Case>/<MOD>.nii.gz`` and flat ``<case>.nii.gz``: in a folder that holds masks only.

Only one of these forms is used for a folder. For predictions it is the first that occurs, for
reference masks the second, else the third, else the first. ``organs_*`` belongs to no form.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sslmedsam2.contract import names
from sslmedsam2.contract.folder_rules import (
    case_name,
    case_of_volume,
    find_vendor,
    folder_name,
    volume_stem,
)
from sslmedsam2.contract.identity import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    case_folder,
    identify,
    is_in,
    nnunet_partner,
    without_channel,
)
from sslmedsam2.contract.outputs import GENERIC_SUFFIX
from sslmedsam2.contract.sequence_map import NO_MAP, NO_SEQUENCE, SKIP, SequenceMap
from sslmedsam2.contract.walk import Folder, require_folder, walk
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


_Key = Callable[[ImageFile, "MaskListing"], object]


@dataclass(frozen=True)
class MaskListing:
    """The masks below a folder, sorted by case and sequence, and the errors.

    ``identities`` are case and sequence by `identify` for each mask, used by `match_masks`.
    """

    masks: tuple[ImageFile, ...]
    problems: tuple[InputError, ...]
    identities: Mapping[Path, MaskKey]


def find_predictions(root: Path, *, sequence_map: SequenceMap = NO_MAP) -> MaskListing:
    """List predicted masks; raises NoInputError if the folder is missing or has no masks."""
    remedy = "Name them <Case>/<MOD>_pred.nii.gz or <name>_liver.nii.gz"
    return _find_masks(root, _PREDICTION_FORMS, sequence_map, remedy=remedy)


def find_references(root: Path, *, sequence_map: SequenceMap = NO_MAP) -> MaskListing:
    """List reference masks; raises NoInputError if the folder is missing or has no masks."""
    remedy = "Name them <Case>/mask_<MOD>.nii.gz or mask_<name>.nii.gz"
    return _find_masks(root, _REFERENCE_FORMS, sequence_map, remedy=remedy)


def match_masks(
    references: MaskListing, predictions: MaskListing
) -> list[tuple[ImageFile, ImageFile | None]]:
    """Return each reference with its prediction, or None.

    They match by name; else by `identify`; else by case, if one of them has no sequence and the
    case has one mask on either side.
    """
    pairs: list[tuple[ImageFile, ImageFile | None]] = []
    left, free = list(references.masks), list(predictions.masks)
    keys: tuple[_Key, ...] = (
        lambda mask, _: mask_key(mask),
        lambda mask, listing: listing.identities[mask.path],
        lambda mask, listing: listing.identities[mask.path][0],
    )
    for key in keys:
        by_case = key is keys[-1]
        ours = _unique(references.masks if by_case else left, key, references)
        theirs = _unique(predictions.masks if by_case else free, key, predictions)
        for name in sorted(ours.keys() & theirs.keys(), key=str):
            reference, prediction = ours[name], theirs[name]
            if reference not in left or prediction not in free:
                continue
            sequences = (
                references.identities[reference.path][1],
                predictions.identities[prediction.path][1],
            )
            if not by_case or None in sequences:
                pairs.append((reference, prediction))
                left.remove(reference)
                free.remove(prediction)
    return [*pairs, *((reference, None) for reference in left)]


def _unique(masks: Iterable[ImageFile], key: _Key, listing: MaskListing) -> dict[object, ImageFile]:
    found = [(key(mask, listing), mask) for mask in masks]
    counts = Counter(name for name, _ in found)
    return {name: mask for name, mask in found if counts[name] == 1}


def _find_masks(
    root: Path, forms: tuple[_Form, ...], sequence_map: SequenceMap, *, remedy: str
) -> MaskListing:
    require_folder(root)
    tree = walk(root)
    by_form: dict[_Form, list[ImageFile]] = defaultdict(list)
    identities: dict[Path, MaskKey] = {}
    for folder in tree.folders:
        are_labels = folder_name(folder.path).lower() in LABEL_FOLDERS
        are_images = nnunet_partner(folder, tree) is not None and not are_labels
        for path in folder.volumes:
            form, image_stem = _form_of(path)
            skipped = sequence_map.of_file(path, root=root, stem=image_stem) == SKIP
            if form is None or skipped or (form == "plain" and are_images):
                continue
            stem = image_stem or _only_image(folder)
            case_dir = path.parent
            if form != "predicted":
                case_dir = case_folder(case_dir, root=root, sequences=sequence_map)
            if case_dir == root:
                case_dir = path.parent
            mask = _mask_file(path, stem, root=root, case_dir=case_dir)
            by_form[form].append(mask)
            identities[path] = _identity(mask, stem, root=root, sequence_map=sequence_map)
    chosen = next((form for form in forms if form in by_form), None)
    masks = by_form[chosen] if chosen else []
    odd = [error for folder in tree.folders for error in folder.oddities]
    if not masks:
        causes = [*tree.problems, *odd]
        cause = f" ({causes[0].subject} {causes[0].reason})" if causes else ""
        raise NoInputError(
            root,
            reason=f"it holds no masks{cause}",
            remedy=remedy,
        )
    odd_masks = [error for error in odd if _form_of(Path(error.subject))[0] == chosen]
    unique, clashes = _split_duplicates(masks)
    problems = (*tree.problems, *odd_masks, *clashes)
    return MaskListing(masks=unique, problems=problems, identities=identities)


def _only_image(folder: Folder) -> str:
    """Return the stem of the only image of a folder; empty if there are several or none."""
    stems = [volume_stem(path) for path in folder.volumes]
    images = [stem for stem in stems if names.parse_mask_stem(stem) is None]
    return images[0] if len(images) == 1 else ""


def _identity(
    mask: ImageFile, image_stem: str, *, root: Path, sequence_map: SequenceMap
) -> MaskKey:
    """Return case and sequence by `identify`, to match masks in different layouts."""
    stem = image_stem
    if mask.path.parent == root:
        # For images in sub-folders, predict puts the names of the folders in front.
        for folder in IMAGE_FOLDERS:
            if stem.lower().startswith(f"{folder}_"):
                stem = stem[len(folder) + 1 :]
    found = identify(mask.path, root=root, sequences=sequence_map, stem=stem)
    if found is None and mask.path.parent == root:
        first, _, rest = stem.partition("_")
        parsed = sequence_map.parse(first)
        found = (rest, parsed.sequence) if parsed and rest else None
    case, sequence = found or (without_channel(mask.case), mask.sequence)
    mapped = sequence_map.of_file(mask.path, root=root, stem=image_stem)
    if mapped:
        sequence = None if mapped == NO_SEQUENCE else mapped
    return names.identity_key(case), sequence


def _form_of(path: Path) -> tuple[_Form | None, str]:
    """Return the form of a file, None for no mask, and the stem of the image it belongs to."""
    stem = volume_stem(path)
    mask = names.parse_mask_stem(stem)
    if mask:
        return _FORM_OF_KIND.get(mask.kind), mask.image_stem
    if stem.endswith(GENERIC_SUFFIX):
        return "predicted", stem.removesuffix(GENERIC_SUFFIX)
    return "named" if is_in(LABEL_FOLDERS, path) else "plain", stem


def _mask_file(path: Path, image_stem: str, *, root: Path, case_dir: Path) -> ImageFile:
    name = names.parse_sequence(image_stem)
    if name or not image_stem:
        case = case_name(case_dir, root=root)
        vendor = find_vendor(case, path.parent, root=root)
    else:
        is_label = is_in(LABEL_FOLDERS, path) and path.parent != root
        folder = path.parent.parent if is_label else path.parent
        case = case_of_volume(folder, image_stem, root=root)
        vendor = find_vendor(image_stem, path.parent, root=root)
    sequence = name.sequence if name else None
    return ImageFile(case=case, vendor=vendor, sequence=sequence, path=path)


def _split_duplicates(
    masks: Iterable[ImageFile],
) -> tuple[tuple[ImageFile, ...], list[InputError]]:
    """Return the sorted masks of distinct images, and errors for several masks of one image."""
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
