"""Units of work, and the executor without a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from sslmedsam2.errors import SslMedSam2Error
from sslmedsam2.execution.interrupt import StopRequest

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Returned = TypeVar("Returned")
Unit = TypeVar("Unit")
Result = TypeVar("Result")


class Work(ABC, Generic[Unit, Result]):
    """How to process the units of one run, in three steps that overlap between units.

    ``load`` and ``finish`` run in threads of their own, ``compute`` always in the same thread. Each
    step takes what the one before returned. A work is sent to workers as a pickle before it is set
    up, so until then it holds paths and settings, but no arrays.

    Attributes
    ----------
    shared_dir
        The folder for results; all workers must see the same one.
    wants_gpu
        Whether a unit uses a GPU if a worker has one.
    whole_worker
        Whether a worker processes one unit at a time, instead of one in each step.
    """

    shared_dir: Path
    wants_gpu: bool
    whole_worker: ClassVar[bool] = False

    @abstractmethod
    def name_of(self, unit: Unit) -> str:
        """Return the name of a unit in messages."""

    def files_of(self, _unit: Unit) -> Sequence[Path]:
        """Return the files that must exist before a unit is started."""
        return ()

    @abstractmethod
    def set_up(self) -> Any:
        """Load what all units share, once in each process.

        Returns what the results depend on besides the settings, such as the device. Workers that
        return something else than the first one, compared as text, get no units.
        """

    def load(self, unit: Unit) -> Any:
        """Read what the unit needs."""
        return unit

    @abstractmethod
    def compute(self, loaded: Any, stop: StopRequest) -> Any:
        """Run the network; long computations return early when ``stop`` becomes true."""

    def finish(self, computed: Any) -> Result:
        """Write the results and return a small summary without arrays."""
        result: Result = computed
        return result

    def close(self) -> None:
        """Free what ``set_up`` has loaded."""


class Executor(Protocol):
    """Where units are computed: :class:`ThisProcess`, or the workers of a Dask cluster."""

    def open(self, work: Work[Any, Any]) -> AbstractContextManager[Any]:
        """Set ``work`` up while the context is open; gives what `Work.set_up` returned."""

    def map(
        self, work: Work[Unit, Result], units: Sequence[Unit], *, stop: StopRequest
    ) -> Iterator[tuple[Unit, Result | SslMedSam2Error]]:
        """Yield each unit of an open ``work`` with its result or error, until done or stopped."""

    def call(self, function: Callable[..., Returned], *args: Any, **kwargs: Any) -> Returned:
        """Call a function where the units are computed, and return its result."""


def duration(seconds: float) -> str:
    """Return a duration in words: ``12 min`` or ``2.3 h``."""
    return f"{max(1, round(seconds / 60))} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def map_units(
    work: Work[Unit, Result], units: Sequence[Unit], *, stop: StopRequest, executor: Executor
) -> list[tuple[Unit, Result]]:
    """Set ``work`` up and process all units, in any order, until done or stopped.

    Raises SslMedSam2Error: the set-up or a unit failed; on a cluster, after all other units.
    """
    with executor.open(work):
        results = executor.map(work, units, stop=stop)
        return all_or_error(results)


def all_or_error(
    results: Iterable[tuple[Unit, Result | SslMedSam2Error]],
) -> list[tuple[Unit, Result]]:
    """Wait for all units, then return the results, or raise their errors as one error."""
    found: list[tuple[Unit, Result]] = []
    errors: list[SslMedSam2Error] = []
    for unit, result in results:
        if isinstance(result, SslMedSam2Error):
            errors.append(result)
        else:
            found.append((unit, result))
    if len(errors) > 1:
        names = ", ".join(sorted(error.subject for error in errors))
        raise SslMedSam2Error(names, reason=errors[0].reason, remedy=errors[0].remedy)
    if errors:
        raise errors[0]
    return found


class ThisProcess:
    """Processes units here; threads read the next unit and write the last one meanwhile."""

    @contextmanager
    def open(self, work: Work[Any, Any]) -> Iterator[Any]:
        """Set ``work`` up in this process."""
        about = work.set_up()
        try:
            yield about
        finally:
            work.close()

    def map(
        self, work: Work[Unit, Result], units: Sequence[Unit], *, stop: StopRequest
    ) -> Iterator[tuple[Unit, Result | SslMedSam2Error]]:
        """Yield the results in order; an error of a step ends the run."""
        with ThreadPoolExecutor(1, "writer") as writer:
            writing: tuple[Unit, Future[Result]] | None = None
            for unit, loaded in read_ahead(units, lambda unit: (unit, work.load(unit))):
                if stop:
                    break
                computed = work.compute(loaded, stop)
                # Only one write at a time, so that few volumes are in memory.
                if writing is not None:
                    yield writing[0], writing[1].result()
                writing = unit, writer.submit(work.finish, computed)
            if writing is not None:
                yield writing[0], writing[1].result()

    def call(self, function: Callable[..., Returned], *args: Any, **kwargs: Any) -> Returned:
        """Call a function."""
        return function(*args, **kwargs)


def read_ahead(items: Iterable[Item], load: Callable[[Item], Loaded]) -> Iterator[Loaded]:
    """Yield the result of ``load`` for each item, in order; the next one is loaded in a thread.

    Only one is loaded ahead, because each may be large. An error of ``load`` is raised in the turn
    of its item and ends the iteration. ``items`` is iterated in the caller's thread.
    """
    with ThreadPoolExecutor(1, "reader") as reader:
        ahead: Future[Loaded] | None = None
        for item in items:
            current, ahead = ahead, reader.submit(load, item)
            if current is not None:
                yield current.result()
        if ahead is not None:
            yield ahead.result()
