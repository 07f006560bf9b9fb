"""From which uncertainty on should a voxel of a pseudo mask not be trained on?

For masks with their uncertainty maps, and reference masks of the same volumes: what share of the
wrong voxels a threshold hides, and what share of the right ones near the liver (within 15 mm of
either mask). Works on what `benchmarks/semi_supervised.py` left in its work directory.

    python benchmarks/ignore_threshold.py --work-dir out/semi_supervised \
        --json benchmarks/results/ignore_threshold.json
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, parser, report, require_real_data
from scipy import ndimage

THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
NEAR_MM = 15.0


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work-dir", type=Path, default=ROOT / "out" / "semi_supervised")
    options = arguments.parse_args()
    truths = require_real_data("chaos_mr_t2")
    fewshot = sorted(options.work_dir.glob("p[03]/draw_*/fewshot/*/T2_pred.nii.gz"))
    report({"fewshot": hidden(fewshot, truths)}, options.json)


def hidden(paths: Iterable[Path], truths: Path) -> dict[str, Any]:
    """Return the shares of wrong and right voxels that each threshold hides."""
    from sslmedsam2.imaging.reading import read_mask, read_volume

    wrong_total = right_total = 0
    wrong = np.zeros(len(THRESHOLDS))
    right = np.zeros(len(THRESHOLDS))
    n_volumes = 0
    for path in paths:
        case = path.parent.name
        mask = read_mask(path).array_zyx > 0
        truth = read_mask(truths / case / "mask_T2.nii.gz")
        uncertainty = read_volume(path.with_name("uncertainty_T2.nii.gz")).array_zyx
        reference = truth.array_zyx > 0
        distance = ndimage.distance_transform_edt(
            ~(mask | reference), sampling=truth.geometry.spacing_zyx_mm
        )
        near = distance <= NEAR_MM
        is_wrong, is_right = near & (mask != reference), near & (mask == reference)
        wrong_total += int(is_wrong.sum())
        right_total += int(is_right.sum())
        for place, threshold in enumerate(THRESHOLDS):
            doubtful = uncertainty > threshold
            wrong[place] += int((doubtful & is_wrong).sum())
            right[place] += int((doubtful & is_right).sum())
        n_volumes += 1
    return {
        "volumes": n_volumes,
        "wrong_share": round(wrong_total / max(1, wrong_total + right_total), 4),
        "hidden": {
            str(threshold): {
                "of_the_wrong": round(float(w) / max(1, wrong_total), 4),
                "of_the_right": round(float(r) / max(1, right_total), 4),
            }
            for threshold, w, r in zip(THRESHOLDS, wrong, right, strict=True)
        },
    }


if __name__ == "__main__":
    main()
