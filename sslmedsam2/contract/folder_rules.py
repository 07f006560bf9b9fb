"""Rules for one folder: it is a case, a folder of volumes without a sequence, or an error.

The content decides, in this order:

1. A folder with at least one sequence name (``GED4``, ``T2WI``, ...) **is a case**, named by the
   folder (a date or a visit has the name of the folder above in front); each other volume in it
   is a case without a sequence (``0930-A_extra``), unless its name is that of a derived image
   (``ADC``).
2. A folder whose own name is that of a case (``0930-A``, or directly below a vendor folder) is a
   case too if names in it end in a sequence (``0930-A_T2``, ``T2_0000``), else an error. The
   input folder itself is exempt.
3. In any other folder **each volume is a case** without a sequence, named by its stem, with the
   names of the sub-folders in front (``sub/scan.mha`` is ``sub_scan``).

Below a folder named as a sequence (``T2/P1.nii.gz``, ``P1/T2/scan.nii.gz``) rule 2 does not apply,
and `studies` replaces case and sequence by those of `identity`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from sslmedsam2.contract import info_csv, names
from sslmedsam2.contract.outputs import PREDICTION_FOLDER, REPORT_NAME
from sslmedsam2.contract.sequence_map import NO_SEQUENCE, SKIP, SequenceMap
from sslmedsam2.contract.walk import Folder, Tree
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.formats import ARCHIVE_SUFFIX, unread_image
from sslmedsam2.imaging.image_file import ImageFile

_NAMELESS_FOLDER = "case"
"""Case name for a folder without a name: the root of a file system."""

_Named = dict[Path, names.SequenceName | None]


@dataclass(frozen=True)
class LeftOut:
    """A file that is or may be an image and is not used; ``reason`` is one clause.

    ``image`` is None for a file that is no image of a case.
    """

    path: Path
    reason: str
    image: ImageFile | None = None


@dataclass(frozen=True)
class Discovery:
    """The images of an input, or of one folder of it.

    Attributes
    ----------
    series
        The images, by case and in processing order.
    problems
        One error for each file or folder that should be an image and cannot be used.
    notes
        Lines for information; no action is needed.
    left_out
        Files that are or may be images and are not used.
    """

    series: tuple[ImageFile, ...] = ()
    problems: tuple[InputError, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def read_folder(folder: Folder, *, tree: Tree, sequence_map: SequenceMap) -> Discovery:
    """Apply the rules of the module to one folder of a tree.

    ``sequence_map`` takes precedence over names.
    """
    images = [path for path in folder.volumes if not is_mask(path)]
    named, skipped, mapped = _names_of(images, sequence_map, root=tree.root)
    images = list(named)
    oddities = tuple(error for error in folder.oddities if not is_mask(Path(error.subject)))
    is_case = _is_named_as_case(folder.path) and not (
        folder.path == tree.root
        or is_in_sequence_folder(folder.path, root=tree.root, sequences=sequence_map)
    )
    if is_case and not any(named.values()):
        named = {path: _ending_of(path, sequence_map) for path in images}
    if len(mapped) > len(set(mapped)):
        # By the map several images have the same sequence, so they are several cases.
        part = _read_volumes(folder, named, root=tree.root)
    elif any(named.values()):
        part = _read_case(folder, named, root=tree.root)
    elif is_case:
        part = Discovery(problems=() if oddities else _empty_case(folder, images, tree=tree))
    else:
        part = _read_volumes(folder, named, root=tree.root)
    left_out = [LeftOut(path, f"the sequence map says {SKIP}") for path in skipped]
    left_out += [LeftOut(path, "it is named like a mask") for path in _masks_alone(folder)]
    # The folder ``cases`` of a results page holds pictures.
    is_page = folder.path.name == "cases" and (folder.path.parent / REPORT_NAME).is_file()
    for path in () if is_page else folder.others:
        reason = None if info_csv.is_info_table(path) else unread_image(path)
        if reason:
            left_out.append(LeftOut(path, reason))
    return replace(part, problems=(*oddities, *part.problems), left_out=(*left_out, *part.left_out))


def _names_of(
    images: list[Path], sequence_map: SequenceMap, *, root: Path
) -> tuple[_Named, list[Path], list[str]]:
    """Return the sequence of each image, the images to skip, and sequences of single files."""
    named: _Named = {}
    skipped, mapped = [], []
    for path in images:
        stem = volume_stem(path)
        entry = sequence_map.of_file(path, root=root, stem=stem)
        if entry == SKIP:
            skipped.append(path)
        elif entry == NO_SEQUENCE:
            named[path] = None
        elif entry:
            named[path] = names.SequenceName(entry, rank=0)
            mapped.append(entry)
        else:
            named[path] = sequence_map.parse(stem)
    return named, skipped, mapped


def _ending_of(path: Path, sequence_map: SequenceMap) -> names.SequenceName | None:
    """Return the sequence of ``<case>_T2`` or ``T2_0000``; None for other names."""
    stem = volume_stem(path).removesuffix("_0000")
    split = sequence_map.split(stem)
    return split[1] if split else sequence_map.parse(stem)


def volume_stem(path: Path) -> str:
    """Return a volume's file name without its suffix."""
    parts = names.split_volume_name(path.name)
    return parts[0] if parts else path.name


def is_mask(path: Path) -> bool:
    """Whether a volume is a mask by its name, or by that of its folder."""
    return _holds_masks(path.parent) or names.parse_mask_stem(volume_stem(path)) is not None


def _holds_masks(folder: Path) -> bool:
    return folder_name(folder).lower() in names.MASK_FOLDERS


def _masks_alone(folder: Folder) -> list[Path]:
    """Return the volumes that are named like masks of images that the folder does not have.

    None in a folder of masks. Maps and label maps of organs are nobody's scans.
    """
    if _holds_masks(folder.path):
        return []
    stems = {path: volume_stem(path) for path in folder.volumes}
    images = {"", *stems.values()}
    masks = {path: names.parse_mask_stem(stem) for path, stem in stems.items()}
    return [
        path
        for path, mask in masks.items()
        if mask and mask.kind in ("mask", "seg", "pred") and mask.image_stem not in images
    ]


def folder_name(path: Path) -> str:
    """Return a folder's own name, also where the path ends in ``.`` or ``..``.

    One that was an archive is called as it was, without the suffix.
    """
    name = Path(os.path.abspath(path)).name or _NAMELESS_FOLDER  # noqa: PTH100 (resolve() would follow a link and lose the name)
    return _without_zip(name)


def case_name(folder: Path, *, root: Path) -> str:
    """Return what a folder below ``root`` calls its case: ``20240131`` of P1 is ``P1_20240131``."""
    name, above = folder_name(folder), folder.parent
    names_patient = (
        folder != root
        and above != root
        and above.is_relative_to(root)
        and folder_name(above) != PREDICTION_FOLDER
        and names.vendor_of_folder(folder_name(above)) is None
    )
    if not (names_patient and names.is_occasion(name)):
        return name
    return f"{case_name(above, root=root)}_{name}"


def folder_names(folder: Path, *, root: Path) -> list[str]:
    """Return the names of the folders from below ``root`` to ``folder``."""
    return [_without_zip(part) for part in folder.relative_to(root).parts]


def _without_zip(name: str) -> str:
    is_archive = name.lower().endswith(ARCHIVE_SUFFIX) and name.lower() != ARCHIVE_SUFFIX
    return name[: -len(ARCHIVE_SUFFIX)] if is_archive else name


def is_in_sequence_folder(folder: Path, *, root: Path, sequences: SequenceMap) -> bool:
    """Whether a folder, or one between it and ``root``, is named as a sequence."""
    return any(map(sequences.parse, folder_names(folder, root=root)))


def case_of_volume(folder: Path, stem: str, *, root: Path) -> str:
    """Return the case name of a volume outside the challenge's layout, by its place."""
    return "_".join((*folder_names(folder, root=root), stem))


def find_vendor(case: str, folder: Path, *, root: Path) -> str | None:
    """Return the vendor by the nearest vendor folder, else by the case name."""
    inside = [parent for parent in (folder, *folder.parents) if parent.is_relative_to(root)]
    by_folder = (names.vendor_of_folder(folder_name(parent)) for parent in inside)
    return next((vendor for vendor in by_folder if vendor), None) or names.vendor_of_case(case)


def _read_case(folder: Folder, named: _Named, *, root: Path) -> Discovery:
    """Read a folder in which sequence names occur."""
    case = case_name(folder.path, root=root)
    unsafe = names.unsafe_reason(case)
    if unsafe:
        return Discovery(problems=(_unsafe(folder.path, unsafe),))
    vendor, by_name = find_vendor(case, folder.path, root=root), names.vendor_of_case(case)
    strangers = [path for path, name in named.items() if not name]
    derived = [path for path in strangers if names.is_derived(volume_stem(path))]
    without_sequence = _read_volumes(
        folder, {path: None for path in strangers if path not in derived}, root=root
    )
    left_out = [LeftOut(path, "its name says that it is a derived image") for path in derived]
    others = [path for path in folder.others if not info_csv.is_info_table(path)]
    notes = [f"{path}: has no sequence name; not used" for path in (*derived, *others)]
    if by_name and vendor != by_name:
        notes.append(f"{folder.path}: lies with vendor {vendor}, is named as vendor {by_name}")

    series, problems = [], list(without_sequence.problems)
    for sequence, paths in _by_sequence(named).items():
        chosen, rejected = _choose(paths, named)
        if chosen is None:
            problems.append(_ambiguous(rejected, sequence))
        else:
            series.append(ImageFile(case=case, vendor=vendor, sequence=sequence, path=chosen))
            b_value = names.other_b_value(volume_stem(chosen))
            if b_value is not None:
                said = f"is taken for {sequence}, though its name says b = {b_value}"
                notes.append(f"{chosen}: {said}")
            reason = f"{chosen.name} is taken for {sequence}"
            left_out += [LeftOut(path, reason, replace(series[-1], path=path)) for path in rejected]
            notes += [f"{path}: {reason}" for path in rejected]
    series += without_sequence.series
    return Discovery(tuple(series), tuple(problems), tuple(notes), tuple(left_out))


def _read_volumes(folder: Folder, named: _Named, *, root: Path) -> Discovery:
    """Read a folder of volumes outside the challenge's layout: each is a case."""
    series, problems = [], []
    for path, name in named.items():
        case = case_of_volume(folder.path, volume_stem(path), root=root)
        unsafe = names.unsafe_reason(case)
        if unsafe:
            problems.append(_unsafe(path, unsafe))
            continue
        vendor = find_vendor(volume_stem(path), folder.path, root=root)
        sequence = name.sequence if name else None
        series.append(ImageFile(case=case, vendor=vendor, sequence=sequence, path=path))
    return Discovery(tuple(series), tuple(problems))


def _by_sequence(named: _Named) -> dict[str, list[Path]]:
    """Group the recognised images, in processing order."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path, name in named.items():
        if name:
            groups[name.sequence].append(path)
    return {sequence: groups[sequence] for sequence in names.SEQUENCES if sequence in groups}


def _choose(paths: list[Path], named: _Named) -> tuple[Path | None, list[Path]]:
    """Pick the file of a sequence: (chosen, others), or (None, all) if undecided.

    The best spelling wins. Two names of one real file are one file.
    """
    ranks = {path: name.rank for path, name in named.items() if name}
    ranked = sorted(paths, key=lambda path: (ranks[path], path.name))
    rivals = [path for path in ranked[1:] if ranks[path] == ranks[ranked[0]]]
    if any(not _is_same_file(ranked[0], rival) for rival in rivals):
        return None, ranked
    return ranked[0], ranked[1:]


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _is_named_as_case(path: Path) -> bool:
    name = folder_name(path)
    named = names.vendor_of_case(name) or names.vendor_of_folder(folder_name(path.parent))
    return named is not None and names.vendor_of_folder(name) is None


def _empty_case(folder: Folder, images: list[Path], *, tree: Tree) -> tuple[InputError, ...]:
    """Report a case folder without a usable image, unless there are volumes further down."""
    if any(other.volumes and folder.path in other.path.parents for other in tree.folders):
        return ()
    if images:
        kind = "unknown_sequence"
        reason = f"no file is named as a sequence ({', '.join(path.name for path in images)})"
    else:
        kind, reason = "empty_case", "the case folder holds no image"
    remedy = f"Name its images {', '.join(names.PREDICTED_SEQUENCES)}"
    return (InputError(folder.path, kind=kind, reason=reason, remedy=remedy),)


def _ambiguous(paths: list[Path], sequence: str) -> InputError:
    return InputError(
        paths[0],
        kind="ambiguous_sequence",
        reason=f"{' and '.join(path.name for path in paths)} are the same sequence, {sequence}",
        remedy=f"Keep one of them, or call one {sequence}.nii.gz",
    )


def _unsafe(path: Path, reason: str) -> InputError:
    # The name may hold a line break or bytes that no terminal can show.
    shown = ascii(str(path)).strip("'")
    return InputError(
        shown,
        kind="unsafe_name",
        reason=f"the name {reason}",
        remedy="Rename it with plain letters, digits, '-' and '_'",
    )
