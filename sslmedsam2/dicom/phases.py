"""Contrast phases without a descriptive name, from order and time of acquisition.

After Gd-EOB-DTPA the dynamic phases follow within a few minutes; the hepatobiliary phase comes
10 minutes later or more. Several hospitals record the dynamic phases as one series of four, the
first of them before contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sslmedsam2.dicom.model import Frame
from sslmedsam2.dicom.sequences import HEPATOBILIARY_FROM_MIN, Guess

_DYNAMIC = ("GED1", "GED2", "GED3")
_WITH_NATIVE = ("T1", *_DYNAMIC)


@dataclass(frozen=True)
class Candidate:
    """Frames that may be a volume, under their neutral series name, and what they may stand for.

    ``by_map``: the user said so.
    """

    series: str
    frames: tuple[Frame, ...]
    guess: Guess
    by_map: bool = False

    @property
    def started_s(self) -> float | None:
        """When the first of its images was acquired, in seconds since midnight."""
        times = [frame.acquired_s for frame in self.frames if frame.acquired_s is not None]
        return min(times, default=None)


def name_phases(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Replace the guesses of kind ``post_contrast`` among the candidates of one study."""
    waiting = sorted((one for one in candidates if one.guess.kind == "post_contrast"), key=_in_time)
    known = [one for one in candidates if one.guess.sequence in _DYNAMIC]
    starts = [one.started_s for one in (*waiting, *known) if one.started_s is not None]
    late: list[Candidate] = []
    dynamic: list[Candidate] = []
    for one in waiting:
        is_late = _minutes_after(one, starts) >= HEPATOBILIARY_FROM_MIN
        (late if is_late else dynamic).append(one)
    named = {id(one): _hepatobiliary(one, starts, late) for one in late}
    named |= {id(one): guess for one, guess in _by_order(dynamic, is_alone=not known)}
    return [replace(one, guess=named.get(id(one), one.guess)) for one in candidates]


def _in_time(one: Candidate) -> tuple[float, int, int]:
    frame = one.frames[0]
    return one.started_s or 0.0, frame.temporal_position or 0, frame.series_number or 0


def _minutes_after(one: Candidate, starts: list[float]) -> float:
    return 0.0 if one.started_s is None else (one.started_s - min(starts)) / 60


def _hepatobiliary(one: Candidate, starts: list[float], late: list[Candidate]) -> Guess:
    """Name a late image; of several, the last shows the liver brightest."""
    minutes = _minutes_after(one, starts)
    reason = f"{one.guess.reason}; {minutes:.0f} min after the first image with contrast"
    earlier_than = len(late) - 1 - [id(other) for other in late].index(id(one))
    return Guess("sequence", reason, "GED4", one.guess.penalty + earlier_than)


def _by_order(dynamic: list[Candidate], *, is_alone: bool) -> list[tuple[Candidate, Guess]]:
    """Name dynamic images by their order, if there are several and none has a name already."""
    one_series = len({one.frames[0].series_uid for one in dynamic}) == 1
    order = _WITH_NATIVE if one_series and len(dynamic) > len(_DYNAMIC) else _DYNAMIC
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
