"""From the value of ``--cluster`` to a runner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sslmedsam2.running.cluster_spec import parse_cluster
from sslmedsam2.running.in_process import InProcessRunner
from sslmedsam2.running.job import Runner
from sslmedsam2.running.progress import OnProgress


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
    from sslmedsam2.running.dask_cluster import connected
    from sslmedsam2.running.dask_runner import DaskRunner

    with connected(spec) as client:
        yield DaskRunner(client, on_progress=on_progress)
