"""Stop between two pieces of work when the user or the platform asks for it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class StopRequest:
    """Whether somebody asked the run to end; truthy once that is so."""

    def __init__(self) -> None:
        """Start without a request."""
        self._event = threading.Event()

    def __bool__(self) -> bool:
        """Tell whether a stop was asked for."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask for a stop."""
        self._event.set()


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one ends the process at once.

    Signals reach the main thread only; in any other thread the request just stays unset.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        logger.warning(
            "%s: finishing the write in hand, then stopping", signal.Signals(number).name
        )
        request.set()
        restore()

    for number in former:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        restore()
