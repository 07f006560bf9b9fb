"""Another process that holds the lock of a folder."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

from sslmedsam2.imaging.atomic import locked


def _hold(folder: Path, how: dict[str, str], held: Event) -> None:
    with locked(folder, **how):
        held.set()
        time.sleep(600)


@contextmanager
def held_elsewhere(folder: Path, **how: str) -> Iterator[None]:
    """Let another process hold the lock; it is killed at the end."""
    processes = multiprocessing.get_context("fork")
    held = processes.Event()
    other = processes.Process(target=_hold, args=(folder, how, held))
    other.start()
    try:
        assert held.wait(timeout=60)
        yield
    finally:
        other.kill()
        other.join()
