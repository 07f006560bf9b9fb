"""Reads mutated inputs one after the other in a limited process, and lists what went wrong.

A finding is an exception outside the project's error family, an accepted image that is not what a
reader promises, a crash, or an input that takes more than `SECONDS` of processor time or
its format's `megabytes` of memory. Input number N of a seed is always the same.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from .formats import FORMATS, BrokenPromiseError, Format

SECONDS = 2.0
_STUCK_SECONDS = 180.0
"""Of wall time, for code that ignores signals."""
_INPUTS_A_PROCESS = 20_000


@dataclass
class Finding:
    """``what`` and ``where`` name a fault; ``index`` is its first input."""

    what: str
    where: str
    index: int
    count: int = 1


@dataclass
class Campaign:
    """What came of the inputs of one format."""

    format: str
    seed: int
    inputs: int = 0
    accepted: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    def add(self, what: str, where: str, index: int) -> None:
        key = f"{what.partition(':')[0]} {where}"
        if key in self.findings:
            self.findings[key].count += 1
        else:
            self.findings[key] = Finding(what, where, index)


class OutOfTimeError(BaseException):
    """Not an ``Exception``: no reader is to catch it."""


def input_of(chosen: Format, seed: int, index: int) -> dict[str, bytes]:
    """Return the files of an input by their names."""
    random = Random(f"{chosen.name}/{seed}/{index}")
    return chosen.mutate(random.choice(chosen.seeds()), random)


def write_input(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_one(chosen: Format, seed: int, index: int, folder: Path) -> tuple[str, str] | bool:
    """Read an input: whether it was accepted, or what went wrong and where."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_input(input_of(chosen, seed, index), folder)
    try:
        with _limited_time():
            chosen.read(folder)
    except chosen.expected:
        return False
    except BrokenPromiseError as error:
        return f"not as promised: {error}", chosen.name
    except OutOfTimeError:
        return f"more than {SECONDS:g} s", _where()
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}", _where()
    return True


def run(
    name: str, *, inputs: int, seed: int, first: int = 0, seconds: float = float("inf")
) -> Campaign:
    """Read ``inputs`` mutated inputs of a format, from number ``first``, in limited processes."""
    chosen, campaign, end = FORMATS[name], Campaign(name, seed), time.monotonic() + seconds
    # Once, before all forks.
    chosen.seeds()
    at, last = first, first + inputs
    while at < last and time.monotonic() < end:
        at = _one_process(chosen, campaign, at, min(last, at + _INPUTS_A_PROCESS), end)
    campaign.inputs = at - first
    return campaign


def _one_process(chosen: Format, campaign: Campaign, first: int, last: int, end: float) -> int:
    """Read inputs in a fork until ``last`` or a crash; return the first that is not read."""
    reader, writer = os.pipe()
    # The child's place: 8 bytes for the current input, 8 for how many were accepted.
    place = mmap.mmap(-1, 16)
    place[:8] = first.to_bytes(8, "little")
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _child(chosen, campaign.seed, range(first, last), end, writer, place)
        finally:
            os._exit(0)
    os.close(writer)
    stuck = _collect(reader, child, place, campaign)
    _, status = os.waitpid(child, 0)
    os.close(reader)
    at = int.from_bytes(place[:8], "little")
    campaign.accepted += int.from_bytes(place[8:], "little")
    if stuck:
        campaign.add(f"ignores signals for {_STUCK_SECONDS:g} s", chosen.name, at)
    elif os.WIFSIGNALED(status):
        campaign.add(f"crash by signal {os.WTERMSIG(status)}", chosen.name, at)
    else:
        return at
    return at + 1


def _child(
    chosen: Format, seed: int, indices: range, end: float, writer: int, place: mmap.mmap
) -> None:
    _limit_memory(chosen.megabytes)
    accepted = 0
    with tempfile.TemporaryDirectory(dir=_fastest_folder()) as scratch, _silenced():
        for index in indices:
            place[:8] = index.to_bytes(8, "little")
            if time.monotonic() > end:
                return
            found = read_one(chosen, seed, index, Path(scratch) / "input")
            if isinstance(found, tuple):
                os.write(writer, json.dumps([*found, index]).encode() + b"\n")
            else:
                accepted += found
            place[8:] = accepted.to_bytes(8, "little")
        place[:8] = indices.stop.to_bytes(8, "little")


def _collect(reader: int, child: int, place: mmap.mmap, campaign: Campaign) -> bool:
    """Take the findings of a child until it ends; kill it and return True if it is stuck."""
    text, last, since = b"", b"", time.monotonic()
    while True:
        ready, _, _ = select.select([reader], [], [], 5.0)
        if ready:
            part = os.read(reader, 65536)
            if not part:
                break
            text += part
        if place[:8] != last:
            last, since = place[:8], time.monotonic()
        elif time.monotonic() - since > _STUCK_SECONDS:
            os.kill(child, signal.SIGKILL)
            return True
    for line in text.splitlines():
        campaign.add(*json.loads(line))
    return False


def _limit_memory(megabytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def _limited_time() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise OutOfTimeError

    former = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


@contextmanager
def _silenced() -> Iterator[None]:
    """Send what C libraries print to nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    yield


def _fastest_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _where() -> str:
    """Return the last two places of the project in the traceback of the current exception."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    own = [one for one in frames if "sslmedsam2" in one.filename] or frames
    return " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(own[-2:]))
