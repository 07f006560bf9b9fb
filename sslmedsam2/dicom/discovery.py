"""Find the volumes to segment among the DICOM files of a folder, with a reason for other files."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sslmedsam2.contract.sequence_map import NO_SEQUENCE, SKIP, SequenceMap
from sslmedsam2.dicom.files import DicomFiles, require_dicom
from sslmedsam2.dicom.headers import read_frames
from sslmedsam2.dicom.model import (
    TRACE,
    DicomDiscovery,
    DicomVolume,
    Frame,
    Identity,
    NamedVolume,
    SeriesRow,
    Use,
)
from sslmedsam2.dicom.phases import VolumeCandidate, name_phases
from sslmedsam2.dicom.reading import pixel_digests
from sslmedsam2.dicom.sequences import Guess, exclusion_of, guess_sequence
from sslmedsam2.dicom.volumes import FEWEST_SLICES, make_volume, split_series
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import same_grid

_STUDY_DIGITS = 10
_SERIES_DIGITS = 6


def case_name(study_uid: str) -> str:
    """Return the neutral name of a study: ``study-`` and a hash of its StudyInstanceUID."""
    return f"study-{_digest(study_uid, _STUDY_DIGITS)}"


def series_name(series_uid: str, series_number: int | None) -> str:
    """Return the neutral name of a series: its number and a hash of its SeriesInstanceUID."""
    number = "x" if series_number is None else str(series_number)
    return f"{number}-{_digest(series_uid, _SERIES_DIGITS)}"


def file_name(path: Path, *, root: Path) -> str:
    """Return the neutral name of a file without a series: a hash of its path below ``root``."""
    place = path.relative_to(root) if path.is_relative_to(root) else path
    return f"file-{_digest(place.as_posix(), _STUDY_DIGITS)}"


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:digits]


NO_STUDY = "no-study"
"""The case of a file without a study."""

_BY_MAP = "named by the sequence map"
_UNLIKE = 100.0
_Key = TypeVar("_Key", bound=Hashable)
_Stacks = tuple[tuple[Frame, ...], ...]


def discover(
    files: DicomFiles, *, sequences: Collection[str], sequence_map: SequenceMap
) -> DicomDiscovery:
    """Read every header and decide what each series is.

    Parameters
    ----------
    sequences
        Canonical names of the wanted sequences. Volumes without a sequence are always kept.
    sequence_map
        Takes precedence over every guess and over the exclusion of derived images.
    """
    frames, rows, identities = _read_all(files)
    by_study = _grouped(frames, lambda frame: frame.study_uid)
    volumes: list[NamedVolume] = []
    used: set[str] = set()
    notes: list[str] = []
    for study_uid in sorted(by_study):
        study = _Study(case_name(study_uid), set(sequences), sequence_map)
        volumes += study.read(by_study[study_uid])
        rows += study.rows
        used |= study.used_keys
        notes += study.notes
        identities |= _identities(study.case, by_study[study_uid], files)
    return DicomDiscovery(
        volumes=tuple(sorted(volumes, key=lambda named: named.volume.name)),
        rows=tuple(sorted(rows, key=lambda row: (row.case, row.series))),
        identities=identities,
        notes=tuple(notes),
        used_keys=frozenset(used),
    )


def find_volumes(files: DicomFiles) -> dict[str, DicomVolume]:
    """Return every volume that can be made of the files, by its neutral name."""
    frames, _, _ = _read_all(files)
    volumes = {}
    # A faulty exporter may give one SeriesInstanceUID to series of several studies.
    for series in _grouped(frames, lambda frame: (frame.study_uid, frame.series_uid)).values():
        case = case_name(series[0].study_uid)
        for name, stacks in _read_stacks(_without_copies(series))[0].items():
            try:
                volume = _make_volume(stacks, case=case, series=name)
            except InputError:
                continue
            volumes[volume.name] = volume
    return volumes


def _read_all(
    files: DicomFiles,
) -> tuple[list[Frame], list[SeriesRow], dict[tuple[str, str], Identity]]:
    """Read the headers; files that cannot be read become rows."""
    require_dicom()
    frames: list[Frame] = []
    rows, identities = [], {}
    broken = [(path, "it is named like DICOM and does not begin so") for path in files.impostors]
    for path in files.files:
        try:
            found = read_frames(path, name=file_name(path, root=files.root))
        except InputError as error:
            broken.append((path, error.reason))
            continue
        frames += found
    for path, reason in broken:
        name = file_name(path, root=files.root)
        rows.append(SeriesRow(NO_STUDY, name, None, "unusable", reason, images=1))
        identities[NO_STUDY, name] = Identity("", "", "", "", str(path))
    return frames, rows, identities


class _Study:
    """Reads one study, and collects its rows, its notes and the keys of the map that match."""

    def __init__(self, case: str, sequences: set[str], sequence_map: SequenceMap) -> None:
        self.case = case
        self._sequences = sequences
        self._map = sequence_map
        self.rows: list[SeriesRow] = []
        self.used_keys: set[str] = set()
        self.notes: list[str] = []
        self._several_patients = False

    def read(self, frames: Sequence[Frame]) -> list[NamedVolume]:
        """Split the study into volumes, name them, and choose one for each sequence."""
        # Spellings of a name may differ from series to series, a number may not.
        self._several_patients = len({frame.patient[0] for frame in frames} - {""}) > 1
        candidates: list[VolumeCandidate] = []
        for series in _grouped(frames, lambda frame: frame.series_uid).values():
            candidates += self._read_series(series)
        usable: list[tuple[VolumeCandidate, DicomVolume]] = []
        for candidate in name_phases(self._without_repeated_series(candidates)):
            volume = self._volume(candidate)
            if volume is not None:
                usable.append((candidate, volume))
        return self._choose(usable)

    def _read_series(self, frames: list[Frame]) -> list[VolumeCandidate]:
        """Return the candidates for volumes; add a row for each reason to leave images out."""
        kept = _without_copies(frames)
        named, small = _read_stacks(kept)
        mixture = self._mixture_of(frames)
        candidates = []
        left_out: dict[str, int] = defaultdict(int)
        for series, stacks in named.items():
            candidate = self._candidate(series, stacks)
            if candidate.guess.kind == "left_out":
                left_out[candidate.guess.reason] += sum(map(len, candidate.stacks))
            elif mixture:
                self._note(candidate, "unusable", mixture)
            else:
                candidates.append(candidate)
        for stack in small:
            too_few = f"fewer than {FEWEST_SLICES} images that could be one volume"
            left_out[exclusion_of(stack[0]) or too_few] += len(stack)
        name = series_name(frames[0].series_uid, frames[0].series_number)
        copies = len(frames) - len(kept)
        if copies:
            self.notes.append(
                f"{self.case}/{name}: {copies} images are copies of others (same place, same "
                "pixels) and are dropped"
            )
        for reason, images in left_out.items():
            self.rows.append(SeriesRow(self.case, name, None, "left_out", reason, images))
        return candidates

    def _without_repeated_series(self, candidates: list[VolumeCandidate]) -> list[VolumeCandidate]:
        """Leave out a volume if another series has the same pixels.

        Volumes with a sequence are not compared: only one is chosen for each sequence anyway.
        """
        alike: dict[frozenset[Frame], list[VolumeCandidate]] = defaultdict(list)
        for candidate in candidates:
            if candidate.guess.sequence is None:
                alike[frozenset(map(_without_identity, candidate.frames))].append(candidate)
        repeated: dict[int, str] = {}
        for rivals in alike.values():
            seen: dict[frozenset[str | None], str] = {}
            for candidate in rivals if len(rivals) > 1 else ():
                pixels = frozenset(pixel_digests(candidate.frames))
                if pixels in seen and None not in pixels:
                    repeated[id(candidate)] = seen[pixels]
                else:
                    seen[pixels] = candidate.series
        for candidate in candidates:
            if id(candidate) in repeated:
                other = repeated[id(candidate)]
                self._note(candidate, "left_out", f"a copy of {other}: same places, same pixels")
        return [candidate for candidate in candidates if id(candidate) not in repeated]

    def _mixture_of(self, frames: Sequence[Frame]) -> str | None:
        """Return why a series may show several patients or positions; None if it does not."""
        if _are_several_patients(frames):
            return "its images name more than one patient"
        if self._several_patients:
            return "the study holds images of more than one patient"
        if len({frame.frame_of_reference_uid for frame in frames} - {""}) > 1:
            return "its images have more than one FrameOfReferenceUID, so their places differ"
        return None

    def _candidate(self, series: str, stacks: _Stacks) -> VolumeCandidate:
        """Return a candidate with its sequence by the map, otherwise by the header."""
        first = stacks[0][0]
        whole = series.partition(".")[0]
        names = (f"{self.case}/{series}", series, f"{self.case}/{whole}", whole)
        chosen = self._map.choice((*names, first.series_uid, first.description))
        exclusion = exclusion_of(first)
        if chosen is None:
            guess = Guess("left_out", exclusion) if exclusion else guess_sequence(first)
            if len(stacks) > 1:
                said = f"{guess.reason}; the mean of {len(stacks)} directions"
                guess = replace(guess, reason=said)
            return VolumeCandidate(series, stacks, guess)
        key, choice = chosen
        self.used_keys.add(key)
        if choice == SKIP:
            guess = Guess("left_out", "the sequence map says skip")
        elif first.is_colour or not first.rows:
            guess = Guess("left_out", exclusion or "")
        elif choice == NO_SEQUENCE:
            guess = Guess("no_sequence", _BY_MAP)
        else:
            own = guess_sequence(first)
            # The likeliest of the volumes of a series comes first.
            penalty = own.penalty + (0 if own.sequence == choice else _UNLIKE)
            guess = Guess("sequence", _BY_MAP, choice, penalty)
        return VolumeCandidate(series, stacks, guess, by_map=True)

    def _volume(self, candidate: VolumeCandidate) -> DicomVolume | None:
        """Return the volume if it is wanted and can be made; else add a row and return None."""
        guess = candidate.guess
        if guess.sequence is not None and guess.sequence not in self._sequences:
            unasked = f"{guess.sequence} is used only if --sequences names it"
            self._note(candidate, "left_out", f"{guess.reason}; {unasked}")
            return None
        try:
            return _make_volume(candidate.stacks, case=self.case, series=candidate.series)
        except InputError as error:
            self._note(candidate, "unusable", error.reason)
            return None

    def _choose(self, usable: list[tuple[VolumeCandidate, DicomVolume]]) -> list[NamedVolume]:
        """Keep the best volume for each sequence, and every volume without a sequence."""
        kept = []
        best: dict[str, str] = {}
        for candidate, volume in sorted(usable, key=_rank):
            sequence = candidate.guess.sequence
            if sequence is not None and sequence in best:
                reason = f"{candidate.guess.reason}; {best[sequence]} is used as {sequence}"
                self._note(candidate, "left_out", reason)
                continue
            if sequence is not None:
                best[sequence] = volume.series
            kept.append(
                NamedVolume(volume, self._note(candidate, "segment", candidate.guess.reason))
            )
        return kept

    def _note(self, candidate: VolumeCandidate, use: Use, reason: str) -> SeriesRow:
        row = SeriesRow(
            self.case,
            candidate.series,
            candidate.guess.sequence,
            use,
            reason,
            sum(map(len, candidate.stacks)),
        )
        self.rows.append(row)
        return row


def _read_stacks(frames: list[Frame]) -> tuple[dict[str, _Stacks], list[list[Frame]]]:
    """Split a series into candidates for volumes, by name, and stacks with too few images.

    A volume is one stack, or the mean of several.
    """
    name = series_name(frames[0].series_uid, frames[0].series_number)
    stacks = split_series(frames)
    groups = _with_directions_joined([stack for stack in stacks if len(stack) >= FEWEST_SLICES])
    names = [name] if len(groups) == 1 else [f"{name}.{n}" for n in range(1, len(groups) + 1)]
    small = [stack for stack in stacks if len(stack) < FEWEST_SLICES]
    return dict(zip(names, groups, strict=True)), small


def _without_copies(frames: list[Frame]) -> list[Frame]:
    """Keep the first of several images with the same position and the same pixels.

    Unique identifiers cannot be used: copies may have new ones, and some exports give the same one
    to all images.
    """
    dropped: set[int] = set()
    for group in _grouped(frames, _without_identity).values():
        if len(group) == 1 or group[0].position_xyz_mm is None:
            continue
        seen: set[str] = set()
        for frame, digest in zip(group, pixel_digests(group), strict=True):
            if digest is not None and digest in seen:
                dropped.add(id(frame))
            elif digest is not None:
                seen.add(digest)
    return [frame for frame in frames if id(frame) not in dropped]


def _without_identity(frame: Frame) -> Frame:
    """Return a frame without the attributes in which copies of an image may differ."""
    return replace(
        frame,
        path=Path(),
        index=None,
        sop_uid="",
        series_uid="",
        series_number=None,
        instance_number=None,
        acquisition_number=None,
        patient_id="",
        text="",
        description="",
    )


def _with_directions_joined(stacks: list[list[Frame]]) -> list[_Stacks]:
    """Join the directions of one b-value, of which the mean is segmented, where no trace is."""
    groups: dict[object, list[tuple[Frame, ...]]] = defaultdict(list)
    for number, stack in enumerate(stacks):
        first = stack[0]
        has_direction = bool(first.b_value) and first.diffusion_direction not in ("", TRACE)
        key = (first.b_value, first.image_type, len(stack)) if has_direction else number
        groups[key].append(tuple(stack))
    traced = {stack[0].b_value for stack in stacks if stack[0].diffusion_direction == TRACE}
    joined: list[_Stacks] = []
    for group in groups.values():
        is_joined = len(group) > 1 and group[0][0].b_value not in traced
        joined += [tuple(group)] if is_joined else [(stack,) for stack in group]
    return joined


def _make_volume(stacks: Sequence[Sequence[Frame]], *, case: str, series: str) -> DicomVolume:
    """Make a volume of a stack, or of several on one grid; raises InputError."""
    first, *others = (make_volume(stack, case=case, series=series) for stack in stacks)
    for other in others:
        if not same_grid(first.geometry, other.geometry):
            raise InputError(
                first.name,
                kind="uneven_directions",
                reason="its diffusion directions do not lie at the same places",
                remedy="Export each direction as a series of its own, or the trace images",
            )
    return replace(first, averaged=tuple(other.frames for other in others))


def _are_several_patients(frames: Iterable[Frame]) -> bool:
    """Return whether number, name or birth date differ; missing values match everything."""
    return any(
        len(set(values) - {""}) > 1 for values in zip(*(f.patient for f in frames), strict=True)
    )


def _rank(usable: tuple[VolumeCandidate, DicomVolume]) -> tuple[bool, float, int, int, str]:
    candidate, volume = usable
    number = candidate.frames[0].series_number
    return (
        not candidate.by_map,
        candidate.guess.penalty,
        -len(candidate.frames),
        number if number is not None else 0,
        volume.name,
    )


def _grouped(frames: Iterable[Frame], key_of: Callable[[Frame], _Key]) -> dict[_Key, list[Frame]]:
    groups: dict[_Key, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[key_of(frame)].append(frame)
    return groups


def _identities(
    case: str, frames: Iterable[Frame], files: DicomFiles
) -> dict[tuple[str, str], Identity]:
    """Return what each series of a study is; for who holds the files only."""
    identities: dict[tuple[str, str], Identity] = {}
    for frame in frames:
        name = series_name(frame.series_uid, frame.series_number)
        if (case, name) not in identities:
            folder = f"{frame.path.parent.relative_to(files.root).as_posix()}/"
            identities[case, name] = Identity(
                frame.patient_id, frame.study_uid, frame.series_uid, frame.description, folder
            )
    return identities
