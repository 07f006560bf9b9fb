"""Seconds an nnU-Net training step takes on this CPU, as its trainer is and as ours arranges it.

The network is the compact preset's; forward and backward pass of one patch, without augmentation,
which is the same for all. All variants run in turn, `--rounds` times, and the medians are compared;
then once more in a process that keeps the memory it frees, as our trainer's does.

    python benchmarks/training_speed.py --json benchmarks/results/training_speed.json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from common import parser, report


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    from sslmedsam2.execution.host import keep_freed_memory

    steps = variants()
    usual = median_seconds(steps, options.rounds)
    keep_freed_memory()
    keeping = median_seconds(steps, options.rounds)
    report(
        {
            "seconds": rounded(usual),
            "seconds_keeping_memory": rounded(keeping),
            "ratio_to_nnunet": {
                name: round(usual["nnunet_fp32"] / taken, 2) for name, taken in usual.items()
            },
            "ratio_to_nnunet_keeping_memory": {
                name: round(usual["nnunet_fp32"] / taken, 2) for name, taken in keeping.items()
            },
        },
        options.json,
    )


def median_seconds(steps: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Run all steps in turn, after two times that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(2 + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[2:]) for name, taken in seconds.items()}


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def variants() -> dict[str, Callable[[], None]]:
    """Return one training step a variant, each on a network of its own."""
    import torch

    from sslmedsam2.nnunet.cpu import arrange_for_cpu
    from sslmedsam2.nnunet.plans import CompactPreset

    patch = CompactPreset().patch_zyx
    data = torch.randn(1, 1, *patch)
    channels_last = data.contiguous(memory_format=torch.channels_last_3d)
    arranged = arrange_for_cpu(network())
    return {
        "nnunet_fp32": step_of(network(), data),
        "nnunet_bf16": step_of(network(), data, half=True),
        "arranged": step_of(arranged, channels_last),
        "arranged_compiled": step_of(torch.compile(arrange_for_cpu(network())), channels_last),
        "arranged_compiled_bf16": step_of(
            torch.compile(arrange_for_cpu(network())), channels_last, half=True
        ),
    }


def network() -> Any:
    """Build the compact preset's network as nnU-Net does."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from sslmedsam2.nnunet.plans import CONFIGURATION, CompactPreset, compact_plans

    preset = CompactPreset()
    plans = compact_plans(
        preset,
        dataset_name="Dataset001_Liver",
        median_shape_zyx=(36, 256, 256),
        median_spacing_zyx_mm=(7.7, 1.25, 1.25),
        intensity={},
    )
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        2,
        deep_supervision=True,
    )


def step_of(network: Any, data: Any, *, half: bool = False) -> Callable[[], None]:
    """Return a forward and backward pass."""
    import torch

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            outputs = network(data)
        sum(level.float().square().mean() for level in outputs).backward()

    return step


if __name__ == "__main__":
    main()
