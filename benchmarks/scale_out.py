"""What sharing out costs and gains: ``predict`` with ``--cluster``, and the scheduler alone.

    python benchmarks/scale_out.py [--json FILE] [--rounds 3] [--part real|simulated]

real: the real T2 volumes, in this process and on 1 and 2 local workers in turn. Times are of the
volumes alone, from the first mask's file to the last one's, so that start-up, which is stated
apart, does not hide the cost of handing units out. simulated: 10,000 units that take as long as
recorded ones do, a hundred times quicker, on local workers that only sleep. All of them share this
machine's cores with the scheduler; what the process with scheduler and client itself computes is
therefore stated, and how many workers it could keep busy on a core of its own.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import parser, report, require_real_data

from sslmedsam2.cli.cluster_option import open_executor
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.execution.units import Work
from sslmedsam2.predict.pipeline import PredictOptions, predict
from sslmedsam2.retrain.estimate import UnitCosts

CLUSTERS = ("none", "local:1", "local:2")
UNITS = 10_000
QUICKER = 100
SLEEPERS = 32


@dataclass(frozen=True)
class RunTimes:
    """Seconds until the first mask is written, and from there to the last."""

    until_first: float
    first_to_last: float


def predicted(cluster: str, data: Path) -> RunTimes:
    """Predict all volumes of a folder."""
    start = time.time()
    with tempfile.TemporaryDirectory() as output, open_executor(cluster) as executor:
        options = PredictOptions(data, Path(output), sequences=("T2",), device="cpu")
        predict(options, executor=executor)
        written = sorted(path.stat().st_mtime for path in Path(output).rglob("*.nii.gz"))
    return RunTimes(written[0] - start, written[-1] - written[0])


def real(rounds: int) -> dict[str, Any]:
    """Measure each way in turn, so that what else the machine does meets all alike."""
    data = require_real_data("chaos_mr_t2")
    times: dict[str, list[RunTimes]] = {cluster: [] for cluster in CLUSTERS}
    for _ in range(rounds):
        for cluster in CLUSTERS:
            times[cluster].append(predicted(cluster, data))
    median = {
        cluster: statistics.median(one.first_to_last for one in found)
        for cluster, found in times.items()
    }
    return {
        "rounds": rounds,
        "seconds_first_to_last": {name: round(value, 2) for name, value in median.items()},
        "seconds_until_first": {
            name: round(statistics.median(one.until_first for one in found), 2)
            for name, found in times.items()
        },
        "overhead_of_one_worker": round(median["local:1"] / median["none"] - 1, 4),
        "speed_of_two_workers": round(median["none"] / median["local:2"], 3),
    }


@dataclass(frozen=True)
class SleepWork(Work[tuple[int, float], int]):
    """Units that take their time and do nothing."""

    shared_dir: Path
    wants_gpu: bool = False

    def name_of(self, unit: tuple[int, float]) -> str:
        return str(unit[0])

    def set_up(self) -> str:
        return "sleep"

    def compute(self, unit: tuple[int, float], _stop: StopRequest) -> int:
        time.sleep(unit[1])
        return unit[0]


def simulated(workers: int) -> dict[str, Any]:
    """Distribute units with the recorded costs of a query and of a volume, in random order."""
    costs, draw = UnitCosts(), random.Random(0)
    seconds = [draw.choice((costs.label_s, costs.predict_s)) / QUICKER for _ in range(UNITS)]
    ideal = sum(seconds) / workers
    with tempfile.TemporaryDirectory() as folder, open_executor(f"local:{workers}") as executor:
        work, units = SleepWork(Path(folder)), list(enumerate(seconds))
        with executor.open(work):
            start, computed = time.perf_counter(), time.process_time()
            done = [number for _, number in executor.map(work, units, stop=StopRequest())]
            taken = time.perf_counter() - start
            computed = time.process_time() - computed
    assert sorted(done) == list(range(UNITS))
    return {
        "units": UNITS,
        "workers": workers,
        "ideal_seconds": round(ideal, 1),
        "seconds": round(taken, 1),
        "units_a_second": round(UNITS / taken, 1),
        "scheduler_ms_a_unit": round(1000 * computed / UNITS, 2),
        # At the true cost of a unit.
        "workers_kept_busy": round(sum(seconds) * QUICKER / taken),
        "workers_kept_busy_by_a_core": round(sum(seconds) * QUICKER / computed),
    }


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--part", choices=["real", "simulated"], help="only this one")
    arguments.add_argument("--workers", type=int, default=SLEEPERS, help="of the simulation")
    given: argparse.Namespace = arguments.parse_args()
    figures: dict[str, Any] = {}
    if given.part != "simulated":
        figures["real"] = real(given.rounds)
    if given.part != "real":
        figures["simulated"] = simulated(given.workers)
    report(figures, given.json)


if __name__ == "__main__":
    main()
