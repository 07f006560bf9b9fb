"""Limits that the machine or the container sets for this process, and how to respect them.

Each numerical library starts one thread for each processor, and none of them reads the limit on
processes of a container: on a large host, importing them exceeds a limit of 128. No single setting
applies to all libraries, but all count the processors that the process may run on. So these are
limited once, before any library is loaded.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")
_MEMORY_LIMITS: Final = ("memory.max", "memory.limit_in_bytes")
_MEMORY_USED: Final = ("memory.current", "memory.usage_in_bytes")
_UNLIMITED_BYTES: Final = 1 << 60
"""Above this, version 1 of the control groups means that there is no limit."""

_SCANT_MEMORY_BYTES: Final = 10**9
"""With less memory than this, `predict` may fail on a scan of ordinary size."""

_THREADS_PER_PROCESSOR: Final = 4
"""Of OpenVINO, torch, and the OpenBLAS libraries of numpy and scipy."""

_OTHER_THREADS: Final = 32
"""Threads of reader, writer and GPU driver, and other processes in the container."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's ``mallopt``."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of the control groups; None for no limit, or if it cannot be read.

    Attributes
    ----------
    processors
        Processor time, in processors; may be a fraction.
    memory_bytes, memory_used_bytes
        Of all processes in the container together.
    processes, processes_used
        Likewise; threads count too.
    """

    processors: float | None
    memory_bytes: int | None
    memory_used_bytes: int | None
    processes: int | None
    processes_used: int | None


def read_limits(*, cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> Limits:
    """Read the limits of this process from version 1 or 2 of the control groups."""
    folders = {
        controller: list(_folders(controller, cgroups=cgroups, own_cgroup=own_cgroup))
        for controller in ("cpu", "memory", "pids")
    }
    memory = [_number(f / n) for f in folders["memory"] for n in _MEMORY_LIMITS]
    memory_limits = (value for value in memory if value is not None and value < _UNLIMITED_BYTES)
    processors = (_processors(folder) for folder in folders["cpu"])
    processes = (_number(folder / "pids.max") for folder in folders["pids"])
    return Limits(
        processors=min((value for value in processors if value is not None), default=None),
        memory_bytes=min(memory_limits, default=None),
        memory_used_bytes=_first(folders["memory"], _MEMORY_USED),
        processes=min((value for value in processes if value is not None), default=None),
        processes_used=_first(folders["pids"], ("pids.current",)),
    )


def usable_processors(limits: Limits, *, allowed: int) -> int:
    """Return how many of the ``allowed`` processors can be used within the limits.

    >>> usable_processors(Limits(None, None, None, 128, 3), allowed=64)
    24
    """
    bounds: list[int] = [allowed]
    if limits.processors is not None:
        bounds.append(math.ceil(limits.processors))
    if limits.processes is not None:
        bounds.append((limits.processes - _OTHER_THREADS) // _THREADS_PER_PROCESSOR)
    return max(1, min(bounds))


def processor_count() -> int:
    """Return the number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_container() -> bool:
    """Return whether this is the challenge's container: both of its folders exist."""
    return Path("/input").is_dir() and Path("/output").is_dir()


def keep_to_limits() -> None:
    """Restrict the process to `usable_processors`; call it before any library is loaded.

    The processors are chosen at random, so that several containers do not all use the same ones.
    Nothing is done on systems where a process cannot choose its processors. A low limit on memory
    is logged, because the system kills a process that exceeds it without a message.
    """
    limits = read_limits()
    if limits.memory_bytes is not None and limits.memory_bytes < _SCANT_MEMORY_BYTES:
        logger.warning(
            "the container may use %d MB of memory: if the run ends without a message (exit code"
            " 137), that was too little. Give it 2 GB: --memory 2g",
            limits.memory_bytes // 10**6,
        )
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0)
    usable = usable_processors(limits, allowed=len(allowed))
    if usable < len(allowed):
        os.sched_setaffinity(0, random.sample(sorted(allowed), usable))
        logger.info("using %d of %d processors, as the limits ask", usable, len(allowed))


def keep_freed_memory() -> None:
    """Let glibc keep freed memory of this process for reuse; other C libraries are not changed.

    Otherwise glibc returns the large activations of each step to the system, which clears them page
    by page for the next step: a quarter of the time of an iteration.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _folders(controller: str, *, cgroups: Path, own_cgroup: Path) -> Iterator[Path]:
    """Yield the folders that may hold the limits of this process, the innermost first.

    Inside a container the path in ``own_cgroup`` is often that of the host and does not exist; the
    group of the container then lies at the root.
    """
    try:
        lines = own_cgroup.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        inner = root / path.strip("/")
        for folder in (inner, *inner.parents):
            if folder.is_dir():
                yield folder
            if folder == root:
                break


def _processors(folder: Path) -> float | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    if quota is None:
        quota, period = (_number(folder / "cpu.max", word=index) for index in (0, 1))
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return quota / period


def _number(path: Path, *, word: int = 0) -> int | None:
    """Return a number that a file holds; None for ``max``, or where there is no such file."""
    try:
        return int(path.read_text(encoding="utf-8").split()[word])
    except (OSError, ValueError, IndexError):
        return None


def _first(folders: list[Path], names: tuple[str, ...]) -> int | None:
    numbers = (_number(folder / name) for folder in folders for name in names)
    return next((number for number in numbers if number is not None), None)
