"""Small units for executors, without any network; workers import this file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.errors import InputError, ModelError
from sslmedsam2.execution.units import Work


@dataclass(frozen=True)
class Done:
    """What came of a unit, and which process and set-up did it."""

    square: int
    pid: int
    set_ups: int


@dataclass(frozen=True)
class SquareWork(Work[int, Done]):
    """Squares numbers, with a fault wherever a test wants one.

    Each unit leaves a line in ``<shared_dir>/log/<number>``: who began it, and when.
    """

    shared_dir: Path
    needs: tuple[Path, ...] = ()
    seconds: float = 0.0
    deadly: frozenset[int] = frozenset()
    wrong: frozenset[int] = frozenset()
    shaky: frozenset[int] = frozenset()
    endless: frozenset[int] = frozenset()
    refuses: bool = False
    whole_worker: bool = False
    wants_gpu: bool = False

    def name_of(self, unit: int) -> str:
        return f"number {unit}"

    def files_of(self, _unit: int) -> Sequence[Path]:
        return self.needs

    def set_up(self) -> str:
        if self.refuses:
            raise ModelError("the model", reason="there is none", remedy="Fetch it")
        _SetUps.count += 1
        return "squares"

    def load(self, unit: int) -> int:
        log = self.shared_dir / "log"
        log.mkdir(exist_ok=True)
        with (log / str(unit)).open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        return unit

    def compute(self, unit: int, stop: object) -> int:
        time.sleep(self.seconds)
        if unit in self.deadly:
            os._exit(1)
        if unit in self.wrong:
            raise InputError(f"number {unit}", kind="odd", reason="it is odd", remedy="Even it")
        if unit in self.shaky and len(began(self.shared_dir, unit)) < 2:
            raise RuntimeError("out of memory")
        if unit in self.endless:
            # Not for ever: what waits for it is then late, and does not hang.
            end = time.monotonic() + 40
            while not stop and time.monotonic() < end:
                time.sleep(0.02)
            (self.shared_dir / f"stopped_{unit}").touch()
        return unit * unit

    def finish(self, square: int) -> Done:
        return Done(square, os.getpid(), _SetUps.count)


class _SetUps:
    """How often this process was set up."""

    count = 0


def began(shared_dir: Path, unit: int) -> list[int]:
    """Return the processes that began a unit, in order."""
    path = shared_dir / "log" / str(unit)
    return [int(line) for line in path.read_text().split()] if path.exists() else []
