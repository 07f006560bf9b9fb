"""How far a run is, and how long it may still take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    done
        Units with a result.
    failed
        Units that were given up.
    running
        Units that workers have in hand.
    seconds_left
        None while nothing is done yet.
    """

    done: int
    failed: int
    running: int
    total: int
    seconds_left: float | None

    def __str__(self) -> str:
        """Put it in words, for a line of the log."""
        text = f"{self.done}/{self.total} done, {self.running} running, {self.failed} failed"
        if self.seconds_left is None or not self.seconds_left:
            return text
        return f"{text}, about {_in_words(self.seconds_left)} left"


OnProgress = Callable[[Progress], None]


@dataclass
class Meter:
    """Counts, and estimates the rest from the pace so far; ``clock`` gives seconds."""

    total: int
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    failed: int = 0
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._start = self.clock()

    def reading(self, running: int) -> Progress:
        """Return the progress at this moment."""
        ended = self.done + self.failed
        left = None
        if ended:
            left = (self.clock() - self._start) / ended * (self.total - ended)
        return Progress(self.done, self.failed, running, self.total, left)


def _in_words(seconds: float) -> str:
    """Return a duration as people say it.

    >>> _in_words(40), _in_words(150), _in_words(9000)
    ('40 s', '2 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
