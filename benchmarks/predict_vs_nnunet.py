"""Whole-process comparison of ``predict`` with ``nnUNetv2_predict`` on a CPU.

Same weights, same options, same files: real volumes, brought to the canonical orientation
beforehand, because nnU-Net takes voxels as stored. The commands take turns, so that a change of
the machine's speed meets all of them; ratios are medians over the rounds. Ratios of processor
seconds (of all cores and processes) depend less on what else the machine does.

    python benchmarks/predict_vs_nnunet.py --json benchmarks/results/predict_vs_nnunet.json
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from common import ROOT, Timed, parser, report, require_real_data, run

CASES = ("chaos02", "chaos10", "chaos21", "chaos36")
"""Those of 4 volumes; with more, the others follow in order of their names."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--volumes", type=int, default=4, help="how many T2 volumes")
    arguments.add_argument(
        "--model", type=Path, help="nnU-Net model folder; default: the shipped one"
    )
    options = arguments.parse_args()
    model = options.model or shipped_model()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        cases = write_inputs(scratch, options.volumes)
        rounds = [one_round(scratch, model) for _ in range(options.rounds)]
        figures = {
            "rounds": options.rounds,
            "cases": cases,
            **speeds(rounds),
            **agreement(scratch, cases),
        }
    report(figures, options.json)


def shipped_model() -> Path:
    from sslmedsam2.weights.locate import SHIPPED_DIR, locate_models

    return locate_models(SHIPPED_DIR)[0].path


def write_inputs(scratch: Path, n: int) -> list[str]:
    """Write each volume once as ``<case>.nii.gz``, and link it as nnU-Net's ``<case>_0000``."""
    data = require_real_data("chaos_mr_t2")
    others = sorted(path.parent.name for path in data.glob("*/T2.nii.gz"))
    cases = [*CASES, *(case for case in others if case not in CASES)][:n]
    (scratch / "ours").mkdir()
    (scratch / "theirs").mkdir()
    for case in cases:
        image = nibabel.load(data / case / "T2.nii.gz")
        orientation = nibabel.orientations.axcodes2ornt(("L", "P", "S"))
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(image.affine), orientation
        )
        path = scratch / "ours" / f"{case}.nii.gz"
        nibabel.save(image.as_reoriented(turn), path)
        (scratch / "theirs" / f"{case}_0000.nii.gz").symlink_to(path)
    return cases


def one_round(scratch: Path, model: Path) -> dict[str, Timed]:
    folds = [folder.name.removeprefix("fold_") for folder in sorted(model.glob("fold_*"))]
    theirs = [
        str(Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder")),
        *("-i", str(scratch / "theirs"), "-o", str(scratch / "out_nnunet")),
        *("-m", str(model), "-f", *folds, "-device", "cpu"),
    ]
    timed = {"nnunet": run(theirs, env=nnunet_environment(scratch))}
    for mode in ("exact", "fast"):
        ours = [
            *(sys.executable, str(ROOT / "entrypoint.py"), "predict", "--device", "cpu"),
            *("--input", str(scratch / "ours"), "--output", str(scratch / f"out_{mode}")),
            *("--model", str(model), "--mode", mode, "--no-previews"),
        ]
        timed[mode] = run(ours)
    return timed


def nnunet_environment(scratch: Path) -> dict[str, str]:
    """Return an environment with the folders that nnU-Net wants named, though it uses none."""
    folders = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    return {**os.environ, **{name: str(scratch / "unused") for name in folders}}


def speeds(rounds: list[dict[str, Timed]]) -> dict[str, float]:
    figures = {}
    for mode in ("exact", "fast"):
        ratios = [timed["nnunet"].seconds / timed[mode].seconds for timed in rounds]
        figures[f"{mode}_speedup"] = round(statistics.median(ratios), 2)
        ratios = [timed["nnunet"].cpu_seconds / timed[mode].cpu_seconds for timed in rounds]
        figures[f"{mode}_processor_speedup"] = round(statistics.median(ratios), 2)
    for name in ("nnunet", "exact", "fast"):
        seconds = [timed[name].seconds for timed in rounds]
        figures[f"{name}_seconds"] = round(statistics.median(seconds), 1)
        processor = [timed[name].cpu_seconds for timed in rounds]
        figures[f"{name}_processor_seconds"] = round(statistics.median(processor), 1)
        memory = max(timed[name].peak_memory_mb for timed in rounds)
        figures[f"{name}_peak_memory_mb"] = round(memory)
    return figures


def agreement(scratch: Path, cases: list[str]) -> dict[str, float]:
    """Compare the masks; nnU-Net's get the same clean-up, which is not part of nnU-Net."""
    from sslmedsam2.imaging.volume import mask_dice
    from sslmedsam2.inference.postprocessing import keep_liver

    same = total = 0
    dice = []
    for case in cases:
        theirs = load(scratch / "out_nnunet" / f"{case}.nii.gz")
        cleaned = keep_liver(np.ascontiguousarray(theirs.T)).mask_zyx.T
        exact = load(scratch / "out_exact" / f"{case}_liver.nii.gz")
        fast = load(scratch / "out_fast" / f"{case}_liver.nii.gz")
        same += int((cleaned == exact).sum())
        total += exact.size
        dice.append(mask_dice(exact > 0, fast > 0))
    return {
        "exact_voxel_agreement": round(same / total, 7),
        "fast_dice": round(min(dice), 5),
        "fast_dice_mean": round(float(np.mean(dice)), 5),
    }


def load(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).astype(np.uint8)


if __name__ == "__main__":
    main()
