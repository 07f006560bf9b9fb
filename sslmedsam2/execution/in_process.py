"""The runner without a cluster: units one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from sslmedsam2.execution.units import Job, Outcome, Result, Stages, Stop, Unit

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_ahead(items: Iterable[Item], load: Callable[[Item], Loaded]) -> Iterator[Loaded]:
    """Yield what ``load`` makes of each item, in order, with one more being loaded in a thread.

    No more than that: each may fill a good part of the memory. An error of ``load`` is raised in
    its item's turn and ends the iteration; ``items`` is drawn from in the caller's thread.
    """
    with ThreadPoolExecutor(1, "reader") as reader:
        ahead: Future[Loaded] | None = None
        for item in items:
            current, ahead = ahead, reader.submit(load, item)
            if current is not None:
                yield current.result()
        if ahead is not None:
            yield ahead.result()


class InProcessRunner:
    """While one unit computes, the next is read and the last is written, in one thread each."""

    @contextmanager
    def open(self, job: Job[Unit, Result]) -> Iterator[InProcessSession[Unit, Result]]:
        """Set a job up in this process."""
        stages = job.set_up()
        try:
            yield InProcessSession(stages)
        finally:
            stages.close()


class InProcessSession(Generic[Unit, Result]):
    """A job that is set up in this process."""

    def __init__(self, stages: Stages[Unit, Result]) -> None:
        """Take the stages."""
        self._stages = stages
        self.about = stages.about

    def run(self, units: Sequence[Unit], *, stop: Stop) -> Iterator[Outcome[Unit, Result]]:
        """Yield the outcomes in order; what a stage raises ends the run."""
        stages = self._stages
        with ThreadPoolExecutor(1, "writer") as writer:
            writing: tuple[Unit, Future[Result]] | None = None
            for unit, loaded in read_ahead(units, lambda unit: (unit, stages.load(unit))):
                if stop:
                    break
                work = stages.compute(loaded)
                # One write at a time: more would only hold more volumes in memory.
                if writing is not None:
                    yield Outcome(writing[0], writing[1].result())
                writing = unit, writer.submit(stages.finish, work)
            if writing is not None:
                yield Outcome(writing[0], writing[1].result())
