"""Seconds from the start of ``predict`` to the mask of one T2 volume, by stage, on a CPU.

With ``--before`` another checkout of this repository takes turns with this one. Processor seconds
(of all cores together) depend less on what else the machine does than wall-clock seconds.

    python benchmarks/first_mask.py --json benchmarks/results/first_mask.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, parser, report, require_real_data, run

CASE = "chaos10"

START = """
import json, sys, time
begin = time.perf_counter()
from sslmedsam2.predict.pipeline import EngineOptions
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter
from sslmedsam2.weights.locate import SHIPPED_DIR, locate_models
from sslmedsam2.inference import openvino_backend
imported = time.perf_counter()
model = locate_models(SHIPPED_DIR)[0]
spec = read_model_spec(model.path, folds=model.folds, sha256=model.sha256)
CanonicalSegmenter(spec, EngineOptions(device="cpu", mode=sys.argv[1]))
loaded = time.perf_counter()
print(json.dumps({"imports": imported - begin, "load and compile": loaded - imported}))
"""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--mode", default="exact", choices=["exact", "fast"])
    arguments.add_argument("--before", type=Path, help="another checkout of this repository")
    options = arguments.parse_args()
    scan = require_real_data("chaos_mr_t2") / CASE
    checkouts = {"after": ROOT, **({"before": options.before} if options.before else {})}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(options.rounds):
        for name, checkout in checkouts.items():
            measured[name].append(one_start(checkout.resolve(), scan, options.mode))
    figures = {name: medians(rounds) for name, rounds in measured.items()}
    report({"mode": options.mode, "rounds": options.rounds, **figures}, options.json)


def one_start(checkout: Path, scan: Path, mode: str) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    started = subprocess.run(
        [sys.executable, "-c", START, mode],
        env=environment, cwd=checkout, capture_output=True, text=True, check=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, str(checkout / "entrypoint.py"), "predict", "--device", "cpu"]
        command += ["--input", str(scan), "--output", output, "--mode", mode, "--no-previews"]
        timed = run(command, env=environment)
        [series] = json.loads((Path(output) / "run_report.json").read_text())["series"]
    return {
        **json.loads(started.stdout),
        **series["seconds"],
        "whole process": timed.seconds,
        "whole process, processor": timed.cpu_seconds,
        "peak memory MB": timed.peak_memory_mb,
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {stage: round(statistics.median(one[stage] for one in rounds), 2) for stage in rounds[0]}


if __name__ == "__main__":
    main()
