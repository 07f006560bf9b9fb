"""Feed mutated inputs to the readers, and end with 1 if one of them finds a fault.

    python -m tests.fuzz --format nifti --inputs 1000 --seed 1 [--json FILE]

``--show N`` keeps input N in a folder instead, to look at it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from .campaign import input_of, run, write_input
from .formats import FORMATS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--format", nargs="+", choices=["all", *FORMATS], default=["all"])
    parser.add_argument("--inputs", type=int, default=1000, help="of each format")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument("--show", type=Path, help="write the first input to this folder, and end")
    options = parser.parse_args()
    names = list(FORMATS) if "all" in options.format else options.format
    if options.show:
        write_input(input_of(FORMATS[names[0]], options.seed, options.first), options.show)
        return 0
    done = []
    for name in names:
        start = time.monotonic()
        campaign = run(
            name,
            inputs=options.inputs,
            seed=options.seed,
            first=options.first,
            seconds=options.seconds,
        )
        print(
            f"{name}: {campaign.inputs} inputs, {campaign.accepted} accepted,"
            f" {len(campaign.findings)} faults, {time.monotonic() - start:.1f} s",
            flush=True,
        )
        for finding in campaign.findings.values():
            print(f"  {finding.what} [{finding.where}] input {finding.index}, {finding.count}x")
        done.append({**asdict(campaign), "findings": list(map(asdict, campaign.findings.values()))})
    if options.json:
        options.json.write_text(json.dumps(done, indent=1) + "\n")
    return int(any(one["findings"] for one in done))


if __name__ == "__main__":
    sys.exit(main())
