"""What ``--cluster`` says, before anything of Dask is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sslmedsam2.errors import UsageError

QUEUES: Final = ("slurm", "pbs", "lsf")
_KEYS: Final = ("queue", "jobs", "gpus", "options")
_REMEDY: Final = "Write none, local, local:4, tcp://HOST:PORT or a file FILE.yaml"


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

    Raises
    ------
    UsageError
        It is of no known form, or the file cannot be used.
    """
    if text == "none":
        return None
    kind, _, rest = text.partition(":")
    if kind == "local":
        return LocalSpec(_number(rest, text) if _ else None)
    if kind in ("tcp", "tls", "ws", "wss") and rest.startswith("//"):
        return AddressSpec(text)
    if text.endswith((".yaml", ".yml")):
        return read_queue_spec(Path(text))
    raise UsageError(f"--cluster {text}", reason="it is of no known form", remedy=_REMEDY)


def _number(text: str, whole: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(
        f"--cluster {whole}", reason="there must be a number from 1", remedy="Write local:4"
    )


def read_queue_spec(path: Path) -> QueueSpec:
    """Read a file for a batch system.

    Raises
    ------
    UsageError
        It cannot be read, or a key is missing, unknown or of the wrong kind.
    """
    content = _load_yaml(path)
    if not isinstance(content, dict):
        raise _wrong(path, "it holds no table")
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise _wrong(path, f"key {unknown[0]!r} is not known")
    if content.get("queue") not in QUEUES:
        raise _wrong(path, f"'queue' is not one of {', '.join(QUEUES)}")
    jobs, gpus, options = content.get("jobs", 1), content.get("gpus", 0), content.get("options")
    if not _is_count(jobs, least=1) or not _is_count(gpus, least=0):
        raise _wrong(path, "'jobs' and 'gpus' must be whole numbers")
    if not isinstance(options, dict) or not {"cores", "memory"} <= set(options):
        raise _wrong(path, "'options' must hold at least 'cores' and 'memory'")
    return QueueSpec(content["queue"], jobs, gpus, options)


def _load_yaml(path: Path) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise missing_packages() from error
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _wrong(path, f"it cannot be read ({' '.join(str(error).split())})") from error


def missing_packages() -> UsageError:
    """Say what ``--cluster`` needs."""
    return UsageError(
        "--cluster",
        reason="the packages for clusters are not installed",
        remedy="Install them with: pip install 'sslmedsam2[cluster]'",
    )


def _is_count(value: Any, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _wrong(path: Path, reason: str) -> UsageError:
    return UsageError(path, reason=reason, remedy="Compare it with the guide's page on clusters")
