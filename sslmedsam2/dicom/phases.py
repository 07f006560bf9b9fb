"""Contrast phases without a descriptive name, from order and time of acquisition.

After Gd-EOB-DTPA the dynamic phases follow within a few minutes; the hepatobiliary phase comes
10 minutes later or more. Several hospitals record the dynamic phases as one series of four, the
first of them before contrast; and several write the agent into the header when the patient is
registered, so that the images before contrast carry it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sslmedsam2.dicom.model import Frame
from sslmedsam2.dicom.sequences import HEPATOBILIARY_FROM_MIN, Guess

_DYNAMIC = ("GED1", "GED2", "GED3")
_WITH_NATIVE = ("T1", *_DYNAMIC)
_LONGEST_GAP_S = 240.0
"""Between the beginnings of two dynamic phases that follow each other."""


@dataclass(frozen=True)
class VolumeCandidate:
    """Frames that may be a volume, under their neutral series name, and what they may stand for.

    ``by_map``: the user said so. ``averaged``: further stacks, see `DicomVolume`.
    """

    series: str
    frames: tuple[Frame, ...]
    guess: Guess
    by_map: bool = False
    averaged: tuple[tuple[Frame, ...], ...] = ()

    @property
    def started_s(self) -> float | None:
        """When the first of its images was acquired, in seconds since midnight."""
        times = [frame.acquired_s for frame in self.frames if frame.acquired_s is not None]
        return min(times, default=None)


def name_phases(candidates: Sequence[VolumeCandidate]) -> list[VolumeCandidate]:
    """Replace the guesses of kind ``post_contrast`` among the candidates of one study."""
    waiting = sorted((one for one in candidates if one.guess.kind == "post_contrast"), key=_in_time)
    known = [one for one in candidates if one.guess.sequence in _DYNAMIC]
    has_native = any(one.guess.sequence == "T1" for one in candidates)
    native = _before_contrast(waiting, known)
    waiting = waiting[len(native) :]
    starts = [one.started_s for one in (*waiting, *known) if one.started_s is not None]
    late: list[VolumeCandidate] = []
    dynamic: list[VolumeCandidate] = []
    for one in waiting:
        is_late = _minutes_after(one, starts) >= HEPATOBILIARY_FROM_MIN
        (late if is_late else dynamic).append(one)
    named = {id(one): _hepatobiliary(one, starts, late) for one in late}
    is_first_native = not (native or has_native)
    named |= {
        id(one): guess
        for one, guess in _by_order(dynamic, is_alone=not known, is_first_native=is_first_native)
    }
    named |= {id(one): _native(one) for one in native}
    return [replace(one, guess=named.get(id(one), one.guess)) for one in candidates]


def _before_contrast(
    waiting: Sequence[VolumeCandidate], known: Sequence[VolumeCandidate]
) -> list[VolumeCandidate]:
    """Return those at the beginning that were acquired before contrast agent was given.

    They precede a dynamic phase that a description names, or else, by more than the phases are
    apart, three or more images that follow each other as the dynamic phases do.
    """
    named = [one.started_s for one in known if one.started_s is not None]
    if named:
        return [one for one in waiting if one.started_s is not None and one.started_s < min(named)]
    times = [one.started_s for one in waiting]
    if any(time is None for time in times):
        return []
    gaps = [later - earlier for earlier, later in pairwise(filter(None, times))]
    for first in range(1, len(gaps) - 1):
        follows_pause = gaps[first - 1] > _LONGEST_GAP_S
        if follows_pause and max(gaps[first : first + len(_DYNAMIC) - 1]) <= _LONGEST_GAP_S:
            return list(waiting[:first])
    return []


def _native(one: VolumeCandidate) -> Guess:
    reason = f"{one.guess.reason}, but it precedes the dynamic phases"
    return Guess("sequence", reason, "T1", one.guess.penalty)


def _in_time(one: VolumeCandidate) -> tuple[float, int, int]:
    frame = one.frames[0]
    return one.started_s or 0.0, frame.temporal_position or 0, frame.series_number or 0


def _minutes_after(one: VolumeCandidate, starts: list[float]) -> float:
    return 0.0 if one.started_s is None else (one.started_s - min(starts)) / 60


def _hepatobiliary(one: VolumeCandidate, starts: list[float], late: list[VolumeCandidate]) -> Guess:
    """Name a late image; of several, the last shows the liver brightest."""
    minutes = _minutes_after(one, starts)
    reason = f"{one.guess.reason}; {minutes:.0f} min after the first image with contrast"
    earlier_than = len(late) - 1 - [id(other) for other in late].index(id(one))
    return Guess("sequence", reason, "GED4", one.guess.penalty + earlier_than)


def _by_order(
    dynamic: list[VolumeCandidate], *, is_alone: bool, is_first_native: bool
) -> list[tuple[VolumeCandidate, Guess]]:
    """Name dynamic images by their order, if there are several and none has a name already.

    ``is_first_native``: of more images than phases, the first was acquired before contrast.
    """
    is_first_native = is_first_native and len(dynamic) > len(_DYNAMIC)
    order = _WITH_NATIVE if is_first_native else _DYNAMIC
    found = []
    for place, one in enumerate(dynamic):
        reason = one.guess.reason
        if len(dynamic) < 2 or not is_alone:
            guess = Guess("no_sequence", f"{reason}; which phase it is cannot be told")
        elif place >= len(order):
            guess = Guess("no_sequence", f"{reason}; a further dynamic image")
        else:
            order_said = f"{reason}; number {place + 1} of {len(dynamic)} in time"
            guess = Guess("sequence", order_said, order[place], one.guess.penalty)
        found.append((one, guess))
    return found
