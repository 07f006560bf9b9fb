"""What ``doctor`` finds out, as data: one finding a question, and what they sum up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sslmedsam2.errors import ExitCode


class State(str, Enum):
    """How a finding bears on a run."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes
    ----------
    name
        Short and stable, for programs that read the JSON.
    text
        The answer in words, one line.
    remedy
        What the user can do, if anything should be done.
    details
        The same in numbers and names, ready for JSON.
    """

    name: str
    state: State
    text: str
    remedy: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found, in the order in which it was asked."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What stands in the way of a run."""
        return tuple(f for f in self.findings if f.state is State.PROBLEM)

    @property
    def exit_code(self) -> ExitCode:
        """4 if the model is to blame, 1 for any other problem, else 0."""
        if not self.problems:
            return ExitCode.OK
        blamed = {finding.name for finding in self.problems}
        return ExitCode.MODEL_INVALID if "weights" in blamed else ExitCode.SOME_CASES_FAILED
