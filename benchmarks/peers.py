"""What a mask costs with TotalSegmentator, MRSegmentator and this project, on a CPU.

The same T2 volumes go through each program's own command, as whole processes, with networks of
random weights: what a program computes does not depend on them, and its own weights cannot be
fetched everywhere. TotalSegmentator's layers are those of its MR networks (850 and 851 at 1.5 mm,
852 at 3 mm); the patch sizes, and MRSegmentator's layers, come with its weights alone, so what
nnU-Net plans by default stands in for them.

The peers need an environment of their own; their packages ask for other releases of torch and
nnU-Net, but run with these:

    python -m venv /tmp/peers
    echo "$PWD/.venv/lib/python3.11/site-packages" > /tmp/peers/lib/python3.11/site-packages/all.pth
    /tmp/peers/bin/pip install --no-deps totalsegmentator==2.18.0 mrsegmentator==2.0.0 \
        dicom2nifti xmltodict
    python benchmarks/peers.py --peers /tmp/peers --json benchmarks/results/peers.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from common import ROOT, Timed, parser, report, run
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from predict_vs_nnunet import write_inputs

from sslmedsam2.nnunet.plans import CONFIGURATION, CompactPreset, compact_plans

WIDTHS = (32, 64, 128, 256, 320, 320)
HALVED = ((1, 1, 1), *[(2, 2, 2)] * 5)


@dataclass(frozen=True)
class Network:
    """A network of a peer, and where the peer looks for it."""

    folder: str
    trainer: str
    spacing_mm: float
    patch_zyx: tuple[int, int, int]
    strides_zyx: tuple[tuple[int, int, int], ...]
    n_labels: int
    folds: int = 1
    mirror_axes: tuple[int, ...] | None = None


ORGANS = Network(
    "Dataset850_TotalSegMRI_part1_organs_1088subj",
    "nnUNetTrainer_2000epochs_NoMirroring",
    1.5,
    (96, 128, 160),
    (*HALVED[:5], (1, 2, 2)),
    30,
)
MUSCLES = replace(ORGANS, folder="Dataset851_TotalSegMRI_part2_muscles_1088subj", n_labels=22)
TOTAL_3MM = replace(
    ORGANS,
    folder="Dataset852_TotalSegMRI_total_3mm_1088subj",
    spacing_mm=3.0,
    patch_zyx=(96, 112, 112),
    strides_zyx=HALVED[:5],
    n_labels=51,
)
MRSEGMENTATOR = Network(
    "mrsegmentator", "nnUNetTrainer", 1.5, (96, 128, 160), ORGANS.strides_zyx, 41, 5, (0, 1, 2)
)


def write_network(network: Network, folder: Path) -> None:
    """Write what nnU-Net reads of a trained network, with random weights."""
    preset = CompactPreset(
        spacing_zyx_mm=(network.spacing_mm,) * 3,
        patch_zyx=network.patch_zyx,
        features=WIDTHS[: len(network.strides_zyx)],
        strides_zyx=network.strides_zyx,
    )
    plans = compact_plans(
        preset,
        dataset_name=network.folder,
        median_shape_zyx=(120, 240, 240),
        median_spacing_zyx_mm=(1.5, 1.5, 1.5),
        intensity={},
    )
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    n_stages = len(network.strides_zyx)
    architecture["arch_kwargs"] |= {
        "kernel_sizes": [[3, 3, 3]] * n_stages,
        "n_conv_per_stage_decoder": [2] * (n_stages - 1),
    }
    names = {"background": 0, **{f"label{n}": n for n in range(1, network.n_labels)}}
    meta = {"channel_names": {"0": "MR"}, "labels": names, "numTraining": 1}
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (folder / "dataset.json").write_text(
        json.dumps({**meta, "file_ending": ".nii.gz"}), encoding="utf-8"
    )
    for fold in range(network.folds):
        torch.manual_seed(fold)
        weights = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            network.n_labels,
            deep_supervision=False,
        ).state_dict()
        content = {
            "network_weights": weights,
            "init_args": {"configuration": CONFIGURATION},
            "trainer_name": network.trainer,
            "inference_allowed_mirroring_axes": network.mirror_axes,
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")


def totalsegmentator(
    networks: tuple[Network, ...], options: tuple[str, ...]
) -> Callable[[Path, Path, Path], Timed]:
    """Return how to run TotalSegmentator, one process a volume, as its users do."""

    def measure(programs: Path, scratch: Path, inputs: Path) -> Timed:
        home = scratch / "totalsegmentator"
        for network in networks:
            name = f"{network.trainer}__nnUNetPlans__{CONFIGURATION}"
            write_network(network, home / network.folder / name)
        (home / "config.json").write_text(
            json.dumps(
                {
                    "totalseg_id": "none",
                    "send_usage_stats": False,
                    "prediction_counter": 0,
                    "statistics_disclaimer_shown": True,
                }
            ),
            encoding="utf-8",
        )
        places = {"TOTALSEG_HOME_DIR": str(home), "TOTALSEG_WEIGHTS_PATH": str(home)}
        runs = [
            run(
                [
                    *(str(programs / "TotalSegmentator"), "--ml", "-ta", "total_mr", "-d", "cpu"),
                    *("-i", str(path), "-o", str(scratch / f"total_{path.name}"), *options),
                ],
                env={**os.environ, **places},
            )
            for path in sorted(inputs.glob("*.nii.gz"))
        ]
        return added(runs)

    return measure


def mrsegmentator(*options: str) -> Callable[[Path, Path, Path], Timed]:
    """Return how to run MRSegmentator on all volumes in one process."""

    def measure(programs: Path, scratch: Path, inputs: Path) -> Timed:
        folder = scratch / "mrsegmentator"
        if not folder.exists():
            write_network(MRSEGMENTATOR, folder)
        command = [str(programs / "mrsegmentator"), "-i", str(inputs), "--cpu_only", *options]
        return run(
            [*command, "--outdir", str(scratch / "mrsegmentator_out")],
            env={**os.environ, "MRSEG_WEIGHTS_PATH": str(folder)},
        )

    return measure


def ours(mode: str) -> Callable[[Path, Path, Path], Timed]:
    """Return how to run `predict` on all volumes in one process."""

    def measure(_programs: Path, scratch: Path, inputs: Path) -> Timed:
        command = [sys.executable, str(ROOT / "entrypoint.py"), "predict", "--input", str(inputs)]
        output = str(scratch / f"ours_{mode}")
        return run([*command, "--output", output, "--device", "cpu", "--mode", mode])

    return measure


def added(runs: list[Timed]) -> Timed:
    """Sum the seconds of several processes; of their memory the most."""
    return Timed(
        sum(one.seconds for one in runs),
        sum(one.cpu_seconds for one in runs),
        max(one.peak_memory_mb for one in runs),
    )


PROGRAMS: dict[str, Callable[[Path, Path, Path], Timed]] = {
    "predict exact": ours("exact"),
    "predict fast": ours("fast"),
    "TotalSegmentator total_mr, 1.5 mm": totalsegmentator((ORGANS, MUSCLES), ()),
    "TotalSegmentator total_mr --fast, 3 mm": totalsegmentator((TOTAL_3MM,), ("--fast",)),
    "MRSegmentator --fast, one fold": mrsegmentator("--fast"),
    "MRSegmentator, five folds": mrsegmentator(),
}


def main() -> None:
    """Run the programs in turn."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--peers", type=Path, required=True, help="their environment")
    arguments.add_argument("--volumes", type=int, default=4, help="how many T2 volumes")
    arguments.add_argument("--only", default="", help="programs whose names hold this")
    options = arguments.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        cases = write_inputs(scratch, options.volumes)
        for program, measure in PROGRAMS.items():
            if options.only in program:
                timed = measure(options.peers / "bin", scratch, scratch / "ours")
                figures[program] = {key: round(n, 1) for key, n in asdict(timed).items()}
                print(program, figures[program], flush=True)
    report({"cases": cases, "programs": figures}, options.json)


if __name__ == "__main__":
    main()
