"""How much sooner ``predict`` ends because it reads, prepares and writes beside the network.

The same scans, in turns: as ``predict`` does it, and each step of each scan after the one before.

    python benchmarks/overlap.py --volumes 4 --rounds 3
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import parser, report, require_real_data

from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import Result, ThisProcess, Unit, Work
from sslmedsam2.predict.pipeline import PredictOptions, predict


class OneAfterAnother(ThisProcess):
    """Begins with a scan when the one before is written."""

    def map(
        self, work: Work[Unit, Result], units: Sequence[Unit], *, stop: StopRequest
    ) -> Iterator[tuple[Unit, Result]]:
        for unit in units:
            yield unit, work.finish(work.compute(work.load(unit), stop))


WAYS = {"in turn": OneAfterAnother, "overlapped": ThisProcess}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--volumes", type=int, default=4)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--device", default="cpu")
    options = arguments.parse_args()
    folder = require_real_data("chaos_mr_t2")
    scans = tuple(sorted(folder.glob("*/T2.nii.gz")))[: options.volumes]
    timed: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        for name, executor in WAYS.items():
            timed[name].append(seconds_of(folder, scans, options.device, executor()))
    figures: dict[str, Any] = {
        name: {
            "seconds": round(statistics.median(wall for wall, _ in rounds), 2),
            "processor_seconds": round(statistics.median(cpu for _, cpu in rounds), 2),
        }
        for name, rounds in timed.items()
    }
    ratios = [a[0] / b[0] for a, b in zip(timed["in turn"], timed["overlapped"], strict=True)]
    figures["times as fast"] = {
        "median": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }
    report({"volumes": len(scans), "device": options.device, **figures}, options.json)


def seconds_of(
    folder: Path, scans: tuple[Path, ...], device: str, executor: ThisProcess
) -> tuple[float, float]:
    """Return wall-clock and processor seconds of one run, from loading to the report."""
    with tempfile.TemporaryDirectory() as output:
        wanted = PredictOptions(folder, Path(output), device=device, only=scans)
        start, start_cpu = time.perf_counter(), time.process_time()
        predict(wanted, executor=executor)
        return time.perf_counter() - start, time.process_time() - start_cpu


if __name__ == "__main__":
    main()
