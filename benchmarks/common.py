"""What the benchmarks share: the command line's --json, the machine's class, timed processes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sslmedsam2.weights.manifest import MANIFEST_NAME, read_manifest

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Timed:
    """Wall-clock and processor seconds and the largest resident size of a finished process."""

    seconds: float
    cpu_seconds: float
    peak_memory_mb: float


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser that knows --json."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--json", type=Path, help="write the figures to this file")
    return found


def require_real_data(folder: str) -> Path:
    """Return a folder of the real data, or end with a clear message."""
    path = REAL_DATA / folder
    if not path.is_dir():
        sys.exit(f"{path} is not there: this benchmark needs the real volumes")
    return path


def shipped_checkpoints() -> dict[str, str]:
    """Return the SHA-256 of the liver model's checkpoints: which weights figures are of."""
    entry = read_manifest(ROOT / "weights" / MANIFEST_NAME).entry("liver")
    assert entry is not None
    return entry.checkpoints


def machine() -> dict[str, Any]:
    """Describe the class of machine, without naming it."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def run(command: Sequence[str], *, env: dict[str, str] | None = None) -> Timed:
    """Run a command to its end; its output is shown only if it fails."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{output.decode()}")
    return Timed(seconds, usage.ru_utime + usage.ru_stime, _megabytes(usage))


def _megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss * 1024 / 1e6


def report(figures: dict[str, Any], path: Path | None) -> None:
    """Print the figures, and write them with date and machine where asked to."""
    document = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        **figures,
    }
    text = json.dumps(document, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
