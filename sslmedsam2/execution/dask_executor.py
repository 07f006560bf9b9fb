"""The runner on a Dask cluster.

Units are handed out a few a worker at a time, so that what is known of the workers by then counts:
one that cannot take part gets no more. Dask moves the units of a worker that died to another one. A
unit that has taken down several is set aside until all others are done and then tried alone, so
that the culprit is named, and no other that was only near it.
"""

from __future__ import annotations

import logging
import math
import queue
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Generic

from sslmedsam2.errors import SslMedSam2Error, UsageError
from sslmedsam2.execution.dask_cluster import GPU
from sslmedsam2.execution.dask_worker import (
    UNITS_IN_HAND,
    Reply,
    Ticket,
    do_unit,
    forget,
    set_up,
    shared_mark,
)
from sslmedsam2.execution.progress import Meter, OnProgress
from sslmedsam2.execution.units import Job, Outcome, Result, Stop, Unit

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

_ATTEMPTS: Final = 3
"""How often a unit that fails for no reason of its own is tried."""

_TICK_S: Final = 0.25
_ROSTER_S: Final = 1.0
_AGAIN: Final = "Run the same command again, with --resume where there is one"


class DaskRunner:
    """Does units on the workers of a cluster."""

    def __init__(
        self,
        client: Client,
        *,
        on_progress: OnProgress | None = None,
        patience_s: float = 300,
    ) -> None:
        """Take a connected client.

        ``patience_s`` is how long to wait for a worker, or for the scheduler to come back, before
        the units left are given up.
        """
        self._client = client
        self._on_progress = on_progress
        self._patience_s = patience_s

    @contextmanager
    def open(self, job: Job[Unit, Result]) -> Iterator[DaskSession[Unit, Result]]:
        """Set a job up on a first worker; the others follow with their first unit.

        Raises
        ------
        SslMedSam2Error
            What the set-up raised, or the worker cannot take part.
        UsageError
            No worker appears.
        """
        client, run = self._client, uuid.uuid4().hex
        self._wait_for_a_worker()
        with shared_mark(job.shared_dir, run) as mark:
            ticket = Ticket(run, job, mark)
            about = self._set_up(ticket)
            try:
                yield DaskSession(
                    client,
                    replace(ticket, about=about),
                    on_progress=self._on_progress,
                    patience_s=self._patience_s,
                )
            finally:
                with suppress(Exception):
                    client.run(forget, run, on_error="ignore")

    def _wait_for_a_worker(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=self._patience_s)
        except TimeoutError as error:
            raise UsageError(
                "--cluster",
                reason=f"no worker has come within {self._patience_s:.0f} s",
                remedy="Look at the batch system's queue, or start 'dask worker'",
            ) from error

    def _set_up(self, ticket: Ticket) -> Any:
        """Set up on one worker, or on the next that can; the last one's error is raised."""
        roster = _Roster(self._client)
        asked: list[str] = []
        while True:
            left = [address for address in roster.addresses() if address not in asked]
            address, about, error = self._client.submit(
                _set_up_here,
                ticket,
                pure=False,
                workers=left,
                resources=roster.resources(ticket.job),
            ).result()
            if error is None:
                return about
            asked.append(address)
            if set(left) <= set(asked):
                raise error
            logger.warning("%s", error)


class _Roster:
    """The workers that the scheduler has, asked for once in a while."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._asked_at = -math.inf
        self._infos: dict[str, Any] = {}

    def addresses(self) -> list[str]:
        """Return the workers' addresses; none while the scheduler is not there."""
        return list(self._fresh())

    def resources(self, job: Job[Any, Any]) -> dict[str, float] | None:
        """Return what a unit claims; GPUs only where workers say that they have some."""
        infos = self._fresh().values()
        if not job.wants_gpu or not any(info.get("resources", {}).get(GPU) for info in infos):
            return None
        # Units that share a worker take turns on its network, and on its GPU.
        return {GPU: 1 / UNITS_IN_HAND if job.claim == "share" else 1}

    def _fresh(self) -> dict[str, Any]:
        if self._client.status != "running":
            return {}
        if time.monotonic() - self._asked_at > _ROSTER_S:
            try:
                self._infos = dict(self._client.scheduler_info(n_workers=-1)["workers"])
            except (OSError, ValueError, RuntimeError):
                return {}
            self._asked_at = time.monotonic()
        return self._infos


def _set_up_here(ticket: Ticket) -> tuple[str, Any, SslMedSam2Error | None]:
    """Set up on the worker that runs this, and return its address and what came of it."""
    from distributed import get_worker

    try:
        return get_worker().address, set_up(ticket), None
    except SslMedSam2Error as error:
        return get_worker().address, None, error


def _do_here(ticket: Ticket, unit: Any) -> tuple[str, Reply]:
    """Do a unit on the worker that runs this, and return its address and what came of it."""
    from distributed import get_worker

    return get_worker().address, do_unit(ticket, unit)


@dataclass
class _Task(Generic[Unit]):
    """A unit and how it has fared."""

    unit: Unit
    name: str
    attempts: int = 0
    troubles: list[str] = field(default_factory=list)


class DaskSession(Generic[Unit, Result]):
    """A job that is set up on the workers of a cluster."""

    def __init__(
        self,
        client: Client,
        ticket: Ticket,
        *,
        on_progress: OnProgress | None,
        patience_s: float,
    ) -> None:
        """Take the ticket that every unit is sent with."""
        self.about = ticket.about
        self._client = client
        self._ticket = ticket
        self._on_progress = on_progress
        self._patience_s = patience_s
        self._roster = _Roster(client)
        self._unfit: set[str] = set()
        self._alone_since: float | None = None
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._running: dict[Any, tuple[_Task[Unit], Future]] = {}
        self._waiting: deque[_Task[Unit]] = deque()
        self._suspects: deque[_Task[Unit]] = deque()

    def run(self, units: Sequence[Unit], *, stop: Stop) -> Iterator[Outcome[Unit, Result]]:
        """Yield the outcomes as they come, until done or stopped.

        What workers have in hand when it is stopped is left to them and counts for nothing.
        """
        name_of = self._ticket.job.name_of
        self._waiting.extend(_Task(unit, name_of(unit)) for unit in units)
        meter = Meter(len(units))
        try:
            while not stop and (self._waiting or self._running or self._suspects):
                self._tell(meter)
                for outcome in self._step():
                    meter.done += outcome.error is None
                    meter.failed += outcome.error is not None
                    self._tell(meter)
                    yield outcome
        finally:
            self._cancel()

    def _step(self) -> Iterator[Outcome[Unit, Result]]:
        """Hand out what can be, and see to what has ended meanwhile."""
        lost = self._nobody_left()
        if lost is not None:
            yield from self._give_up(lost)
            return
        self._hand_out()
        try:
            future = self._ended.get(timeout=_TICK_S)
        except queue.Empty:
            return
        if future.key in self._running:
            task, _ = self._running.pop(future.key)
            outcome = self._outcome(task, future)
            if outcome is not None:
                yield outcome

    def _hand_out(self) -> None:
        """Send units out, as many as the workers have room for."""
        fit = self._fit()
        if self._client.status != "running":
            return
        each = UNITS_IN_HAND if self._ticket.job.claim == "share" else 1
        while self._waiting and len(self._running) < each * len(fit):
            self._submit(self._waiting.popleft(), fit)
        if self._suspects and not self._running and not self._waiting and fit:
            self._submit(self._suspects.popleft(), fit)

    def _submit(self, task: _Task[Unit], fit: Sequence[str]) -> None:
        future = self._client.submit(
            _do_here,
            self._ticket,
            task.unit,
            key=f"{type(self._ticket.job).__name__}-{self._ticket.run}-{uuid.uuid4().hex}",
            pure=False,
            # Only where it has to be: a list would keep workers out that come later.
            workers=list(fit) if self._unfit else None,
            resources=self._roster.resources(self._ticket.job),
        )
        self._running[future.key] = task, future
        future.add_done_callback(self._ended.put)

    def _outcome(self, task: _Task[Unit], future: Future) -> Outcome[Unit, Result] | None:
        """Judge a unit that has come back; None if it is to be tried again."""
        from distributed.scheduler import KilledWorker

        if future.status == "cancelled":
            # The scheduler was lost and may have come back, but not with what it knew.
            return self._again(task, "the scheduler was lost")
        if future.status == "finished":
            return self._judged(task, *future.result())
        error = future.exception()
        if isinstance(error, KilledWorker):
            trouble = "the worker that it ran on died, several times over"
            if task.attempts == 0:
                logger.warning("%s: %s; it is tried alone in the end", task.name, trouble)
                task.attempts = _ATTEMPTS - 1
                self._suspects.append(task)
                return None
            return self._failed(task, trouble)
        return self._again(task, f"{type(error).__name__}: {error}")

    def _judged(
        self, task: _Task[Unit], address: str, reply: Reply
    ) -> Outcome[Unit, Result] | None:
        if reply.error is not None:
            return Outcome(task.unit, None, reply.error)
        if reply.trouble is None:
            return Outcome(task.unit, reply.result)
        fit = self._fit()
        # Not the last one: the fault may lie with the unit, or be everywhere.
        if reply.unfit and address in fit and len(fit) > 1:
            logger.warning("worker %s is left out: %s", reply.worker, reply.trouble)
            self._unfit.add(address)
        return self._again(task, f"on worker {reply.worker}: {reply.trouble}")

    def _again(self, task: _Task[Unit], trouble: str) -> Outcome[Unit, Result] | None:
        task.attempts += 1
        task.troubles.append(trouble)
        if task.attempts >= _ATTEMPTS:
            return self._failed(task, trouble)
        logger.warning("%s is tried again: %s", task.name, trouble)
        self._waiting.append(task)
        return None

    def _failed(self, task: _Task[Unit], trouble: str) -> Outcome[Unit, Result]:
        error = SslMedSam2Error(task.name, reason=trouble, remedy=_AGAIN)
        return Outcome(task.unit, None, error)

    def _fit(self) -> list[str]:
        return [address for address in self._roster.addresses() if address not in self._unfit]

    def _nobody_left(self) -> str | None:
        """Say what has been missing for too long."""
        if self._client.status == "closed":
            return "the scheduler went away and did not come back"
        if self._fit():
            self._alone_since = None
            return None
        if self._alone_since is None:
            self._alone_since = time.monotonic()
            logger.warning("neither scheduler nor worker answers; waiting")
        if time.monotonic() - self._alone_since < self._patience_s:
            return None
        return f"no worker was there for {self._patience_s:.0f} s"

    def _give_up(self, reason: str) -> Iterator[Outcome[Unit, Result]]:
        tasks = [task for task, _ in self._running.values()]
        tasks += [*self._waiting, *self._suspects]
        self._running.clear()
        self._waiting.clear()
        self._suspects.clear()
        for task in tasks:
            yield self._failed(task, reason)

    def _tell(self, meter: Meter) -> None:
        if self._on_progress is not None:
            self._on_progress(meter.reading(running=len(self._running)))

    def _cancel(self) -> None:
        futures = [future for _, future in self._running.values()]
        if futures:
            with suppress(Exception):
                self._client.cancel(futures, force=True)
        self._running.clear()
        self._waiting.clear()
        self._suspects.clear()
