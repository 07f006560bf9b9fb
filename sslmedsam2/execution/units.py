"""What a run is made of: a job, its stages, its units and what comes of each.

A job says how the units of one run are done. It travels to workers as a pickle, so it holds paths
and settings and never a network or an image; what is heavy is made by :meth:`Job.set_up`, once in
each process that works.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from sslmedsam2.errors import SslMedSam2Error

Unit = TypeVar("Unit")
Result = TypeVar("Result")
UnitIn = TypeVar("UnitIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)

Claim = Literal["share", "whole"]
"""``share``: while one unit computes, a worker reads the next and writes the last. ``whole``: a
worker has one unit in hand."""


class Stages(Protocol[UnitIn, ResultOut]):
    """How one unit is done, in three steps that overlap between units.

    ``load`` runs in a thread beside the network, ``compute`` always in one and the same thread,
    ``finish`` in a third. Each takes the former one's result.

    Attributes
    ----------
    about
        What the results depend on besides the job, such as the device. A worker whose set-up says
        anything else takes no part, so that all results of a run are made in one way.
    """

    @property
    def about(self) -> Any:
        """See above."""

    def load(self, unit: UnitIn) -> Any:
        """Read what the unit needs."""

    def compute(self, loaded: Any) -> Any:
        """Run the network."""

    def finish(self, computed: Any) -> ResultOut:
        """Write what there is, and return what is to be known of it; small, no arrays."""

    def close(self) -> None:
        """Let go of what was set up."""


class Job(Protocol[UnitIn, ResultOut]):
    """A kind of unit, and what doing one takes; picklable and small.

    Attributes
    ----------
    claim
        How much of a worker one unit takes.
    wants_gpu
        Whether a unit takes a GPU where workers have one.
    shared_dir
        The folder that results go to; workers must see the very same one.
    """

    @property
    def claim(self) -> Claim:
        """See above."""

    @property
    def wants_gpu(self) -> bool:
        """See above."""

    @property
    def shared_dir(self) -> Path:
        """See above."""

    def name_of(self, unit: UnitIn) -> str:
        """Return what messages call a unit."""

    def files_of(self, unit: UnitIn) -> Sequence[Path]:
        """Return what a worker has to see before it begins with a unit."""

    def set_up(self) -> Stages[UnitIn, ResultOut]:
        """Load what all units share; runs once in each process that works."""


@dataclass(frozen=True)
class Outcome(Generic[Unit, Result]):
    """A unit with its result, or with the error that prevented it."""

    unit: Unit
    result: Result | None
    error: SslMedSam2Error | None = None


class Stop(Protocol):
    """Truthy once the run shall end."""

    def __bool__(self) -> bool:
        """Tell whether a stop was asked for."""


class Session(Protocol[Unit, Result]):
    """A job that is set up; ``about`` is that of its stages."""

    @property
    def about(self) -> Any:
        """See above."""

    def run(self, units: Sequence[Unit], *, stop: Stop) -> Iterator[Outcome[Unit, Result]]:
        """Yield each unit's outcome as it comes, in any order, until done or stopped."""


class Runner(Protocol):
    """Does the units of jobs."""

    def open(self, job: Job[Unit, Result]) -> AbstractContextManager[Session[Unit, Result]]:
        """Set a job up and be ready for its units; raises what its set-up raises."""


def all_or_error(outcomes: Iterable[Outcome[Unit, Result]]) -> list[tuple[Unit, Result]]:
    """Wait for all units, then return the results, or raise what went wrong first.

    Raises
    ------
    SslMedSam2Error
        A unit has failed; the others are done and will not be done again.
    """
    found: list[tuple[Unit, Result]] = []
    errors: list[SslMedSam2Error] = []
    for outcome in outcomes:
        if outcome.error is not None:
            errors.append(outcome.error)
        else:
            found.append((outcome.unit, outcome.result))  # type: ignore[arg-type]
    if len(errors) > 1:
        names = ", ".join(sorted(error.subject for error in errors))
        raise SslMedSam2Error(names, reason=errors[0].reason, remedy=errors[0].remedy)
    if errors:
        raise errors[0]
    return found
