"""Exceptions with subject, reason and remedy, and exit codes.

Every error that a user can meet has a *subject* (a file, a case, an option), a *reason* and a
*remedy*, and prints as one line. Each class has the exit code of a command that ends with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

logger = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """Exit codes of commands."""

    OK = 0
    SOME_CASES_FAILED = 1
    USAGE = 2
    NO_VALID_INPUT = 3
    MODEL_INVALID = 4
    INTERRUPTED = 130


class SslMedSam2Error(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    subject
        What the error is about: a path, a case name or an option.
    reason
        What is wrong, as one clause without a trailing full stop.
    remedy
        What the user can do about it, likewise.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.SOME_CASES_FAILED

    def __init__(self, subject: object, *, reason: str, remedy: str) -> None:
        self.subject = str(subject)
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{self.subject}: {reason}. {remedy}.")

    def about(self, subject: object) -> SslMedSam2Error:
        """Return the same error with ``subject`` in front of its own."""
        return self._changed(subject=f"{subject}, {self.subject}")

    def reworded(self, change: Callable[[str], str]) -> SslMedSam2Error:
        """Return the same error with another subject and reason."""
        return self._changed(subject=change(self.subject), reason=change(self.reason))

    def _changed(self, **parts: str) -> SslMedSam2Error:
        known = {**self.__dict__, **parts}
        message = f"{known['subject']}: {known['reason']}. {known['remedy']}."
        return _remade(type(self), message, known)

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling: by default only the message of an exception is restored."""
        return _remade, (type(self), str(self), self.__dict__)


def _remade(
    kind: type[SslMedSam2Error], message: str, attributes: dict[str, Any]
) -> SslMedSam2Error:
    error = kind.__new__(kind, message)
    error.__dict__.update(attributes)
    return error


class InputError(SslMedSam2Error):
    """One input file cannot be used. ``kind`` is a short stable name for reports and tests."""

    def __init__(self, subject: object, *, kind: str, reason: str, remedy: str) -> None:
        self.kind = kind
        super().__init__(subject, reason=reason, remedy=remedy)


class OutputError(SslMedSam2Error):
    """A result could not be written, or differs when it is read back."""


class UsageError(SslMedSam2Error):
    """An option or a combination of options is not valid."""

    exit_code = ExitCode.USAGE


def missing_packages(feature: str, *packages: str) -> UsageError:
    """Return the error of a feature whose optional packages are not all installed."""
    return UsageError(
        feature,
        reason=f"it needs packages that are not installed ({', '.join(packages)})",
        remedy=f"Run: pip install {' '.join(packages)}",
    )


class NoInputError(SslMedSam2Error):
    """Nothing in the input folder can be used."""

    exit_code = ExitCode.NO_VALID_INPUT


class ModelError(SslMedSam2Error):
    """A model folder is missing, incomplete, altered or of a kind that is not supported."""

    exit_code = ExitCode.MODEL_INVALID


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, at most 200 characters, or its class without text.

    Messages of CUDA can have ten lines.
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def described(error: Exception) -> str:
    """Return class and text of an error on one line, at most about 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200] or 'no details'}"


def unforeseen(path: Path, error: Exception) -> SslMedSam2Error:
    """Wrap an exception raised for ``path``; its traceback goes to the debug log.

    An `SslMedSam2Error` is returned unchanged.
    """
    if isinstance(error, SslMedSam2Error):
        return error
    logger.debug("unforeseen error", exc_info=error)
    return SslMedSam2Error(
        path,
        reason=f"an unforeseen error: {described(error)}",
        remedy="Run again with --verbose and report the traceback",
    )
