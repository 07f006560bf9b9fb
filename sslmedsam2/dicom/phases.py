"""Determine contrast phases without a descriptive name from order and time of acquisition.

After Gd-EOB-DTPA the dynamic phases follow within a few minutes; the hepatobiliary phase is
acquired at least 10 minutes later. Some hospitals record the dynamic phases as one series of four,
the first before contrast. Some write the contrast agent into the header when the patient is
registered, so that images before contrast have it too.
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
"""Between the start times of two consecutive dynamic phases."""


@dataclass(frozen=True)
class VolumeCandidate:
    """Frames that may be a volume, with neutral series name and guessed sequence.

    ``stacks`` is one stack, or several to average. ``by_map``: the guess is from the sequence map.
    """

    series: str
    stacks: tuple[tuple[Frame, ...], ...]
    guess: Guess
    by_map: bool = False

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The first stack."""
        return self.stacks[0]

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
    # Of several late images the last shows the liver brightest.
    named = {id(one): _late(one, starts, len(late) - n) for n, one in enumerate(late, start=1)}
    is_first_native = not (native or has_native) and len(dynamic) > len(_DYNAMIC)
    order = _WITH_NATIVE if is_first_native else _DYNAMIC
    can_tell = len(dynamic) > 1 and not known
    for place, one in enumerate(dynamic):
        reason = one.guess.reason
        if not can_tell:
            guess = Guess("no_sequence", f"{reason}; its phase is not known")
        elif place >= len(order):
            guess = Guess("no_sequence", f"{reason}; a further dynamic image")
        else:
            order_said = f"{reason}; number {place + 1} of {len(dynamic)} in time"
            guess = Guess("sequence", order_said, order[place], one.guess.penalty)
        named[id(one)] = guess
    for one in native:
        reason = f"{one.guess.reason}, but it precedes the dynamic phases"
        named[id(one)] = Guess("sequence", reason, "T1", one.guess.penalty)
    return [replace(one, guess=named.get(id(one), one.guess)) for one in candidates]


def _before_contrast(
    waiting: Sequence[VolumeCandidate], known: Sequence[VolumeCandidate]
) -> list[VolumeCandidate]:
    """Return the first images if they were acquired before contrast.

    They precede a dynamic phase with a descriptive name; or they precede at least three images in
    the rhythm of dynamic phases, by more than the interval between phases.
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


def _in_time(one: VolumeCandidate) -> tuple[float, int, int]:
    frame = one.frames[0]
    return one.started_s or 0.0, frame.temporal_position or 0, frame.series_number or 0


def _minutes_after(one: VolumeCandidate, starts: list[float]) -> float:
    return 0.0 if one.started_s is None else (one.started_s - min(starts)) / 60


def _late(one: VolumeCandidate, starts: list[float], n_later: int) -> Guess:
    minutes = _minutes_after(one, starts)
    reason = f"{one.guess.reason}; {minutes:.0f} min after the first image with contrast"
    return Guess("sequence", reason, "GED4", one.guess.penalty + n_later)
