"""Unlabelled volumes to label: the queries of ``pseudo-label``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

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
    root: Path, *, labelled: Iterable[ImageFile], sequences: Collection[str] | None = None
) -> Queries:
    """List the volumes below ``root`` that are not the images of ``labelled``.

    A mask beside a volume is passed over: support folders may lie inside ``root``, or be
    ``root``, and a labelled volume of another folder may be asked for, to see how well it does.

    Parameters
    ----------
    root
        A folder in any layout that `find_studies` understands, or one volume.
    sequences
        Canonical names; None for those that the challenge scores.

    Raises
    ------
    NoInputError
        As `find_studies`.
    """
    found = find_studies(root, sequences=sequences)
    images = {series.path.resolve() for series in labelled}
    kept, notes = [], list(found.notes)
    for series in (series for study in found.studies for series in study.series):
        if series.path.resolve() in images:
            notes.append(f"{series.path}: is labelled, and so needs no pseudo label")
        else:
            kept.append(series)
    return Queries(tuple(kept), found.problems, tuple(notes))
