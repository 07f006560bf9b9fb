"""The executor on a Dask cluster.

A worker plugin sets the work up in each worker, also in one that comes later or was restarted, and
announces it as a Dask resource, which every unit asks for. So Dask gives units only to workers that
can take part, repeats a unit that failed by chance (``retries``) and gives up one whose workers
died (``allowed-failures``). Units are submitted as workers become free: Dask holds the death
of a worker against every unit that it was assigned.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from distributed import Client, Future, Worker, get_worker
from distributed.client import FutureCancelledError
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.scheduler import KilledWorker
from distributed.utils import sync

from sslmedsam2 import __version__
from sslmedsam2.errors import OutputError, SslMedSam2Error, UsageError
from sslmedsam2.execution.dask_cluster import GPU, PROCESSORS_VARIABLE, UNITS_AT_ONCE
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import Result, Returned, Unit, Work

logger = logging.getLogger(__name__)


class _NotDoneError(Exception):
    """A unit could not be done for a reason that is not its own."""


_RETRIES: Final = 2
_TICK_S: Final = 0.25
_GONE: Final = _NotDoneError("the scheduler went away")
_AGAIN: Final = "Run the same command again, with --resume where there is one"

# Of a worker's process, whatever the number of its threads and of runs: networks compute in one
# thread, as they do without a cluster.
_NETWORK: Final = ThreadPoolExecutor(1, "network")
_WRITER: Final = ThreadPoolExecutor(1, "writer")


@dataclass(frozen=True)
class Progress:
    """How many units have a result, were given up, are with a worker, and are there at all.

    ``seconds_left`` is estimated from the pace so far.
    """

    done: int
    failed: int
    running: int
    total: int
    seconds_left: float

    def __str__(self) -> str:
        """Put it in words, for a line of the log."""
        text = f"{self.done}/{self.total} done, {self.running} running, {self.failed} failed"
        return f"{text}, about {self.seconds_left / 60:.1f} min left" if self.seconds_left else text


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class _State:
    """What the set-up in a worker has come to.

    ``resource`` is what the worker announces; workers that compute in another way differ in it.
    """

    resource: str = ""
    about: Any = None
    error: SslMedSam2Error | None = None
    has_gpu: bool = False


class _Units(WorkerPlugin):
    """A work in one worker."""

    def __init__(self, work: Work[Any, Any], *, run: str, mark: Path) -> None:
        """Take what travels; ``mark`` is a file in the shared folder."""
        self.work, self.run, self.mark = work, run, mark
        self.version = __version__
        self.state = _State()
        self._sees_files = False

    async def setup(self, worker: Worker) -> None:
        """Check the worker and set the work up, beside the event loop."""
        about, error = None, None
        try:
            self._check_worker()
            loop = asyncio.get_running_loop()
            about = await loop.run_in_executor(_NETWORK, self._set_up)
        except SslMedSam2Error as own:
            error = own
        except Exception as other:
            logger.debug("set-up failed", exc_info=other)
            error = _left_out(f"the set-up failed ({_in_words(other)})")
        has_gpu = bool(worker.state.total_resources.get(GPU))
        self.state = _State(f"{self.run} {about}", about, error, has_gpu)
        if error is None:
            await worker.set_resources(**{self.state.resource: UNITS_AT_ONCE})
            # The scheduler gives waiting units to workers that are new, or have paused.
            worker.status = Status.paused
            worker.status = Status.running
        else:
            worker.log_event(self.run, f"a worker is left out: {error}")

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        """Free what was set up; not waited for, since a unit may still be computing."""
        if self.state.error is None:
            _NETWORK.submit(self.work.close)

    def _check_worker(self) -> None:
        if self.version != __version__:
            raise _left_out(f"it has version {__version__}, the run {self.version}")
        if not self.mark.exists():
            raise _left_out(f"it cannot see {self.mark.parent}, or sees another folder there")

    def _set_up(self) -> Any:
        chosen = os.environ.get(PROCESSORS_VARIABLE)
        if chosen and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {int(number) for number in chosen.split(",")})
        return self.work.set_up()

    def do(self, unit: Any, worker: Worker, stop: StopRequest) -> Any:
        """Take a unit through its steps; a step is not begun once it is cancelled."""
        self._check_files(unit, worker)
        loaded = self.work.load(unit)
        computed = _NETWORK.submit(_unless(stop, self.work.compute), loaded, stop).result()
        del loaded
        return _WRITER.submit(_unless(stop, self.work.finish), computed).result()

    def _check_files(self, unit: Any, worker: Worker) -> None:
        hidden = _hidden(self.work, unit)
        if hidden is None:
            self._sees_files = True
            return
        problem = f"worker {_worker_name()} cannot see {hidden}"
        if not self._sees_files:
            # It has never seen a unit's files: no more units for it.
            worker.log_event(self.run, f"{problem} and is left out")
            sync(worker.loop, worker.set_resources, **{self.state.resource: 0})
        raise _NotDoneError(problem)


def _do(run: str, unit: Any) -> Any:
    """Do a unit on the worker that runs this; its own error is returned, and so not retried."""
    worker = get_worker()
    key, tasks = worker.get_current_task(), worker.state.tasks

    def cancelled() -> bool:
        # By the client, or because the client is gone; Dask leaves it to the task to end.
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
            worker.log_event(run, f"{name} failed on worker {_worker_name()}: {_in_words(error)}")
        raise


class DaskExecutor:
    """Does units on the workers of a cluster."""

    def __init__(
        self, client: Client, *, on_progress: OnProgress | None = None, patience_s: float = 300
    ) -> None:
        """Take a connected client; ``patience_s`` is how long to wait for a worker."""
        self._client = client
        self._on_progress = on_progress
        self._patience_s = patience_s
        self._run = ""
        self._resource = ""
        self._with_gpu = False
        self._counted_at = 0.0
        self._n_workers = 0

    @contextmanager
    def open(self, work: Work[Any, Any]) -> Iterator[Any]:
        """Set ``work`` up on all workers, and on each that comes later.

        Raises
        ------
        SslMedSam2Error
            What the set-up raised, or no worker can take part.
        UsageError
            No worker appears.
        OutputError
            The shared folder cannot be written.
        """
        client, self._run = self._client, f"units-{uuid.uuid4().hex[:12]}"
        self._wait_for_a_worker()
        with _shared_mark(work.shared_dir / f".run-{self._run}") as mark:
            plugin = _Units(work, run=self._run, mark=mark)
            try:
                logger.info("setting up %d worker(s)", len(self._infos()))
                try:
                    client.register_plugin(plugin, name=self._run)
                except Exception as error:
                    logger.warning("a worker is left out: %s", _in_words(error))
                about = self._choose(work)
                client.subscribe_topic(self._run, lambda event: logger.warning("%s", event[1]))
                yield about
            finally:
                with suppress(Exception):
                    client.unregister_worker_plugin(self._run)

    def _wait_for_a_worker(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=self._patience_s)
        except TimeoutError as error:
            raise UsageError(
                "--cluster",
                reason=f"no worker has come within {self._patience_s:.0f} s",
                remedy="Look at the batch system's queue, or start 'dask worker'",
            ) from error

    def _choose(self, work: Work[Any, Any]) -> Any:
        """Return what a worker's set-up returned, of one with a GPU if there is one."""
        found = self._client.run(_state_of, self._run, on_error="ignore").values()
        ready = [
            state for state in found if state is not None and state.resource and not state.error
        ]
        errors = [state.error for state in found if state is not None and state.error]
        if not ready:
            raise errors[0] if errors else _left_out("it was lost while it was set up")
        for error in errors:
            logger.warning("a worker is left out: %s", error)
        first = max(ready, key=lambda state: work.wants_gpu and state.has_gpu)
        others = {str(state.about) for state in ready if state.resource != first.resource}
        if others:
            logger.warning("workers are left out: %s instead of %s", ", ".join(others), first.about)
        self._resource, self._counted_at = first.resource, 0.0
        self._with_gpu = work.wants_gpu and first.has_gpu
        return first.about

    def call(self, function: Callable[..., Returned], *args: Any, **kwargs: Any) -> Returned:
        """Call a function on a worker, one with a GPU if there is one; raises what it raises."""
        self._wait_for_a_worker()
        has_gpu = any(info.get("resources", {}).get(GPU) for info in self._infos().values())
        resources = {GPU: 1 / UNITS_AT_ONCE} if has_gpu else None
        future = self._client.submit(
            partial(function, *args, **kwargs), pure=False, resources=resources
        )
        returned: Returned = future.result()
        return returned

    def map(
        self, work: Work[Unit, Result], units: Sequence[Unit], *, stop: StopRequest
    ) -> Iterator[tuple[Unit, Result | SslMedSam2Error]]:
        """Yield the results as they come, until done or stopped.

        A unit that was near another one that took its worker down is tried alone in the end, so
        that only the culprit is given up.
        """
        start, done, failed = time.monotonic(), 0, 0
        for unit, result, running in self._results_of_all(work, units, stop):
            if isinstance(result, Exception) and not isinstance(result, SslMedSam2Error):
                result = _given_up(work.name_of(unit), result)
            failed += isinstance(result, SslMedSam2Error)
            done += not isinstance(result, SslMedSam2Error)
            if self._on_progress is not None:
                total, ended = len(units), done + failed
                seconds_left = (time.monotonic() - start) / ended * (total - ended)
                self._on_progress(Progress(done, failed, running, total, seconds_left))
            yield unit, result

    def _results_of_all(
        self, work: Work[Unit, Any], units: Sequence[Unit], stop: StopRequest
    ) -> Iterator[tuple[Unit, Any, int]]:
        killed: list[Unit] = []
        for unit, result, running in self._results(work, units, stop):
            if isinstance(result, KilledWorker):
                logger.warning("%s: its worker died; it is tried alone", work.name_of(unit))
                killed.append(unit)
            else:
                yield unit, result, running
        for unit in killed:
            yield from self._results(work, [unit], stop)

    def _results(
        self, work: Work[Unit, Any], units: Sequence[Unit], stop: StopRequest
    ) -> Iterator[tuple[Unit, Any, int]]:
        """Submit units as workers become free.

        Yields each with its result, or its error as it is, and the number of those that run.
        """
        waiting, running = deque(units), dict[Any, tuple[Unit, Future]]()
        ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        each = 1 if work.whole_worker else UNITS_AT_ONCE
        last_seen = time.monotonic()
        try:
            while (waiting or running) and not stop:
                n_workers = self._count_workers()
                last_seen = time.monotonic() if n_workers else last_seen
                while waiting and len(running) < each * n_workers:
                    unit = waiting.popleft()
                    hidden = _hidden(work, unit)
                    if hidden is not None:
                        yield unit, _NotDoneError(f"{hidden} is not there"), len(running)
                        continue
                    future = self._submit(work, unit)
                    running[future.key] = unit, future
                    future.add_done_callback(ended.put)
                try:
                    future = ended.get(timeout=_TICK_S)
                except queue.Empty:
                    lost = self._lost(last_seen)
                else:
                    result = _result_of(future)
                    lost = _GONE if isinstance(result, FutureCancelledError) else None
                    if lost is None:
                        unit, _ = running.pop(future.key)
                        yield unit, result, len(running)
                if lost is not None:
                    waiting.extendleft(unit for unit, _ in running.values())
                    yield from ((unit, lost, 0) for unit in waiting)
                    return
        finally:
            if running:
                with suppress(Exception):
                    self._client.cancel([future for _, future in running.values()], force=True)

    def _submit(self, work: Work[Unit, Any], unit: Unit) -> Future:
        resources = {self._resource: UNITS_AT_ONCE if work.whole_worker else 1.0}
        if self._with_gpu:
            # Units that share a worker take turns on its network, and on its GPU.
            resources[GPU] = resources[self._resource] / UNITS_AT_ONCE
        key = f"{self._run}-{uuid.uuid4().hex}"
        return self._client.submit(
            _do, self._run, unit, key=key, pure=False, retries=_RETRIES, resources=resources
        )

    def _lost(self, last_seen: float) -> Exception | None:
        """Say what has been missing for too long."""
        if self._client.status != "running":
            return _GONE
        if time.monotonic() - last_seen > self._patience_s:
            return _NotDoneError(f"no worker was there for {self._patience_s:.0f} s")
        return None

    def _count_workers(self) -> int:
        """Return how many workers take part, as of a second ago."""
        if time.monotonic() - self._counted_at > _TICK_S * 4:
            infos = self._infos().values()
            self._n_workers = sum(bool(one["resources"].get(self._resource)) for one in infos)
            self._counted_at = time.monotonic()
        return self._n_workers

    def _infos(self) -> dict[str, Any]:
        """Return what the scheduler knows of each worker; nothing while it does not answer."""
        try:
            return dict(self._client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, ValueError, RuntimeError):
            return {}


def _result_of(future: Future) -> Any:
    """Return a future's result, or its error: `FutureCancelledError` if the scheduler is lost."""
    try:
        return future.result()
    except (Exception, FutureCancelledError) as error:
        return error


def _state_of(run: str, dask_worker: Worker) -> _State | None:
    """Return to the client what a worker's set-up has come to."""
    plugin: Any = dask_worker.plugins.get(run)
    return None if plugin is None else plugin.state


def _unless(stop: StopRequest, step: Callable[..., Returned]) -> Callable[..., Returned]:
    """Return a step that is not begun once ``stop`` is true."""

    def begun(*args: Any) -> Returned:
        if stop:
            raise _NotDoneError("it was cancelled")
        return step(*args)

    return begun


def _given_up(name: str, error: Exception) -> SslMedSam2Error:
    if isinstance(error, KilledWorker):
        reason = "the worker that it ran on died, several times over"
    else:
        reason = str(error) if isinstance(error, _NotDoneError) else _in_words(error)
    return SslMedSam2Error(name, reason=reason, remedy=_AGAIN)


def _left_out(reason: str) -> SslMedSam2Error:
    return SslMedSam2Error(
        f"worker {_worker_name()}",
        reason=reason,
        remedy="Mount the same folders at the same paths, with the same version, everywhere",
    )


def _worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _hidden(work: Work[Unit, Any], unit: Unit) -> Path | None:
    """Return a file of the unit that cannot be seen here, if there is one."""
    for path in work.files_of(unit):
        if not path.exists():
            # A network file system may learn of a new file by a listing only.
            with suppress(OSError):
                next(path.parent.iterdir(), None)
            if not path.exists():
                return path
    return None


def _in_words(error: Exception) -> str:
    detail = " ".join(str(error).split())[:200] or "no details"
    return f"{type(error).__name__}: {detail}"


@contextmanager
def _shared_mark(mark: Path) -> Iterator[Path]:
    """Leave a file in the shared folder for as long as a run takes."""
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise OutputError(
            mark.parent,
            reason=f"it cannot be written ({error.strerror})",
            remedy="Choose a folder that this machine and all workers can write",
        ) from error
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)
