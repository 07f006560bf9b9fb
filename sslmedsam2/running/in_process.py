"""The runner without a cluster: units one after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic

from sslmedsam2.running.job import Job, Outcome, Result, Stages, Stop, Unit
from sslmedsam2.running.read_ahead import read_ahead


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
