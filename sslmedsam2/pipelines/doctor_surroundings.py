"""What ``doctor`` asks about the machine or container: processors, memory, processes, folders."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from sslmedsam2 import __version__
from sslmedsam2.pipelines.doctor_findings import Finding, State
from sslmedsam2.pipelines.host import Limits

_NEEDED_MEMORY_GB: Final = 1.5
"""The largest scans of the challenge take 1.0 GB; see benchmarks/RESULTS.md."""

_NEEDED_PROCESSES: Final = 40
_NEEDED_TEMPORARY_MB: Final = 16
_SHARED_MEMORY: Final = Path("/dev/shm")


def ask_program() -> Finding:
    """Which version runs, on which Python, as which user."""
    user = f"{os.getuid()}:{os.getgid()}"
    text = (
        f"sslmedsam2 {__version__}, Python {platform.python_version()},"
        f" {platform.system()} {platform.machine()}, user {user}"
    )
    details = {"version": __version__, "python": sys.version.split()[0], "user": user}
    return Finding("program", State.OK, text, details=details)


def ask_processors(limits: Limits) -> Finding:
    """On how many processors the run computes."""
    used, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = "" if limits.processors is None else f", a limit of {limits.processors:g}"
    return Finding(
        "processors",
        State.OK,
        f"{used} of {present}{quota}",
        details={"used": used, "present": present, "limit": limits.processors},
    )


def ask_memory(limits: Limits) -> Finding:
    """How much memory is left, to the container or else on the machine."""
    available = _available_on_machine()
    if limits.memory_bytes is not None:
        # What the kernel counts as used includes file caches that it gives up on demand, so a
        # container is judged by its limit.
        available = min(available, limits.memory_bytes)
    limit = "no limit" if limits.memory_bytes is None else f"limit {_gb(limits.memory_bytes):.1f}"
    enough = _gb(available) >= _NEEDED_MEMORY_GB
    return Finding(
        "memory",
        State.OK if enough else State.PROBLEM,
        f"{_gb(available):.1f} GB available, {limit}",
        None if enough else f"Give it {_NEEDED_MEMORY_GB} GB: --memory 2g",
        {
            "available_bytes": available,
            "limit_bytes": limits.memory_bytes,
            "used_bytes": limits.memory_used_bytes,
        },
    )


def ask_processes(limits: Limits) -> Finding:
    """How many processes and threads the container may have."""
    details = {"limit": limits.processes, "used": limits.processes_used}
    if limits.processes is None:
        return Finding("processes", State.OK, "no limit", details=details)
    enough = limits.processes - (limits.processes_used or 0) >= _NEEDED_PROCESSES
    return Finding(
        "processes",
        State.OK if enough else State.PROBLEM,
        f"{limits.processes_used} of {limits.processes}",
        None if enough else "Allow more: --pids-limit 128",
        details,
    )


def ask_shared_memory(folder: Path = _SHARED_MEMORY) -> Finding:
    """How large ``/dev/shm`` is; nothing here needs it."""
    if not folder.is_dir():
        return Finding("shared_memory", State.OK, f"no {folder}; none is needed")
    size = shutil.disk_usage(folder).total
    text = f"{size / 1e6:.0f} MB in {folder}; none is needed"
    return Finding("shared_memory", State.OK, text, details={"bytes": size})


def ask_temporary_folder() -> Finding:
    """Whether libraries have a folder for their caches."""
    remedy = "Mount one: --tmpfs /tmp"
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Finding("temporary", State.PROBLEM, "no writable folder for caches", remedy)
    free = shutil.disk_usage(folder).free
    enough = free >= _NEEDED_TEMPORARY_MB * 1_000_000
    return Finding(
        "temporary",
        State.OK if enough else State.PROBLEM,
        f"{folder}, {free / 1e6:.0f} MB free",
        None if enough else remedy,
        {"path": str(folder), "free_bytes": free},
    )


def ask_input(path: Path) -> Finding:
    """Whether the input can be listed; that it is not there is worth a note only."""
    details = {"path": str(path)}
    try:
        entries = sum(1 for _ in path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return Finding("input", State.NOTE, f"there is no folder {path}", None, details)
    except OSError as error:
        return Finding(
            "input",
            State.PROBLEM,
            f"{path} cannot be listed ({error.strerror})",
            "Make it readable for the user that runs the program",
            details,
        )
    return Finding("input", State.OK, f"{path}, {entries} entries", None, details)


def ask_output(folder: Path) -> Finding:
    """Whether the output folder can be written; that it is not there is worth a note only."""
    details = {"path": str(folder)}
    if not folder.exists():
        return Finding("output", State.NOTE, f"there is no folder {folder}", None, details)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-"):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(
            "output",
            State.PROBLEM,
            f"{folder} cannot be written ({error.strerror})",
            'Make it writable for this user, or start with --user "$(id -u):$(id -g)"',
            details,
        )
    text = f"{folder} is writable, {_gb(free):.0f} GB free"
    return Finding("output", State.OK, text, None, details | {"free_bytes": free})


def _available_on_machine() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise OSError("/proc/meminfo does not say how much memory is available")


def _gb(n_bytes: float) -> float:
    return n_bytes / 1e9
