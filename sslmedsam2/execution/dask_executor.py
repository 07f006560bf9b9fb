"""The executor on a Dask cluster: sets the work up in the workers and submits units to them.

The plugin of :mod:`sslmedsam2.execution.dask_worker` sets the work up in each worker, also in one
that joins later or restarts, and announces it as a Dask resource, which every unit asks for. So
Dask gives units only to workers that can take part, repeats a unit that failed by chance
(``retries``) and gives up one whose workers died (``allowed-failures``). Units are submitted as
workers become free, because Dask counts the death of a worker against every unit assigned to it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from sslmedsam2.errors import OutputError, SslMedSam2Error, UsageError, described
from sslmedsam2.execution.dask_cluster import GPU, UNITS_AT_ONCE
from sslmedsam2.execution.dask_worker import (
    NotDoneError,
    WorkPlugin,
    do_unit,
    left_out_error,
    missing_file,
    state_in_worker,
)
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import Result, Returned, Unit, Work

logger = logging.getLogger(__name__)


_RETRIES: Final = 2
_TICK_S: Final = 0.25
_GONE: Final = NotDoneError("the scheduler went away")
_AGAIN: Final = "Run the same command again, with --resume where there is one"


@dataclass(frozen=True)
class Progress:
    """How far a run is, in numbers of units.

    ``running`` are with a worker, ``failed`` were given up. ``seconds_left`` is estimated from the
    pace so far.
    """

    done: int
    failed: int
    running: int
    total: int
    seconds_left: float

    def __str__(self) -> str:
        """Return one line for the log."""
        text = f"{self.done}/{self.total} done, {self.running} running, {self.failed} failed"
        return f"{text}, about {self.seconds_left / 60:.1f} min left" if self.seconds_left else text


OnProgress = Callable[[Progress], None]


class DaskExecutor:
    """Does units on the workers of a cluster.

    ``client`` is connected; ``patience_s`` is how long to wait for a worker, in seconds.
    """

    def __init__(
        self, client: Client, *, on_progress: OnProgress | None = None, patience_s: float = 300
    ) -> None:
        """Keep the client; :meth:`open` sets the work up."""
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
        """Set ``work`` up on all workers, and on each that joins later.

        Raises
        ------
        SslMedSam2Error
            The set-up failed on all workers, or no worker can take part.
        UsageError
            No worker joins in time.
        OutputError
            The shared folder cannot be written.
        """
        client, self._run = self._client, f"units-{uuid.uuid4().hex[:12]}"
        self._wait_for_a_worker()
        with _shared_mark(work.shared_dir / f".run-{self._run}") as mark:
            plugin = WorkPlugin(work, run=self._run, mark=mark)
            try:
                logger.info("setting up %d worker(s)", len(self._infos()))
                try:
                    client.register_plugin(plugin, name=self._run)
                except Exception as error:
                    logger.warning("a worker is left out: %s", described(error))
                about = self._choose(work)
                client.subscribe_topic(self._run, lambda event: logger.warning("%s", event[1]))
                yield about
            finally:
                with suppress(Exception):
                    client.unregister_worker_plugin(self._run)

    def _wait_for_a_worker(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=self._patience_s)
        # Before Python 3.11 that of asyncio, which is raised, is another.
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise UsageError(
                "--cluster",
                reason=f"no worker has come within {self._patience_s:.0f} s",
                remedy="Look at the batch system's queue, or start 'dask worker'",
            ) from error

    def _choose(self, work: Work[Any, Any]) -> Any:
        """Choose the worker that others must agree with, and return what its set-up returned.

        A worker with a GPU is preferred.
        """
        found = self._client.run(state_in_worker, self._run, on_error="ignore").values()
        ready = [
            state for state in found if state is not None and state.resource and not state.error
        ]
        errors = [state.error for state in found if state is not None and state.error]
        if not ready:
            raise errors[0] if errors else left_out_error("it was lost while it was set up")
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
        """Call a function on a worker, preferably one with a GPU; its errors are raised."""
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
        """Yield the results in the order in which they arrive, until done or stopped.

        Units whose worker died are repeated one at a time at the end, so that only a unit that
        kills its worker is given up.
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

        Yields each unit with its result, or its error unchanged, and the number of running units.
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
                    hidden = missing_file(work, unit)
                    if hidden is not None:
                        yield unit, NotDoneError(f"{hidden} is not there"), len(running)
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
            # The units on one worker share its network and its GPU.
            resources[GPU] = resources[self._resource] / UNITS_AT_ONCE
        key = f"{self._run}-{uuid.uuid4().hex}"
        return self._client.submit(
            do_unit, self._run, unit, key=key, pure=False, retries=_RETRIES, resources=resources
        )

    def _lost(self, last_seen: float) -> Exception | None:
        """Return an error if the scheduler or all workers are gone, else None."""
        if self._client.status != "running":
            return _GONE
        if time.monotonic() - last_seen > self._patience_s:
            return NotDoneError(f"no worker was there for {self._patience_s:.0f} s")
        return None

    def _count_workers(self) -> int:
        """Return how many workers take part; the number may be a second old."""
        if time.monotonic() - self._counted_at > _TICK_S * 4:
            infos = self._infos().values()
            self._n_workers = sum(bool(one["resources"].get(self._resource)) for one in infos)
            self._counted_at = time.monotonic()
        return self._n_workers

    def _infos(self) -> dict[str, Any]:
        """Return the scheduler's data of each worker; empty while it does not answer."""
        try:
            return dict(self._client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, ValueError, RuntimeError):
            return {}


def _result_of(future: Future) -> Any:
    """Return a future's result or its error, `FutureCancelledError` if the scheduler is gone."""
    try:
        return future.result()
    except (Exception, FutureCancelledError) as error:
        return error


def _given_up(name: str, error: Exception) -> SslMedSam2Error:
    if isinstance(error, KilledWorker):
        reason = "the worker that it ran on died, several times over"
    else:
        reason = str(error) if isinstance(error, NotDoneError) else described(error)
    return SslMedSam2Error(name, reason=reason, remedy=_AGAIN)


@contextmanager
def _shared_mark(mark: Path) -> Iterator[Path]:
    """Keep an empty file in the shared folder while the context is open."""
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
