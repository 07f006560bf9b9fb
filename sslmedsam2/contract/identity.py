"""Case and sequence of an image by file and folder names, in common layouts of data sets.

The rules, in this order, at any depth below the root:

1. ``<case>/T2``, also ``<case>/T2_0000`` and ``<case>/T2/T2``: the name is a sequence;
2. ``<case>_T2``: the name ends in a sequence (a prefix such as ``scan`` is not a case; then the
   folder is);
3. ``T2/<case>``, ``T2/<case>/<any>`` and ``<case>/T2/<any>``: a folder is a sequence;
4. ``imagesTr/<case>_0000``: an nnU-Net raw data set; the sequence is the name of the channel in
   ``dataset.json``.
"""

from __future__ import annotations

import glob
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from sslmedsam2.contract import names
from sslmedsam2.contract.folder_rules import (
    case_name,
    find_vendor,
    folder_name,
    folder_names,
    volume_stem,
)
from sslmedsam2.contract.sequence_map import NO_SEQUENCE, SequenceMap
from sslmedsam2.contract.walk import Folder, Tree
from sslmedsam2.imaging.image_file import ImageFile

Identity = tuple[str, str | None]

IMAGE_FOLDERS: Final = names.NNUNET_IMAGE_FOLDERS
LABEL_FOLDERS: Final = names.NNUNET_LABEL_FOLDERS
_CHANNEL: Final = re.compile(r"_(\d{4})$")
_NO_CASE: Final = re.compile(r"(scan|images?|img|mri?|volume|series|study|abdomen)", re.IGNORECASE)


def is_in(folders: tuple[str, ...], path: Path) -> bool:
    """Return whether a file lies directly in one of nnU-Net's folders, in any letter case."""
    return folder_name(path.parent).lower() in folders


def nnunet_partner(folder: Folder, tree: Tree) -> Folder | None:
    """Return the ``labelsTr`` beside an ``imagesTr``, or vice versa; None without one."""
    pairs = dict(zip(IMAGE_FOLDERS + LABEL_FOLDERS, LABEL_FOLDERS + IMAGE_FOLDERS, strict=True))
    wanted = folder.path.parent, pairs.get(folder_name(folder.path).lower())
    places = ((one.path.parent, folder_name(one.path).lower()) for one in tree.folders)
    return next((one for one, at in zip(tree.folders, places, strict=True) if at == wanted), None)


def channel_of(path: Path) -> str | None:
    """Return ``0000`` of ``<case>_0000``, or ``0001`` beside it; None for other names.

    Channels begin with 0000: without it, ``amos_0507`` is a case.
    """
    stem = volume_stem(path)
    match = _CHANNEL.search(stem)
    if match is None:
        return None
    first = f"{stem[: match.start()]}_0000"
    is_channel = stem == first or any(path.parent.glob(f"{glob.escape(first)}.*"))
    return match[1] if is_channel else None


def without_channel(stem: str) -> str:
    """Return the case of ``<case>_0000``; other names as they are."""
    return stem.removesuffix("_0000")


def identify(
    path: Path, *, root: Path, sequences: SequenceMap, stem: str | None = None
) -> Identity | None:
    """Return case and sequence of an image; None if no rule of the module applies.

    ``stem`` is the name of the image if ``path`` is its mask. ``sequences`` adds names.
    """
    stem = volume_stem(path) if stem is None else stem
    name = stem if is_in(LABEL_FOLDERS, path) else without_channel(stem)
    folder = path.parent
    own = sequences.parse(name)
    if own:
        case = case_folder(folder, root=root, sequences=sequences)
        return case_name(case, root=root), own.sequence
    split = sequences.split(name)
    if split:
        prefix, ending = split
        at_root = folder == root or is_in(IMAGE_FOLDERS + LABEL_FOLDERS, path)
        is_case = at_root or not _NO_CASE.fullmatch(prefix)
        return prefix if is_case else case_name(folder, root=root), ending.sequence
    by_folder = _by_folder(folder, name, root=root, sequences=sequences)
    if by_folder:
        return by_folder
    if is_in(IMAGE_FOLDERS + LABEL_FOLDERS, path):
        return _of_nnunet(path, stem)
    return (name, None) if folder == root and name != stem else None


def identified(image: ImageFile, *, root: Path, sequences: SequenceMap) -> ImageFile:
    """Return an image with case and sequence of `identify`, if these can be used.

    A sequence that the user's map gives for the file itself is kept.
    """
    stem = volume_stem(image.path)
    mapped = sequences.of_file(image.path, root=root, stem=stem)
    identity = identify(image.path, root=root, sequences=sequences)
    if identity is None:
        return image
    case, sequence = identity
    is_root = case_folder(image.path.parent, root=root, sequences=sequences) == root
    # The name of the root is not that of a patient.
    if names.unsafe_reason(case) or (is_root and sequences.parse(stem)):
        return image
    if mapped:
        sequence = None if mapped == NO_SEQUENCE else mapped
    sequence = sequence if sequence in names.SEQUENCES else None
    vendor = find_vendor(case, image.path.parent, root=root)
    return replace(image, case=case, sequence=sequence, vendor=vendor)


def above_sequences(folder: Path, *, root: Path, sequences: SequenceMap) -> Path:
    """Return the parent of the topmost folder below ``root`` that is named as a sequence."""
    named = [
        parent
        for parent in (folder, *folder.parents)
        if parent != root and parent.is_relative_to(root) and sequences.parse(folder_name(parent))
    ]
    return named[-1].parent if named else folder


def spelling_rank(image: ImageFile, *, root: Path, sequences: SequenceMap) -> int:
    """Return the best rank of the names, file and folders, that give an image its sequence."""
    stem = volume_stem(image.path)
    split = sequences.split(stem)
    folders = folder_names(image.path.parent, root=root)
    found = [sequences.parse(stem), split[1] if split else None, *map(sequences.parse, folders)]
    ranks = [one.rank for one in found if one and one.sequence == image.sequence]
    return min(ranks, default=names.WORST_RANK)


def case_folder(folder: Path, *, root: Path, sequences: SequenceMap) -> Path:
    """Return the folder that names a case: the nearest that is not itself named as a sequence."""
    while folder != root and sequences.parse(folder_name(folder)):
        folder = folder.parent
    return folder


def named_by_folder(images: Iterable[ImageFile], *, root: Path) -> list[ImageFile]:
    """Use the folder as the case of images that would have the same case and sequence."""
    groups: dict[tuple[str, str], list[ImageFile]] = defaultdict(list)
    for image in images:
        key = names.identity_key(image.case), names.identity_key(image.sequence_or_volume)
        groups[key].append(image)
    return [
        replace(image, case=case_name(image.path.parent, root=root)) if len(group) > 1 else image
        for group in groups.values()
        for image in group
    ]


def _by_folder(folder: Path, name: str, *, root: Path, sequences: SequenceMap) -> Identity | None:
    inside = [parent for parent in (folder, *folder.parents) if parent.is_relative_to(root)]
    for parent in inside:
        parsed = sequences.parse(folder_name(parent))
        if not parsed:
            continue
        sequence = parsed.sequence
        above = parent.parent
        if parent != folder:
            return case_name(folder, root=root), sequence
        if root in (parent, above) or names.vendor_of_folder(folder_name(above)):
            return name, sequence
        case = case_folder(above, root=root, sequences=sequences)
        return case_name(case, root=root), sequence
    return None


def _of_nnunet(path: Path, stem: str) -> Identity:
    """Return case and sequence in an nnU-Net raw data set.

    Without a name in ``dataset.json``, channels other than the first are named by their number.
    """
    channel = None if is_in(LABEL_FOLDERS, path) else channel_of(path)
    case = stem if channel is None else stem.removesuffix(f"_{channel}")
    channel_name = _channel_name(path.parent.parent, channel or "0000")
    return case, channel_name or (None if channel == "0000" else channel)


def _channel_name(folder: Path, channel: str) -> str | None:
    """Return the sequence of a channel by ``dataset.json``; None if it names none."""
    try:
        table = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        word = (table.get("channel_names") or table.get("modality") or {})[str(int(channel))]
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None
    parsed = names.parse_sequence(str(word))
    return parsed.sequence if parsed else None
