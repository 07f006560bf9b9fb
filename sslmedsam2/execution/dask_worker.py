"""What runs on a worker: a job set up once a process, then one unit after another.

Nothing here knows of Dask; a worker calls :func:`do_unit` in as many threads as it has. All
networks of a process run in one thread and all writing in another, whatever the number of threads,
which is how the run without a cluster goes about it too.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sslmedsam2 import __version__
from sslmedsam2.errors import OutputError, SslMedSam2Error
from sslmedsam2.execution.units import Job, Stages

logger = logging.getLogger(__name__)

UNITS_IN_HAND: Final = 3
"""At once in one process: one computes, one is read, one is written."""

PROCESSORS_VARIABLE: Final = "SSLMEDSAM2_WORKER_PROCESSORS"
"""Which processors a local worker keeps to, as ``0,1``. Numerical libraries count those that they
may run on, so this has to be obeyed before the first of them is loaded."""


@dataclass(frozen=True)
class Ticket:
    """What a worker has to know of a run.

    Attributes
    ----------
    run
        Names the run; a worker that meets another one drops what it had set up.
    mark
        A file in the shared folder: who does not see it sees another folder of that name.
    about
        What the set-up has to say of itself, see :class:`~sslmedsam2.execution.units.Stages`; None
        for the first worker, which decides.
    """

    run: str
    job: Job[Any, Any]
    mark: Path
    about: Any = None
    version: str = __version__


@dataclass(frozen=True)
class Reply:
    """What a worker made of a unit.

    Attributes
    ----------
    error
        The unit's own: another worker would find the same.
    trouble
        Why another worker may do better.
    unfit
        ``trouble`` is not about this unit but about the worker, or about all units there.
    """

    worker: str
    result: Any = None
    error: SslMedSam2Error | None = None
    trouble: str | None = None
    unfit: bool = False


class _UnfitError(Exception):
    """This process cannot take part in the run."""


class _Process:
    """What one worker process has set up."""

    def __init__(self) -> None:
        self._run: str | None = None
        self._stages: Stages[Any, Any] | None = None
        self._lock = threading.Lock()
        self._in_hand = threading.BoundedSemaphore(UNITS_IN_HAND)
        self._network = ThreadPoolExecutor(1, "network")
        self._writer = ThreadPoolExecutor(1, "writer")

    def stages_for(self, ticket: Ticket) -> Stages[Any, Any]:
        """Return the job's stages, set up now if this process has not done so yet."""
        with self._lock:
            if self._run != ticket.run or self._stages is None:
                self._drop()
                _check_surroundings(ticket)
                self._stages = self._network.submit(_set_up, ticket).result()
                self._run = ticket.run
            if ticket.about is not None and self._stages.about != ticket.about:
                raise _UnfitError(
                    f"it would compute in another way ({self._stages.about} instead of "
                    f"{ticket.about})"
                )
            return self._stages

    def do(self, stages: Stages[Any, Any], unit: Any) -> Any:
        """Take one unit through its stages."""
        with self._in_hand:
            loaded = stages.load(unit)
            computed = self._network.submit(stages.compute, loaded).result()
            del loaded
            return self._writer.submit(stages.finish, computed).result()

    def _drop(self) -> None:
        if self._stages is not None:
            self._network.submit(self._stages.close).result()
        self._stages = self._run = None

    def forget(self, run: str) -> None:
        """Let go of a run that is over."""
        with self._lock:
            if self._run == run:
                self._drop()


_PROCESS: Final = _Process()


def set_up(ticket: Ticket) -> Any:
    """Set the job up and return what its stages say of themselves.

    Raises
    ------
    SslMedSam2Error
        What the set-up raised, or this worker cannot take part.
    """
    try:
        return _PROCESS.stages_for(ticket).about
    except _UnfitError as error:
        raise SslMedSam2Error(
            f"worker {worker_name()}",
            reason=str(error),
            remedy="Mount the same folders at the same paths, with the same version, everywhere",
        ) from error


def do_unit(ticket: Ticket, unit: Any) -> Reply:
    """Do one unit; failures come back as data, with what is known of whose fault they are."""
    name = worker_name()
    try:
        stages = _PROCESS.stages_for(ticket)
    except (_UnfitError, SslMedSam2Error) as error:
        return Reply(name, trouble=str(error), unfit=True)
    except Exception as error:
        logger.debug("set-up failed", exc_info=error)
        return Reply(name, trouble=_in_words(error), unfit=True)
    hidden = [path for path in ticket.job.files_of(unit) if not path.exists()]
    if hidden:
        return Reply(name, trouble=f"it cannot see {hidden[0]}", unfit=True)
    try:
        return Reply(name, result=_PROCESS.do(stages, unit))
    except OutputError as error:
        return Reply(name, trouble=str(error))
    except SslMedSam2Error as error:
        return Reply(name, error=error)
    except Exception as error:
        logger.debug("unit failed", exc_info=error)
        return Reply(name, trouble=_in_words(error))


def forget(run: str) -> None:
    """Let go of a run that is over."""
    _PROCESS.forget(run)


def worker_name() -> str:
    """Return host and process, as messages name a worker."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def shared_mark(folder: Path, run: str) -> Iterator[Path]:
    """Leave a mark in a folder for as long as a run takes.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    mark = folder / f".run-{run}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise OutputError(
            folder,
            reason=f"it cannot be written ({error.strerror})",
            remedy="Choose a folder that this machine and all workers can write",
        ) from error
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _check_surroundings(ticket: Ticket) -> None:
    if ticket.version != __version__:
        raise _UnfitError(f"it has version {__version__}, the run {ticket.version}")
    if not ticket.mark.exists():
        raise _UnfitError(f"it cannot see {ticket.mark.parent}, or sees another folder there")


def _set_up(ticket: Ticket) -> Stages[Any, Any]:
    chosen = os.environ.get(PROCESSORS_VARIABLE)
    if chosen and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(number) for number in chosen.split(",")})
    return ticket.job.set_up()


def _in_words(error: Exception) -> str:
    detail = " ".join(str(error).split())[:200] or "no details"
    return f"{type(error).__name__}: {detail}"
