"""From the DICOM files of a folder to volumes to segment, with a reason for every other file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from sslmedsam2.dicom.files import DicomFiles
from sslmedsam2.dicom.headers import read_frames
from sslmedsam2.dicom.model import (
    DicomDiscovery,
    DicomVolume,
    Frame,
    NamedVolume,
    SeriesRow,
    Use,
)
from sslmedsam2.dicom.names import case_name, file_name, series_name
from sslmedsam2.dicom.phases import Candidate, name_phases
from sslmedsam2.dicom.sequence_map import NO_SEQUENCE, SKIP, SequenceMap
from sslmedsam2.dicom.sequences import Guess, exclusion_of, guess_sequence
from sslmedsam2.dicom.stacks import split_series
from sslmedsam2.dicom.support import require_dicom
from sslmedsam2.dicom.volumes import FEWEST_SLICES, make_volume
from sslmedsam2.errors import InputError

NO_STUDY = "no-study"
"""The case of a file that does not say to which study it belongs."""

_BY_MAP = "named by the sequence map"
_UNLIKE = 100.0


@dataclass(frozen=True)
class _Part:
    """What a study contributes."""

    volumes: tuple[NamedVolume, ...]
    rows: tuple[SeriesRow, ...]
    used_keys: frozenset[str]


def discover(
    files: DicomFiles, *, sequences: Collection[str], sequence_map: SequenceMap
) -> DicomDiscovery:
    """Read every header and decide what each series is.

    Parameters
    ----------
    sequences
        Canonical names of those wanted. Volumes that stand for no sequence are always kept.
    sequence_map
        Beats every guess, and the exclusion of derived images.
    """
    frames, rows, places = _read_all(files)
    by_study = _grouped(frames, lambda frame: frame.study_uid)
    volumes: list[NamedVolume] = []
    used: set[str] = set()
    for study_uid in sorted(by_study):
        study = _Study(case_name(study_uid), set(sequences), sequence_map)
        part = study.read(by_study[study_uid])
        volumes += part.volumes
        rows += part.rows
        used |= part.used_keys
        places |= _places(study.case, by_study[study_uid], files)
    unused = sequence_map.unused(used)
    notes = (f"sequence map: {unused} of its entries fit no series",) if unused else ()
    return DicomDiscovery(
        volumes=tuple(sorted(volumes, key=lambda named: named.volume.name)),
        rows=tuple(sorted(rows, key=lambda row: (row.case, row.series))),
        places=places,
        notes=notes,
    )


def find_volumes(files: DicomFiles) -> dict[str, DicomVolume]:
    """Return every volume that can be made of the files, whatever it shows, by its name."""
    frames, _, _ = _read_all(files)
    volumes = {}
    for series in _grouped(frames, lambda frame: frame.series_uid).values():
        case = case_name(series[0].study_uid)
        for name, stack in _named_stacks(series)[0]:
            try:
                volume = make_volume(stack, case=case, series=name)
            except InputError:
                continue
            volumes[volume.name] = volume
    return volumes


def _read_all(
    files: DicomFiles,
) -> tuple[list[Frame], list[SeriesRow], dict[tuple[str, str], str]]:
    """Read the headers; files that cannot be read become rows. Copies of an image count once."""
    require_dicom()
    frames: dict[tuple[str, int | None], Frame] = {}
    rows, places = [], {}
    broken = [(path, "it is named like DICOM and does not begin so") for path in files.impostors]
    for path in files.files:
        try:
            found = read_frames(path, name=file_name(path, root=files.root))
        except InputError as error:
            broken.append((path, error.reason))
            continue
        for frame in found:
            frames.setdefault((frame.sop_uid, frame.index), frame)
    for path, reason in broken:
        name = file_name(path, root=files.root)
        rows.append(SeriesRow(NO_STUDY, name, None, "unusable", reason, images=1))
        places[NO_STUDY, name] = str(path)
    return list(frames.values()), rows, places


class _Study:
    """Reads one study."""

    def __init__(self, case: str, sequences: set[str], sequence_map: SequenceMap) -> None:
        self.case = case
        self._sequences = sequences
        self._map = sequence_map
        self._rows: list[SeriesRow] = []
        self._used_keys: set[str] = set()

    def read(self, frames: Iterable[Frame]) -> _Part:
        """Split the study into volumes, name them, and choose one for each sequence."""
        candidates: list[Candidate] = []
        for series in _grouped(frames, lambda frame: frame.series_uid).values():
            candidates += self._read_series(series)
        usable: list[tuple[Candidate, DicomVolume]] = []
        for candidate in name_phases(candidates):
            volume = self._volume(candidate)
            if volume is not None:
                usable.append((candidate, volume))
        volumes = self._choose(usable)
        return _Part(tuple(volumes), tuple(self._rows), frozenset(self._used_keys))

    def _read_series(self, frames: list[Frame]) -> list[Candidate]:
        """Return what may be volumes; note the rest, one row for each reason."""
        named, small = _named_stacks(frames)
        candidates = []
        left_out: dict[str, int] = defaultdict(int)
        for series, stack in named:
            candidate = self._candidate(series, stack)
            if candidate.guess.kind == "left_out":
                left_out[candidate.guess.reason] += len(stack)
            else:
                candidates.append(candidate)
        for stack in small:
            too_few = f"fewer than {FEWEST_SLICES} images that could be one volume"
            left_out[exclusion_of(stack[0]) or too_few] += len(stack)
        name = series_name(frames[0].series_uid, frames[0].series_number)
        for reason, images in left_out.items():
            self._rows.append(SeriesRow(self.case, name, None, "left_out", reason, images))
        return candidates

    def _candidate(self, series: str, stack: list[Frame]) -> Candidate:
        """Ask the map, then the header."""
        first = stack[0]
        frames = tuple(stack)
        chosen = self._map.choice(first, case=self.case, series=series)
        exclusion = exclusion_of(first)
        if chosen is None:
            guess = Guess("left_out", exclusion) if exclusion else guess_sequence(first)
            return Candidate(series, frames, guess)
        key, choice = chosen
        self._used_keys.add(key)
        if choice == SKIP:
            return Candidate(series, frames, Guess("left_out", "the sequence map says skip"))
        if first.is_colour or not first.rows:
            return Candidate(series, frames, Guess("left_out", exclusion or ""))
        if choice == NO_SEQUENCE:
            return Candidate(series, frames, Guess("no_sequence", _BY_MAP), by_map=True)
        own = guess_sequence(first)
        # Of the volumes of one series, the one that looks the part comes first.
        penalty = own.penalty + (0 if own.sequence == choice else _UNLIKE)
        return Candidate(series, frames, Guess("sequence", _BY_MAP, choice, penalty), by_map=True)

    def _volume(self, candidate: Candidate) -> DicomVolume | None:
        """Make the volume if it is wanted and can be made; note it otherwise."""
        guess = candidate.guess
        if guess.sequence is not None and guess.sequence not in self._sequences:
            self._note(candidate, "left_out", f"{guess.reason}; {guess.sequence} is not asked for")
            return None
        try:
            return make_volume(candidate.frames, case=self.case, series=candidate.series)
        except InputError as error:
            self._note(candidate, "unusable", error.reason)
            return None

    def _choose(self, usable: list[tuple[Candidate, DicomVolume]]) -> list[NamedVolume]:
        """Keep the best volume for each sequence, and every volume that stands for no sequence."""
        kept = []
        best: dict[str, str] = {}
        for candidate, volume in sorted(usable, key=_rank):
            sequence = candidate.guess.sequence
            if sequence is not None and sequence in best:
                reason = f"{candidate.guess.reason}; {sequence} is taken from {best[sequence]}"
                self._note(candidate, "left_out", reason)
                continue
            if sequence is not None:
                best[sequence] = volume.series
            kept.append(
                NamedVolume(volume, self._note(candidate, "segment", candidate.guess.reason))
            )
        return kept

    def _note(self, candidate: Candidate, use: Use, reason: str) -> SeriesRow:
        row = SeriesRow(
            self.case,
            candidate.series,
            candidate.guess.sequence,
            use,
            reason,
            len(candidate.frames),
        )
        self._rows.append(row)
        return row


def _named_stacks(
    frames: list[Frame],
) -> tuple[list[tuple[str, list[Frame]]], list[list[Frame]]]:
    """Split a series into stacks: those that may be volumes, with their names, and small ones."""
    name = series_name(frames[0].series_uid, frames[0].series_number)
    stacks = split_series(frames)
    large = [stack for stack in stacks if len(stack) >= FEWEST_SLICES]
    numbered = len(large) > 1
    named = [
        (f"{name}.{number}" if numbered else name, stack) for number, stack in enumerate(large, 1)
    ]
    return named, [stack for stack in stacks if len(stack) < FEWEST_SLICES]


def _rank(usable: tuple[Candidate, DicomVolume]) -> tuple[bool, float, int, int, str]:
    candidate, volume = usable
    number = candidate.frames[0].series_number
    return (
        not candidate.by_map,
        candidate.guess.penalty,
        -len(candidate.frames),
        number if number is not None else 0,
        volume.name,
    )


def _grouped(frames: Iterable[Frame], key_of: Callable[[Frame], str]) -> dict[str, list[Frame]]:
    groups: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[key_of(frame)].append(frame)
    return groups


def _places(case: str, frames: Iterable[Frame], files: DicomFiles) -> dict[tuple[str, str], str]:
    """Say where each series lies and how it is called; for who holds the files only."""
    places: dict[tuple[str, str], str] = {}
    for frame in frames:
        name = series_name(frame.series_uid, frame.series_number)
        folder = frame.path.parent.relative_to(files.root).as_posix()
        text = f"{frame.series_uid}  {frame.description or '(no description)'}  {folder}/"
        places.setdefault((case, name), text)
    return places
