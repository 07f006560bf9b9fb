"""The option ``--cluster``, and what a command does with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sslmedsam2.execution.dask_cluster import parse_cluster
from sslmedsam2.execution.in_process import InProcessRunner
from sslmedsam2.execution.progress import OnProgress
from sslmedsam2.execution.units import Runner

if TYPE_CHECKING:
    from sslmedsam2.execution.progress import Progress


@contextmanager
def open_runner(cluster: str, *, on_progress: OnProgress | None = None) -> Iterator[Runner]:
    """Give the runner that ``--cluster`` asks for; its cluster ends with the context.

    Raises
    ------
    UsageError
        The value is of no known form, packages are missing, or no scheduler answers.
    """
    spec = parse_cluster(cluster)
    if spec is None:
        yield InProcessRunner()
        return
    from sslmedsam2.execution.dask_cluster import connected
    from sslmedsam2.execution.dask_executor import DaskRunner

    with connected(spec) as client:
        yield DaskRunner(client, on_progress=on_progress)


_LOG = logging.getLogger(__name__)

_EVERY_S: Final = 15.0

cluster_option = click.option(
    "--cluster",
    default="none",
    show_default=True,
    help="Where to compute: none (this process), local or local:4 (worker processes), "
    "tcp://HOST:PORT (Dask scheduler), FILE.yaml (batch system).",
)


@contextmanager
def chosen_runner(cluster: str) -> Iterator[Runner]:
    """Give the runner, whose progress is logged now and then; raises UsageError."""

    with open_runner(cluster, on_progress=_ProgressPrinter()) as runner:
        yield runner


def for_cluster(cluster: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return options whose paths mean the same wherever a worker stands."""
    if cluster == "none":
        return options
    return {k: v.absolute() if isinstance(v, Path) else v for k, v in options.items()}


class _ProgressPrinter:
    """Logs the progress, but no line a second."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        is_end = progress.done + progress.failed == progress.total
        if is_end or time.monotonic() - self._last >= _EVERY_S:
            self._last = time.monotonic()
            _LOG.info("cluster: %s", progress)
