"""Set-up of logging: a rich handler on a terminal, plain lines with time stamps elsewhere."""

from __future__ import annotations

import functools
import json
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


@functools.cache
def terminal_console() -> Console | None:
    """Return the console on standard error, or None where that is not a terminal.

    Log lines and a progress bar have to share one console, or they overwrite each other.
    """
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)


def set_up_logging(*, verbose: bool = False, quiet: bool = False) -> None:
    """Send the project's log to standard error, which leaves standard output to results.

    Calling it again replaces the handler, so a command may refine what the group decided.
    Other libraries log from WARNING on (their DEBUG lines would hide the project's own).
    """
    logging.basicConfig(level=logging.WARNING, handlers=[_handler()], force=True)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.getLogger("sslmedsam2").setLevel(level)
    logging.captureWarnings(True)


class _JsonLines(logging.Formatter):
    """One JSON object for each message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as a line."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return json.dumps({"event": "log", "level": record.levelname.lower(), "message": message})


def set_up_json_lines() -> None:
    """Make every line of the log one JSON object; levels stay as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def write_json_line(**event: object) -> None:
    """Write an object as one line to standard error, beside the lines of the log."""
    print(json.dumps(event), file=sys.stderr, flush=True)  # noqa: T201


def write_error(message: str) -> None:
    """Write the error that ends a command to standard error, in the form of its log."""
    handlers = logging.getLogger().handlers
    if handlers and isinstance(handlers[0].formatter, _JsonLines):
        write_json_line(event="error", message=message)
    else:
        print(f"error: {message}", file=sys.stderr)  # noqa: T201


def _handler() -> logging.Handler:
    console = terminal_console()
    if console is None:
        plain = logging.StreamHandler(sys.stderr)
        plain.setFormatter(logging.Formatter(_PLAIN_FORMAT))
        return plain
    from rich.logging import RichHandler

    handler = RichHandler(console=console, show_path=False, markup=False)
    # Without a format of its own, basicConfig gives it one that repeats level and logger.
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler
