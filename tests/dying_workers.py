"""A local cluster that loses a worker while it works."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sslmedsam2.execution.dask_cluster import LocalSpec, connected
from sslmedsam2.execution.dask_executor import DaskExecutor

_TICK_S = 0.02


@contextmanager
def two_workers_one_of_which_dies(
    *, once: Callable[[], Any]
) -> Iterator[tuple[DaskExecutor, threading.Event]]:
    """Yield a executor, one of whose processes is killed by its pid as soon as ``once()`` is true.

    The event is set when that has happened.
    """
    died, over = threading.Event(), threading.Event()

    def kill(pid: int) -> None:
        while not over.is_set():
            if once():
                os.kill(pid, signal.SIGKILL)
                died.set()
                return
            time.sleep(_TICK_S)

    with connected(LocalSpec(2)) as client:
        client.wait_for_workers(2)
        pids = client.run(os.getpid)
        killer = threading.Thread(target=kill, args=(pids[min(pids)],))
        killer.start()
        try:
            yield DaskExecutor(client), died
        finally:
            over.set()
            killer.join()
