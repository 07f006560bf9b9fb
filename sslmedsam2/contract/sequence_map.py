"""The user's sequence map, which takes precedence over every guess.

A table from an image to a sequence, ``skip`` or ``none``; letter case is ignored.

- A DICOM series is named by its SeriesInstanceUID, its description, or its name in the list:
  ``study-3f2a9c01d4/301-a1b2c3``, without the study, or with ``.2`` for one volume of several.
- A file is named by its path below the input folder, or its name, with or without the suffix; a
  key that is a part of a name (``<case>_<key>``) or a folder's name counts as a sequence's name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslmedsam2.contract.names import (
    SEQUENCES,
    SequenceName,
    parse_mask_stem,
    parse_sequence,
    split_volume_name,
)
from sslmedsam2.contract.walk import walk, walk_input
from sslmedsam2.errors import UsageError

logger = logging.getLogger(__name__)

SKIP = "skip"
NO_SEQUENCE = "none"
_SEPARATOR = re.compile(r"[ ._-]+")


@dataclass(frozen=True)
class SequenceMap:
    """Checked entries: key in lower case to a canonical sequence, ``skip`` or ``none``."""

    entries: Mapping[str, str] = field(default_factory=dict)

    def choice(self, keys: Iterable[str]) -> tuple[str, str] | None:
        """Return the first of the keys that has an entry, with the entry; None if none has."""
        return next(((key, self.entries[key]) for key in keys if key in self.entries), None)

    def parse(self, name: str) -> SequenceName | None:
        """Return the sequence of a file stem or folder name, by the map, else by the name."""
        entry = self.entries.get(name.lower())
        if entry is None:
            return parse_sequence(name)
        return SequenceName(entry, rank=0) if entry in SEQUENCES else None

    def split(self, name: str) -> tuple[str, SequenceName] | None:
        """Split ``<case>_T2`` into case and sequence; None if the name has no such ending."""
        for match in _SEPARATOR.finditer(name):
            sequence = self.parse(name[match.end() :])
            if sequence and match.start():
                return name[: match.start()], sequence
        return None

    def of_file(self, path: Path, *, root: Path, stem: str) -> str | None:
        """Return the entry of an image file, by its path below ``root`` or its name.

        ``stem`` is the name without a suffix; of a mask, that of its image.
        """
        folder = path.parent.relative_to(root).as_posix()
        inside = "" if folder == "." else f"{folder}/"
        keys = (f"{inside}{path.name}", f"{inside}{stem}", path.name, stem)
        found = self.choice(key.lower() for key in keys)
        return found[1] if found else None

    def names_a_part_of(self, stem: str) -> bool:
        """Return whether a key is the end of a name such as ``<case>_<key>``."""
        ends = (stem[match.end() :].lower() for match in _SEPARATOR.finditer(stem))
        return any(end in self.entries for end in ends)

    def warn_of_unused(
        self, *roots: Path, only: Sequence[Path] = (), used: Collection[str] | None = None
    ) -> None:
        """Log a warning for each entry that matches no file below ``roots``, or in ``only``.

        A root may be a single file. ``used`` are the keys that match a DICOM series; None without
        DICOM. With DICOM, only the number of an entry is logged, because its key may be a
        description, which is free text.
        """
        if not self.entries:
            return
        known = set(used or ())
        for root in roots:
            tree = walk(root, only=only) if root.is_dir() else walk_input(root)
            for folder in tree.folders:
                inside = folder.path.relative_to(tree.root)
                known |= {part.lower() for part in inside.parts}
                for path in folder.volumes:
                    known |= _keys(inside, path.name)
        for number, (key, entry) in enumerate(self.entries.items(), start=1):
            if key not in known:
                quoted = f" ({key!r}: {entry!r})" if used is None else ""
                logger.warning("--sequence-map: entry %d%s fits no file or series", number, quoted)


NO_MAP = SequenceMap()


def _keys(folder: Path, name: str) -> set[str]:
    """Return every key that could name a file of that name, in lower case."""
    stem = (split_volume_name(name) or (name,))[0]
    mask = parse_mask_stem(stem)
    stems = {stem, *((mask.image_stem,) if mask else ())}
    ends = {one[match.end() :] for one in stems for match in _SEPARATOR.finditer(one)}
    paths = {(folder / one).as_posix() for one in (name, *stems)}
    return {key.lower() for key in {name, *stems, *ends, *paths}}


def parse_sequence_map(table: Mapping[str, Any]) -> SequenceMap:
    """Check a user's table.

    Raises UsageError: a value is no sequence, ``skip`` or ``none``. The message does not quote the
    key, which may be a description, and so free text.
    """
    entries = {}
    for number, (key, value) in enumerate(table.items(), start=1):
        word = value.strip() if isinstance(value, str) else ""
        name = parse_sequence(word)
        if word.lower() in (SKIP, NO_SEQUENCE):
            entries[key.strip().lower()] = word.lower()
        elif name is not None:
            entries[key.strip().lower()] = name.sequence
        else:
            raise UsageError(
                f"--sequence-map, entry {number}",
                reason="its value is not a sequence",
                remedy=f"Use one of {', '.join(SEQUENCES)}, {NO_SEQUENCE} or {SKIP}",
            )
    return SequenceMap(entries)
