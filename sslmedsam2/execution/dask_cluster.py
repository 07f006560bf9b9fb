"""Dask clusters for ``--cluster``: local workers, a running scheduler, or batch jobs."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sslmedsam2.errors import UsageError, missing_packages

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

GPU: Final = "GPU"
"""The Dask resource that a worker has as many of as it has GPUs."""

UNITS_AT_ONCE: Final = 3
"""In one worker: one computes, one is read, one is written."""

DEATHS_ALLOWED: Final = 2
"""How many workers a unit may take down before the scheduler gives it up."""

PROCESSORS_VARIABLE: Final = "SSLMEDSAM2_WORKER_PROCESSORS"
"""Which processors a local worker keeps to, as ``0,1``. Numerical libraries count those that they
may run on, so this has to be obeyed before the first of them is loaded."""

QUEUES: Final = ("slurm", "pbs", "lsf")
_KEYS: Final = ("queue", "jobs", "gpus", "options")
_WORKER_LOG: Final = {"distributed": "warning", "distributed.worker": "critical"}
"""Units that fail are logged where the command runs."""

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class LocalSpec:
    """Worker processes on this machine; None for one a GPU, or one where there is none."""

    workers: int | None = None


@dataclass(frozen=True)
class AddressSpec:
    """A scheduler that somebody else runs."""

    address: str


@dataclass(frozen=True)
class QueueSpec:
    """Workers that a batch system starts as jobs.

    Attributes
    ----------
    queue
        One of ``QUEUES``.
    jobs
        How many, each one worker.
    gpus
        Of one job.
    options
        For dask-jobqueue's cluster class of that queue, as they stand.
    """

    queue: str
    jobs: int
    gpus: int = 0
    options: dict[str, Any] = field(default_factory=dict)


ClusterSpec = LocalSpec | AddressSpec | QueueSpec


def parse_cluster(text: str) -> ClusterSpec | None:
    """Read the value of ``--cluster``; None for ``none``.

    Raises UsageError: it is of no known form, or the file cannot be used.
    """
    if text == "none":
        return None
    kind, colon, rest = text.partition(":")
    if kind == "local" and not colon:
        return LocalSpec()
    if kind == "local" and rest.isdecimal() and int(rest) > 0:
        return LocalSpec(int(rest))
    if kind in ("tcp", "tls", "ws", "wss") and rest.startswith("//"):
        return AddressSpec(text)
    if text.endswith((".yaml", ".yml")):
        return _read_queue_spec(Path(text))
    raise UsageError(
        f"--cluster {text}",
        reason="it is of no known form",
        remedy="Write none, local, local:4, tcp://HOST:PORT or a file FILE.yaml",
    )


def _read_queue_spec(path: Path) -> QueueSpec:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise missing_packages("--cluster", "distributed", "dask-jobqueue", "bokeh") from error
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        fault = _fault_of(content)
    except (OSError, ValueError, yaml.YAMLError) as error:
        fault = f"it cannot be read ({' '.join(str(error).split())})"
    if fault:
        raise UsageError(path, reason=fault, remedy="Compare it with the guide's page on clusters")
    jobs, gpus = content.get("jobs", 1), content.get("gpus", 0)
    return QueueSpec(content["queue"], jobs, gpus, content["options"])


def _fault_of(content: Any) -> str | None:
    """Return what is wrong with the content of a file; None if nothing is."""
    if not isinstance(content, dict):
        return "it holds no table"
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        return f"key {unknown[0]!r} is not known"
    if content.get("queue") not in QUEUES:
        return f"'queue' is not one of {', '.join(QUEUES)}"
    jobs, gpus, options = content.get("jobs", 1), content.get("gpus", 0), content.get("options")
    if type(jobs) is not int or type(gpus) is not int or jobs < 1 or gpus < 0:
        return "'jobs' and 'gpus' must be whole numbers"
    if not isinstance(options, dict) or not {"cores", "memory"} <= set(options):
        return "'options' must hold at least 'cores' and 'memory'"
    return None


@contextmanager
def connected(spec: ClusterSpec, *, connect_timeout_s: float = 30) -> Iterator[Client]:
    """Start a cluster, or join one, for as long as the context lasts.

    Raises UsageError: the packages are missing, there is no scheduler at the address, or the batch
    system's options are wrong.
    """
    try:
        import dask

        # Read when it is imported.
        with dask.config.set({"logging.distributed": "warning"}):
            from distributed import Client
    except ModuleNotFoundError as error:
        raise missing_packages("--cluster", "distributed", "dask-jobqueue", "bokeh") from error
    settings = {
        # nnU-Net's trainer starts processes of its own on a GPU, which a daemon may not.
        "distributed.worker.daemon": False,
        # The profiler samples all threads a hundred times a second, and its results are not used.
        "distributed.worker.profile.enabled": False,
        "distributed.scheduler.allowed-failures": DEATHS_ALLOWED,
        # In place of Dask's own, which would give this process, too, one numerical thread.
        "distributed.nanny.pre-spawn-environ": {"DASK_LOGGING": str(_WORKER_LOG)},
    }
    with dask.config.set(settings):
        cluster = _start(spec)
        try:
            address = spec.address if isinstance(spec, AddressSpec) else cluster
            try:
                client = Client(address, timeout=connect_timeout_s, set_as_default=False)
            except (OSError, ValueError) as error:
                raise UsageError(
                    f"--cluster {address}",
                    reason=f"no scheduler answers there ({' '.join(str(error).split())})",
                    remedy="Start 'dask scheduler' and see that its port can be reached",
                ) from error
            with client:
                logger.info("Dask's dashboard: %s", client.dashboard_link)
                yield client
        finally:
            if cluster is not None:
                _close(cluster)


def _close(cluster: Any) -> None:
    """Close a cluster. Workers that end late, on a loaded machine, do not fail a finished run."""
    try:
        cluster.close()
    # The second is another class before Python 3.11.
    except (TimeoutError, asyncio.TimeoutError):
        logger.warning("the workers of the cluster did not confirm in time that they ended")


def _start(spec: ClusterSpec) -> Any:
    if isinstance(spec, LocalSpec):
        return _local(spec)
    if isinstance(spec, QueueSpec):
        cluster = queue_cluster(spec)
        cluster.scale(jobs=spec.jobs)
        return cluster
    return None


def _local(spec: LocalSpec) -> Any:
    """Start workers that share out the machine's GPUs, or its processors."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = _visible_gpus()
    count = spec.workers or len(gpus) or 1
    common = {
        "nthreads": UNITS_AT_ONCE,
        "host": "127.0.0.1",
        # Dask holds none of what fills the memory, so it could not spill any of it.
        "memory_limit": 0,
        "dashboard": False,
    }
    workers = {
        number: {"cls": Nanny, "options": common | _share(number, count, gpus)}
        for number in range(count)
    }
    options = {
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
        "allowed_failures": DEATHS_ALLOWED,
    }
    scheduler = {"cls": Scheduler, "options": options}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR)


def _share(number: int, count: int, gpus: list[str]) -> dict[str, Any]:
    """Return the environment and resources of one of the local workers.

    Workers beyond the number of GPUs share one.
    """
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    # Where there are more workers than processors, they share.
    mine = processors[number::count] or processors[number % max(len(processors), 1) :][:1]
    environment = {name: str(max(len(mine), 1)) for name in _THREAD_VARIABLES}
    if mine:
        environment[PROCESSORS_VARIABLE] = ",".join(map(str, mine))
    if not gpus:
        return {"env": environment}
    environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return {"env": environment, "resources": {GPU: 1}}


def _visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA names them, without loading CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name and name != "-1"]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


def queue_cluster(spec: QueueSpec) -> Any:
    """Return a cluster whose workers are jobs of a batch system; none is submitted yet.

    Raises UsageError: dask-jobqueue is missing or does not take the options.
    """
    try:
        from dask_jobqueue import LSFCluster, PBSCluster, SLURMCluster
    except ModuleNotFoundError as error:
        raise missing_packages("--cluster", "distributed", "dask-jobqueue", "bokeh") from error
    kinds = {"slurm": SLURMCluster, "pbs": PBSCluster, "lsf": LSFCluster}
    try:
        return kinds[spec.queue](**_queue_options(spec))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"'options' for {spec.queue}",
            reason=f"dask-jobqueue does not take them ({' '.join(str(error).split())})",
            remedy="Compare them with dask-jobqueue's own documentation",
        ) from error


def _queue_options(spec: QueueSpec) -> dict[str, Any]:
    """Complete the user's options: one worker a job, its threads and GPUs announced."""
    given = dict(spec.options)
    announced = ["--nthreads", str(UNITS_AT_ONCE)]
    if spec.gpus:
        announced += ["--resources", f"{GPU}={spec.gpus}"]
    threads = {name: str(given["cores"]) for name in _THREAD_VARIABLES}
    prologue = [
        # Dask gives its workers one numerical thread and makes them daemons, which suits neither
        # networks nor nnU-Net's trainer.
        f'export DASK_DISTRIBUTED__NANNY__ENVIRON="{threads}"',
        "export DASK_DISTRIBUTED__WORKER__DAEMON=False",
        "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE=False",
    ]
    return {
        "processes": 1,
        **given,
        "worker_extra_args": [*given.get("worker_extra_args", []), *announced],
        "job_script_prologue": [*prologue, *given.get("job_script_prologue", [])],
    }
