"""Small jobs for runners, without any network; workers import this file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.errors import InputError, ModelError


class Never:
    """No stop was asked for."""

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class Done:
    """What came of a unit, and which process and set-up did it."""

    square: int
    pid: int
    set_ups: int


@dataclass(frozen=True)
class SquareJob:
    """Squares numbers, with a fault wherever a test wants one.

    Each unit leaves a line in ``<shared_dir>/log/<number>``: who began it, and when.
    """

    shared_dir: Path
    needs: tuple[Path, ...] = ()
    seconds: float = 0.0
    deadly: frozenset[int] = frozenset()
    wrong: frozenset[int] = frozenset()
    shaky: frozenset[int] = frozenset()
    refuses: bool = False
    claim: str = "share"
    wants_gpu: bool = False

    def name_of(self, unit: int) -> str:
        return f"number {unit}"

    def files_of(self, _unit: int) -> Sequence[Path]:
        return self.needs

    def set_up(self) -> _Squares:
        if self.refuses:
            raise ModelError("the model", reason="there is none", remedy="Fetch it")
        return _Squares(self)


class _Squares:
    set_ups = 0

    def __init__(self, job: SquareJob) -> None:
        type(self).set_ups += 1
        self.about = "squares"
        self._job = job

    def load(self, unit: int) -> int:
        log = self._job.shared_dir / "log"
        log.mkdir(exist_ok=True)
        with (log / str(unit)).open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        return unit

    def compute(self, unit: int) -> int:
        time.sleep(self._job.seconds)
        if unit in self._job.deadly:
            os._exit(1)
        if unit in self._job.wrong:
            raise InputError(f"number {unit}", kind="odd", reason="it is odd", remedy="Even it")
        if unit in self._job.shaky and len(self._tries(unit)) < 2:
            raise RuntimeError("out of memory")
        return unit * unit

    def finish(self, square: int) -> Done:
        return Done(square, os.getpid(), type(self).set_ups)

    def close(self) -> None:
        pass

    def _tries(self, unit: int) -> list[str]:
        return (self._job.shared_dir / "log" / str(unit)).read_text().split()


def began(shared_dir: Path, unit: int) -> list[int]:
    """Return the processes that began a unit, in order."""
    path = shared_dir / "log" / str(unit)
    return [int(line) for line in path.read_text().split()] if path.exists() else []
