"""Unlabelled volumes: what pseudo labels are wanted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.contract import names
from sslmedsam2.contract.identity import identified, named_by_folder
from sslmedsam2.contract.sequence_map import SequenceMap
from sslmedsam2.contract.studies import find_studies
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.image_file import ImageFile


@dataclass(frozen=True)
class Queries:
    """The volumes to label, by case and in processing order, and the errors."""

    series: tuple[ImageFile, ...]
    problems: tuple[InputError, ...]
    notes: tuple[str, ...]


def find_queries(
    root: Path,
    *,
    labelled: Iterable[ImageFile],
    sequences: Collection[str] | None = None,
    sequence_map: SequenceMap | None = None,
) -> Queries:
    """List the volumes below ``root`` that are not the images of ``labelled``.

    A mask beside a volume is passed over: support folders may lie inside ``root``, or be
    ``root``, and a labelled volume of another folder may be asked for, to see how well it does.

    Parameters
    ----------
    root
        A folder in any layout that `find_studies` or `identify` understands, or one volume.
    sequences
        Canonical names; None for all.
    sequence_map
        What the user says of files; overrides their names.

    Raises
    ------
    NoInputError
        As `find_studies`.
    """
    sequence_map = sequence_map or SequenceMap()
    found = find_studies(
        root, sequences=sequences, default=names.SEQUENCES, sequence_map=sequence_map
    )
    images = {series.path.resolve() for series in labelled}
    kept, notes = [], list(found.notes)
    for series in (series for study in found.studies for series in study.series):
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
            notes.append(f"{series.path}: {series.sequence} is not asked for")
    notes += [f"{one.path}: is left out, {one.reason}" for one in found.left_out]
    chosen.sort(key=lambda series: (series.case, names.sequence_order(series.sequence)))
    return Queries(tuple(chosen), found.problems, tuple(notes))


def _identified(
    series: list[ImageFile], *, root: Path, sequence_map: SequenceMap
) -> list[ImageFile]:
    """Find case and sequence where `find_studies` knows none; a name stays unique."""
    better = named_by_folder(
        one if one.sequence else identified(one, root=root, sequences=sequence_map)
        for one in series
    )
    counts = Counter((names.identity_key(one.case), one.sequence) for one in better)
    by_path = {one.path: one for one in series}
    return [
        one if counts[names.identity_key(one.case), one.sequence] == 1 else by_path[one.path]
        for one in better
    ]
