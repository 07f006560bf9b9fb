"""The part of the Dask executor that runs in the workers: a plugin sets up and does the work."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from distributed import Worker, get_worker
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.utils import sync

from sslmedsam2 import __version__
from sslmedsam2.errors import OutputError, SslMedSam2Error, described
from sslmedsam2.execution.dask_cluster import GPU, PROCESSORS_VARIABLE, UNITS_AT_ONCE
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import Returned, Unit, Work

logger = logging.getLogger(__name__)

# One of each in a worker's process, however many threads and runs it has: networks compute in one
# thread, as they do without a cluster.
_NETWORK: Final = ThreadPoolExecutor(1, "network")
_WRITER: Final = ThreadPoolExecutor(1, "writer")


class NotDoneError(Exception):
    """A unit was not done, and the unit is not the cause."""


@dataclass(frozen=True)
class WorkerState:
    """The result of the set-up in one worker.

    Attributes
    ----------
    resource
        The Dask resource that the worker announces. It is the same for workers that compute alike.
    about
        What `Work.set_up` returned.
    error
        Why the worker cannot take part, or None.
    """

    resource: str = ""
    about: Any = None
    error: SslMedSam2Error | None = None
    has_gpu: bool = False


class WorkPlugin(WorkerPlugin):
    """Sets a work up in a worker and does its units there.

    ``mark`` is a file in the shared folder: a worker that does not see it mounts another folder.
    """

    def __init__(self, work: Work[Any, Any], *, run: str, mark: Path) -> None:
        """Keep the work; it is pickled with the plugin and set up by :meth:`setup`."""
        self.work, self.run, self.mark = work, run, mark
        self.version = __version__
        self.state = WorkerState()
        self._sees_files = False

    async def setup(self, worker: Worker) -> None:
        """Check the worker and set the work up, outside the event loop's thread."""
        about, error = None, None
        try:
            self._check_worker()
            loop = asyncio.get_running_loop()
            about = await loop.run_in_executor(_NETWORK, self._set_up)
        except SslMedSam2Error as own:
            error = own
        except Exception as other:
            logger.debug("set-up failed", exc_info=other)
            error = left_out_error(f"the set-up failed ({described(other)})")
        has_gpu = bool(worker.state.total_resources.get(GPU))
        self.state = WorkerState(f"{self.run} {about}", about, error, has_gpu)
        if error is None:
            await worker.set_resources(**{self.state.resource: UNITS_AT_ONCE})
            # The scheduler gives waiting units only to workers that are new or were paused.
            worker.status = Status.paused
            worker.status = Status.running
        else:
            worker.log_event(self.run, f"a worker is left out: {error}")

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        """Free what was set up, without waiting: a unit may still be computing."""
        if self.state.error is None:
            _NETWORK.submit(self.work.close)

    def _check_worker(self) -> None:
        if self.version != __version__:
            raise left_out_error(f"it has version {__version__}, the run {self.version}")
        if not self.mark.exists():
            raise left_out_error(f"it cannot see {self.mark.parent}, or sees another folder there")

    def _set_up(self) -> Any:
        chosen = os.environ.get(PROCESSORS_VARIABLE)
        if chosen and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {int(number) for number in chosen.split(",")})
        return self.work.set_up()

    def do(self, unit: Any, worker: Worker, stop: StopRequest) -> Any:
        """Load, compute and finish a unit; no step begins after the unit was cancelled."""
        self._check_files(unit, worker)
        loaded = self.work.load(unit)
        computed = _NETWORK.submit(_unless(stop, self.work.compute), loaded, stop).result()
        del loaded
        return _WRITER.submit(_unless(stop, self.work.finish), computed).result()

    def _check_files(self, unit: Any, worker: Worker) -> None:
        hidden = missing_file(self.work, unit)
        if hidden is None:
            self._sees_files = True
            return
        problem = f"worker {_worker_name()} cannot see {hidden}"
        if not self._sees_files:
            # It has not seen the files of any unit, so it gets no more.
            worker.log_event(self.run, f"{problem} and is left out")
            sync(worker.loop, worker.set_resources, **{self.state.resource: 0})
        raise NotDoneError(problem)


def do_unit(run: str, unit: Any) -> Any:
    """Do a unit on the worker that runs this.

    An error of the unit itself is returned instead of raised, so that Dask does not retry it.
    """
    worker = get_worker()
    key, tasks = worker.get_current_task(), worker.state.tasks

    def cancelled() -> bool:
        # By the client, or because the client is gone. Dask does not end a running task.
        return key not in tasks or tasks[key].state == "cancelled"

    units: Any = worker.plugins[run]
    stop = StopRequest(cancelled)
    try:
        return units.do(unit, worker, stop)
    except Exception as error:
        if isinstance(error, SslMedSam2Error) and not isinstance(error, OutputError):
            return error
        if not stop:
            name = units.work.name_of(unit)
            worker.log_event(run, f"{name} failed on worker {_worker_name()}: {described(error)}")
        raise


def state_in_worker(run: str, dask_worker: Worker) -> WorkerState | None:
    """Return the result of the set-up in this worker; None if it was not started."""
    plugin: Any = dask_worker.plugins.get(run)
    return None if plugin is None else plugin.state


def _unless(stop: StopRequest, step: Callable[..., Returned]) -> Callable[..., Returned]:
    """Return a step that raises `NotDoneError` if it is called after ``stop`` became true."""

    def checked(*args: Any) -> Returned:
        if stop:
            raise NotDoneError("it was cancelled")
        return step(*args)

    return checked


def left_out_error(reason: str) -> SslMedSam2Error:
    """Return the error of this worker, which cannot take part."""
    return SslMedSam2Error(
        f"worker {_worker_name()}",
        reason=reason,
        remedy="Mount the same folders at the same paths, with the same version, everywhere",
    )


def _worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def missing_file(work: Work[Unit, Any], unit: Unit) -> Path | None:
    """Return the first file of the unit that does not exist here, or None."""
    for path in work.files_of(unit):
        if not path.exists():
            # A network file system may notice a new file only when the folder is listed.
            with suppress(OSError):
                next(path.parent.iterdir(), None)
            if not path.exists():
                return path
    return None
