"""List the images of an input, with case and sequence.

:mod:`folder_rules` decides for each folder, and this module combines the results. Masks, hidden
files and output of this program are never images. If a case name occurs twice, both cases are
errors, so that no result overwrites another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sslmedsam2.contract import info_csv, names
from sslmedsam2.contract.folder_rules import (
    Discovery,
    LeftOut,
    is_in_sequence_folder,
    is_mask,
    read_folder,
    volume_stem,
)
from sslmedsam2.contract.identity import (
    above_sequences,
    identified,
    named_by_folder,
    spelling_rank,
)
from sslmedsam2.contract.outputs import GENERIC_SUFFIX
from sslmedsam2.contract.sequence_map import NO_MAP, SequenceMap
from sslmedsam2.contract.walk import Tree, require_folder, walk_input
from sslmedsam2.errors import InputError, NoInputError
from sslmedsam2.imaging.formats import ARCHIVE_SUFFIX
from sslmedsam2.imaging.image_file import ImageFile

__all__ = ["Discovery", "find_queries", "find_studies"]

# The images of one case that lie together: where, and the case.
_Study = tuple[Path, str]


def find_studies(
    input_path: Path,
    *,
    only: Sequence[Path] = (),
    tree: Tree | None = None,
    sequences: Collection[str] | None = None,
    default: Collection[str] = names.PREDICTED_SEQUENCES,
    sequence_map: SequenceMap = NO_MAP,
) -> Discovery:
    """List the images below a folder, or the one image that a path names.

    Parameters
    ----------
    input_path
        A folder, in any layout that `folder_rules` describes, or one volume.
    only
        The files and folders of it to use; empty for all.
    tree
        The result of `walk_input`, if it was called before.
    sequences
        Canonical names of the sequences to keep; None for those of ``default``. Images without a
        sequence are kept, except those beside images with a sequence if ``sequences`` is given.
    sequence_map
        Sequences of files by the user; takes precedence over names.

    Raises NoInputError: the path does not exist or is neither a folder nor a volume. For an input
    without images the result is empty, with the reason in its notes.
    """
    tree = _without_masks_as_input(tree or walk_input(input_path, only), input_path, only)
    parts = [read_folder(folder, tree=tree, sequence_map=sequence_map) for folder in tree.folders]
    found, own_results = _without_own_results([image for part in parts for image in part.series])
    studies, superseded = _studies_of(found, root=tree.root, sequences=sequence_map)
    images = [image for study in studies.values() for image in study]
    unique, clashes = _split_duplicates(studies)
    series, unasked = _keep_sequences(unique, sequences, default=default)
    problems = (*tree.problems, *(error for part in parts for error in part.problems), *clashes)
    notes = [*tree.notes, *(note for part in parts for note in part.notes)]
    if not found and not problems:
        count = sum(len(folder.volumes) + len(folder.others) for folder in tree.folders)
        masks = sum(is_mask(path) for folder in tree.folders for path in folder.volumes)
        named = f", {masks} of them named like masks" if masks else ""
        notes.append(f"{input_path}: no image among its {count} files{named}")
    return Discovery(
        series=series,
        problems=problems,
        notes=(*notes, *_disagreements(tree, images)),
        left_out=(
            *(one for part in parts for one in part.left_out),
            *own_results,
            *superseded,
            *unasked,
        ),
    )


def _without_masks_as_input(tree: Tree, input_path: Path, only: Sequence[Path]) -> Tree:
    """Add an error for each mask given as input, and refuse a single file that is no volume."""
    files = [input_path] if input_path.is_file() else [one for one in only if one.is_file()]
    if not input_path.is_dir() and names.split_volume_name(input_path.name) is None:
        if input_path.name.lower().endswith(ARCHIVE_SUFFIX):
            require_folder(input_path)
        raise NoInputError(
            input_path,
            reason="is neither a folder nor a volume",
            remedy=f"Give a folder, or a file that ends in {', '.join(names.VOLUME_SUFFIXES)}",
        )
    masks = [
        InputError(
            path,
            kind="mask_as_input",
            reason="is named like a mask",
            remedy="Give the image, or rename the file",
        )
        for path in files
        if is_mask(path)
    ]
    return replace(tree, problems=(*tree.problems, *masks))


def _without_own_results(images: list[ImageFile]) -> tuple[list[ImageFile], list[LeftOut]]:
    """Leave ``X_liver`` out if ``X`` is a case: it is a mask of an earlier run."""
    plain = {image.case for image in images if image.sequence is None}

    def is_own_result(image: ImageFile) -> bool:
        stem = volume_stem(image.path)
        bases = {image.case.removesuffix(GENERIC_SUFFIX), stem.removesuffix(GENERIC_SUFFIX)}
        return image.sequence is None and stem.endswith(GENERIC_SUFFIX) and bool(bases & plain)

    kept, left_out = [], []
    for image in images:
        if is_own_result(image):
            reason = "it is named like a mask of another scan here"
            left_out.append(LeftOut(image.path, reason, image))
        else:
            kept.append(image)
    return kept, left_out


def _studies_of(
    images: list[ImageFile], *, root: Path, sequences: SequenceMap
) -> tuple[dict[_Study, list[ImageFile]], list[LeftOut]]:
    """Find case and sequence of images in sequence folders, and group images by case.

    Of several images of one sequence, the one with the best spelling is used and the others are
    left out. If none is better, each keeps the names of its folder's rules and is a study of its
    own.
    """
    studies: dict[_Study, list[ImageFile]] = defaultdict(list)
    left_out: list[LeftOut] = []
    groups: dict[tuple[Path, str, str | None], dict[ImageFile, ImageFile]] = defaultdict(dict)
    for image in images:
        folder, named = image.path.parent, image
        if is_in_sequence_folder(folder, root=root, sequences=sequences) or (
            image.sequence is None and _names_sequence(volume_stem(image.path), sequences)
        ):
            named = identified(image, root=root, sequences=sequences)
            folder = above_sequences(folder, root=root, sequences=sequences)
        groups[folder, named.case, named.sequence][named] = image
    for (folder, case, sequence), named_images in groups.items():
        ranks = {one: spelling_rank(one, root=root, sequences=sequences) for one in named_images}
        best = [one for one in ranks if ranks[one] == min(ranks.values())]
        if len(best) > 1:
            studies |= {(one.path, one.case): [one] for one in named_images.values()}
            continue
        # An image without a sequence is a case of its own.
        studies[folder if sequence else best[0].path, case] += best
        reason = f"{best[0].path.relative_to(root)} is taken for {sequence}"
        left_out += [LeftOut(one.path, reason, one) for one in ranks if one is not best[0]]
    return {study: sorted(found, key=_by_case) for study, found in studies.items()}, left_out


def _names_sequence(stem: str, sequences: SequenceMap) -> bool:
    """Whether the end of a name is in the user's map, or the suffix of a name after BIDS."""
    return names.is_bids_stem(stem) or sequences.names_a_part_of(stem)


def _split_duplicates(
    studies: dict[_Study, list[ImageFile]],
) -> tuple[list[ImageFile], list[InputError]]:
    """Return the sorted images of studies with unique names, and errors for the others.

    Names that differ only in letter case or Unicode form are equal, because some file systems do
    not distinguish them.
    """
    groups: dict[tuple[str, bool], list[ImageFile]] = defaultdict(list)
    for first, *_ in studies.values():
        groups[names.identity_key(first.case), first.sequence is None].append(first)
    clashes = [
        _duplicate(first, group) for group in groups.values() if len(group) > 1 for first in group
    ]
    unique = {group[0] for group in groups.values() if len(group) == 1}
    kept = [image for study in studies.values() if study[0] in unique for image in study]
    return sorted(kept, key=_by_case), clashes


def _by_case(image: ImageFile) -> tuple[str, int]:
    return image.case, names.sequence_order(image.sequence)


def _duplicate(image: ImageFile, group: list[ImageFile]) -> InputError:
    others = ", ".join(str(_named_by(other)) for other in group if other is not image)
    return InputError(
        _named_by(image),
        kind="duplicate_case",
        reason=f"the case name {image.case} also belongs to {others}; neither is processed",
        remedy="Rename one of them",
    )


def _named_by(image: ImageFile) -> Path:
    """Return the path that gives an image its case: the folder, or without a sequence the file."""
    return image.path.parent if image.sequence else image.path


def _keep_sequences(
    images: list[ImageFile], wanted: Collection[str] | None, *, default: Collection[str]
) -> tuple[tuple[ImageFile, ...], list[LeftOut]]:
    """Keep images of the wanted sequences, and those without a sequence if none are wanted."""
    named = {image.path.parent for image in images if image.sequence}
    kept: list[ImageFile] = []
    left_out: list[LeftOut] = []
    for image in images:
        if image.sequence is None and wanted is not None and image.path.parent in named:
            reason = "its name gives no sequence, and --sequences was given"
            left_out.append(LeftOut(image.path, reason, image))
        elif image.sequence is None or image.sequence in (wanted or default):
            kept.append(image)
        else:
            reason = f"{image.sequence} is used only if --sequences names it"
            left_out.append(LeftOut(image.path, reason, image))
    return tuple(kept), left_out


def _disagreements(tree: Tree, images: list[ImageFile]) -> list[str]:
    """Return the differences of every ``info.csv`` from the files, which take precedence."""
    cases: dict[str, list[ImageFile]] = defaultdict(list)
    for image in images:
        if image.sequence:
            cases[image.case].append(image)
    facts = [
        info_csv.CaseFacts(
            case=case,
            vendor=series[0].vendor,
            missing=frozenset(names.SEQUENCES) - {one.sequence for one in series},
        )
        for case, series in cases.items()
    ]
    files = [path for folder in tree.folders for path in folder.others]
    tables = [path for path in files if info_csv.is_info_table(path)]
    return [note for path in tables for note in info_csv.disagreements(path, facts)]


def find_queries(
    root: Path,
    *,
    labelled: Iterable[ImageFile],
    sequences: Collection[str] | None = None,
    sequence_map: SequenceMap = NO_MAP,
) -> Discovery:
    """List the volumes below ``root`` that are not images of ``labelled``.

    Masks are ignored: ``root`` may contain the support folder, or a labelled volume of another
    folder, to compare its pseudo label with its mask.

    Parameters
    ----------
    root
        A folder in any layout that `find_studies` or `identify` understands, or one volume.
    sequences
        Canonical names; None for all.
    sequence_map
        Sequences of files by the user; takes precedence over names.

    Raises NoInputError: as `find_studies`.
    """
    found = find_studies(
        root, sequences=sequences, default=names.SEQUENCES, sequence_map=sequence_map
    )
    images = {series.path.resolve() for series in labelled}
    kept, notes = [], list(found.notes)
    for series in found.series:
        if series.path.resolve() in images:
            notes.append(f"{series.path}: is labelled, and so needs no pseudo label")
        else:
            kept.append(series)
    base = root if root.is_dir() else root.parent
    wanted = set(sequences or names.SEQUENCES)
    chosen = []
    for series in _identified(kept, root=base, sequence_map=sequence_map):
        if series.sequence is None or series.sequence in wanted:
            chosen.append(series)
        else:
            notes.append(f"{series.path}: {series.sequence} is used only if --sequences names it")
    notes += [f"{one.path}: is left out, {one.reason}" for one in found.left_out]
    return Discovery(tuple(sorted(chosen, key=_by_case)), found.problems, tuple(notes))


def _identified(
    series: list[ImageFile], *, root: Path, sequence_map: SequenceMap
) -> list[ImageFile]:
    """Find case and sequence of images without a sequence, if the names remain unique."""
    better = named_by_folder(
        (
            one if one.sequence else identified(one, root=root, sequences=sequence_map)
            for one in series
        ),
        root=root,
    )
    counts = Counter((names.identity_key(one.case), one.sequence) for one in better)
    by_path = {one.path: one for one in series}
    return [
        one if counts[names.identity_key(one.case), one.sequence] == 1 else by_path[one.path]
        for one in better
    ]
