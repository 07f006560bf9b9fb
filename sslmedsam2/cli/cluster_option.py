"""The option ``--cluster``, and the executor that it selects."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sslmedsam2.execution.dask_cluster import connected, parse_cluster
from sslmedsam2.execution.units import Executor, ThisProcess

if TYPE_CHECKING:
    from sslmedsam2.execution.dask_executor import Progress

_LOG = logging.getLogger(__name__)

_EVERY_S: Final = 15.0

cluster_option = click.option(
    "--cluster",
    default="none",
    help="Where to compute: none (this process), local or local:4 (worker processes), "
    "tcp://HOST:PORT (Dask scheduler), FILE.yaml (batch system).",
)


@contextmanager
def open_executor(cluster: str) -> Iterator[Executor]:
    """Give the executor that ``--cluster`` asks for; its cluster ends with the context.

    Raises UsageError: the value is of no known form, packages are missing, or no scheduler answers.
    """
    spec = parse_cluster(cluster)
    if spec is None:
        yield ThisProcess()
        return
    with connected(spec) as client:
        from sslmedsam2.execution.dask_executor import DaskExecutor

        yield DaskExecutor(client, on_progress=_ProgressPrinter())


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
