"""From an input path to studies: which files are images, of which case and which sequence.

:mod:`folder_rules` decides what a folder contributes. Here the contributions are combined: masks,
hidden files and output of this tool are never images, and a case name that occurs twice is an
error for both, so that no result overwrites another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sslmedsam2.contract import info_csv, names
from sslmedsam2.contract.folder_rules import (
    LeftOut,
    Study,
    is_in_sequence_folder,
    is_mask,
    read_folder,
    volume_stem,
)
from sslmedsam2.contract.identity import above_sequences, identified, spelling_rank
from sslmedsam2.contract.outputs import GENERIC_SUFFIX, PREDICTION_FOLDER, PREVIEW_FOLDER
from sslmedsam2.contract.sequence_map import SequenceMap
from sslmedsam2.contract.walk import Folder, Tree, walk
from sslmedsam2.errors import InputError, NoInputError
from sslmedsam2.imaging.image_file import ImageFile

__all__ = ["Discovery", "Layout", "Study", "find_studies"]

Layout = Literal["challenge", "generic", "mixed", "empty"]
_OWN_OUTPUT = frozenset({PREDICTION_FOLDER.lower(), PREVIEW_FOLDER})


@dataclass(frozen=True)
class Discovery:
    """What an input path holds.

    Attributes
    ----------
    studies
        Sorted by case; each has at least one series.
    problems
        One error for each file or folder that should have been a study and cannot be.
    layout
        Which kinds of study were found.
    left_out
        What is or looks like an image and is not used.
    notes
        For information; no action is needed.
    """

    studies: tuple[Study, ...]
    problems: tuple[InputError, ...]
    layout: Layout
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()


def find_studies(
    input_path: Path,
    *,
    only: Sequence[Path] = (),
    sequences: Collection[str] | None = None,
    default: Collection[str] = names.PREDICTED_SEQUENCES,
    sequence_map: SequenceMap | None = None,
) -> Discovery:
    """List the studies below a folder, or the one study of a file.

    Parameters
    ----------
    input_path
        A folder, in any layout that `folder_rules` describes, or one volume.
    only
        The files and folders of it to look at; none for all.
    sequences
        Canonical names of the sequences to keep; None for those of ``default``.
        Images without a sequence are kept, save that those beside images with a sequence are left
        out where ``sequences`` is given.
    sequence_map
        What the user says of files; overrides their names.

    Raises
    ------
    NoInputError
        The path does not exist or is neither a folder nor a volume. An input that exists and
        holds nothing of use is no error here: the discovery is empty and says why.
    """
    tree = _read_input(input_path, only)
    parts = [read_folder(folder, tree=tree, sequence_map=sequence_map) for folder in tree.folders]
    found = _without_own_results([study for part in parts for study in part.studies])
    found, superseded = _named_by_folders(
        found, root=tree.root, sequences=sequence_map or SequenceMap()
    )
    unique, clashes = _split_duplicates(found)
    studies, unasked, missed = _keep_sequences(unique, sequences, default=default)
    problems = (*tree.problems, *(error for part in parts for error in part.problems), *clashes)
    notes = [*tree.notes, *(note for part in parts for note in part.notes), *missed]
    if not found and not problems:
        count = sum(len(folder.volumes) + len(folder.others) for folder in tree.folders)
        notes.append(f"{input_path}: no image among its {count} files")
    return Discovery(
        studies=studies,
        problems=problems,
        layout=_layout_of(found),
        notes=(*notes, *_disagreements(tree, found)),
        left_out=(*(one for part in parts for one in part.left_out), *superseded, *unasked),
    )


def _read_input(path: Path, only: Sequence[Path]) -> Tree:
    """List a folder, or a single file as a folder that holds nothing else."""
    if path.is_dir():
        tree = walk(path, only=only, skipped_names=_OWN_OUTPUT)
        masks = [_mask_as_input(one) for one in only if one.is_file() and is_mask(one)]
        return replace(tree, problems=(*tree.problems, *masks))
    if not path.is_file() or names.split_volume_name(path.name) is None:
        raise NoInputError(
            path,
            reason="is neither a folder nor a volume" if path.exists() else "does not exist",
            remedy=f"Give a folder, or a file that ends in {', '.join(names.VOLUME_SUFFIXES)}",
        )
    if is_mask(path):
        return Tree(root=path.parent, folders=(), problems=(_mask_as_input(path),), notes=())
    folder = Folder(path=path.parent, volumes=(path,), others=(), oddities=())
    return Tree(root=path.parent, folders=(folder,), problems=(), notes=())


def _mask_as_input(path: Path) -> InputError:
    return InputError(
        path,
        kind="mask_as_input",
        reason="is named like a mask",
        remedy="Give the image, or rename the file",
    )


def _without_own_results(studies: list[Study]) -> list[Study]:
    """Drop ``X_liver`` where ``X`` is itself a case: a mask that an earlier run wrote."""
    plain = {study.case for study in studies if study.has_no_sequence}

    def is_own_result(study: Study) -> bool:
        stem = volume_stem(study.series[0].path)
        bases = {study.case.removesuffix(GENERIC_SUFFIX), stem.removesuffix(GENERIC_SUFFIX)}
        return study.has_no_sequence and stem.endswith(GENERIC_SUFFIX) and bool(bases & plain)

    return [study for study in studies if not is_own_result(study)]


def _named_by_folders(
    studies: list[Study], *, root: Path, sequences: SequenceMap
) -> tuple[list[Study], list[LeftOut]]:
    """Name images below folders that are named as sequences, and join those of one case.

    Of several images of one sequence the best spelling wins and the others are left out. Where
    none is better, each stays what its folder's rules made of it.
    """
    kept: list[Study] = []
    left_out: list[LeftOut] = []
    groups: dict[tuple[Path, str, str | None], dict[ImageFile, Study]] = defaultdict(dict)
    for study in studies:
        for image in study.series:
            folder, named = image.path.parent, image
            if is_in_sequence_folder(folder, root=root, sequences=sequences) or (
                image.sequence is None and _names_sequence(volume_stem(image.path), sequences)
            ):
                named = identified(image, root=root, sequences=sequences)
                folder = above_sequences(folder, root=root, sequences=sequences)
            groups[folder, named.case, named.sequence][named] = replace(study, series=(image,))
    joined: dict[tuple[Path, str, bool], list[ImageFile]] = defaultdict(list)
    stages = {}
    for (folder, case, sequence), images in groups.items():
        ranks = {one: spelling_rank(one, root=root, sequences=sequences) for one in images}
        best = [one for one in images if ranks[one] == min(ranks.values())]
        if len(best) > 1:
            kept += images.values()
            continue
        joined[folder, case, sequence is None] += best
        stages[case] = images[best[0]].stage
        reason = f"{best[0].path.relative_to(root)} is taken for {sequence}"
        left_out += [LeftOut(one.path, reason) for one in images if one is not best[0]]
    for (_, case, _), found in joined.items():
        found.sort(key=lambda one: names.sequence_order(one.sequence))
        kept.append(Study(case, found[0].vendor, tuple(found), stages[case]))
    return kept, left_out


def _names_sequence(stem: str, sequences: SequenceMap) -> bool:
    """Whether the end of a name is in the user's map, or the suffix of a name after BIDS."""
    return names.is_bids_stem(stem) or sequences.names_a_part_of(stem)


def _split_duplicates(studies: list[Study]) -> tuple[list[Study], list[InputError]]:
    """Separate the studies whose results would overwrite each other's; sort the rest.

    Letter case and Unicode form do not tell cases apart, since on some disks they do not tell
    folders apart.
    """
    groups: dict[tuple[str, bool], list[Study]] = defaultdict(list)
    for study in studies:
        groups[names.identity_key(study.case), study.has_no_sequence].append(study)
    unique = [group[0] for group in groups.values() if len(group) == 1]
    clashes = [
        _duplicate(study, group) for group in groups.values() if len(group) > 1 for study in group
    ]
    return sorted(unique, key=lambda study: (study.case, study.has_no_sequence)), clashes


def _duplicate(study: Study, group: list[Study]) -> InputError:
    others = ", ".join(str(_namesake(other)) for other in group if other is not study)
    return InputError(
        _namesake(study),
        kind="duplicate_case",
        reason=f"the case name {study.case} also belongs to {others}; neither is processed",
        remedy="Rename one of them",
    )


def _namesake(study: Study) -> Path:
    """Return what gives a study its name: the folder, or outside the challenge the file."""
    path = study.series[0].path
    return path if study.has_no_sequence else path.parent


def _keep_sequences(
    studies: list[Study], wanted: Collection[str] | None, *, default: Collection[str]
) -> tuple[tuple[Study, ...], list[LeftOut], list[str]]:
    """Keep the series asked for, and those without a sequence unless others were asked for."""
    named = {s.path.parent for study in studies for s in study.series if s.sequence is not None}
    kept: list[Study] = []
    left_out: list[LeftOut] = []
    notes: list[str] = []
    for study in studies:
        series = []
        for one in study.series:
            if one.sequence is None and wanted is not None and one.path.parent in named:
                reason = "its name gives no sequence, and --sequences was given"
                left_out.append(LeftOut(one.path, reason))
            elif one.sequence is None or one.sequence in (wanted or default):
                series.append(one)
            else:
                left_out.append(LeftOut(one.path, f"{one.sequence} is not asked for"))
        if series:
            kept.append(replace(study, series=tuple(series)))
        elif not study.has_no_sequence:
            present = ", ".join(str(s.sequence) for s in study.series)
            notes.append(f"{study.case}: none of the sequences asked for (has {present})")
    return tuple(kept), left_out, notes


def _disagreements(tree: Tree, studies: list[Study]) -> list[str]:
    """Compare every ``info.csv`` with the files; the files are always right."""
    facts = [
        info_csv.CaseFacts(
            case=study.case,
            vendor=study.vendor,
            missing=frozenset(names.SEQUENCES) - {series.sequence for series in study.series},
        )
        for study in studies
        if not study.has_no_sequence
    ]
    files = [path for folder in tree.folders for path in folder.others]
    tables = [path for path in files if info_csv.is_info_table(path)]
    return [note for path in tables for note in info_csv.disagreements(path, facts)]


def _layout_of(studies: Iterable[Study]) -> Layout:
    kinds = {study.has_no_sequence for study in studies}
    if not kinds:
        return "empty"
    if len(kinds) == 2:
        return "mixed"
    return "generic" if True in kinds else "challenge"
