"""Stop a run between two units, or a training between two epochs, when a signal asks for it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_active: StopRequest | None = None


class StopRequest:
    """Becomes true when the run is to end.

    ``also`` is a further condition, evaluated each time; it may be called in any thread.
    """

    def __init__(self, also: Callable[[], bool] = lambda: False) -> None:
        self._event = threading.Event()
        self._also = also

    def __bool__(self) -> bool:
        """Return whether a stop was requested."""
        return self._event.is_set() or self._also()

    def set(self) -> None:
        """Request a stop."""
        self._event.set()


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one ends the process at once.

    A nested context shares the request of the outer one, so that two signals are enough there too.
    Signals reach the main thread only; in other threads the request is never set by a signal.
    """
    global _active
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    if _active is not None:
        yield _active
        return
    request, owner = StopRequest(), os.getpid()
    former = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            _in_child(number)
            return
        logger.warning(
            "%s: stopping after the volume or epoch in progress; once more to end at once",
            signal.Signals(number).name,
        )
        request.set()
        restore()

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    _active = request
    try:
        yield request
    finally:
        _active = None
        restore()


def _in_child(number: int) -> None:
    """Handle a signal in a forked loader: SIGINT is ignored, since the parent gets it too."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(signal.Signals(number))
