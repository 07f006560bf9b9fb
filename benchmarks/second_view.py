"""What a second view with inverted contrast gains, by whether the network was unsure.

Real volumes with reference masks, as they are, inverted, repainted by random curves and unevenly
bright, are segmented by one view, by the inverted view and by their average. All patients are
among those that the shipped weights were trained on, so the undisturbed T2 flatter the first view;
the T1 pair and the copies are contrasts that the network never saw.

    python benchmarks/second_view.py --json benchmarks/results/second_view.json
    python benchmarks/second_view.py --cases 4 --model FOLDER
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import canonical_pair, invert, labelled, model_spec
from common import parser, report, require_real_data

from sslmedsam2.imaging.volume import CanonicalVolume
from sslmedsam2.inference.confidence import expected_dice
from sslmedsam2.inference.second_view import SURE_FROM, average, inverted
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.submission.metrics import diagonal_mm, measure
from sslmedsam2.train.degradation import Scan, degraded

COPIES = ("repainted", "repainted", "biased")
VIEWS = ("one_view", "inverted_view", "average")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, help="in the place of the shipped weights")
    arguments.add_argument("--cases", type=int, default=16, help="of T2, spread over the folder")
    options = arguments.parse_args()
    engine = EngineOptions("cpu", sure_from=0.0)
    segmenter = CanonicalSegmenter(model_spec(options.model), engine)
    rows = []
    for name, volume, mask in volumes(options.cases):
        rows.append({"name": name, **both_views(segmenter, volume, mask)})
        print(rows[-1], flush=True)
    unsure = [row for row in rows if row["unsure"]]
    sure = [row for row in rows if not row["unsure"]]
    report({"unsure": means(unsure), "sure": means(sure), "rows": rows}, options.json)


def volumes(n_cases: int) -> Iterator[tuple[str, CanonicalVolume, np.ndarray]]:
    """Yield name, image and reference mask."""
    folder = require_real_data("chaos_mr_t1") / "chaos01"
    for name in ("T1_in", "T1_out"):
        pair = canonical_pair(folder / f"{name}.nii.gz", folder / "approxmask_T1.nii.gz")
        yield f"chaos01 {name}", *pair
    images = labelled("chaos_mr_t2")
    for index in np.linspace(0, len(images) - 1, min(n_cases, len(images))).round().astype(int):
        image = images[index]
        volume, mask = canonical_pair(image.path, image.mask)
        yield f"{image.case} T2", volume, mask
        yield f"{image.case} inverted", replace(volume, array_zyx=invert(volume.array_zyx)), mask
        array = np.ascontiguousarray(volume.array_zyx, np.float32)
        scan = Scan(array, mask > 0, volume.spacing_zyx_mm)
        for number, kind in enumerate(COPIES):
            copy = degraded(scan, kind=kind, seed=f"{image.case} {number}")
            yield f"{image.case} {kind} {number}", replace(volume, array_zyx=copy.array_zyx), mask


def both_views(
    segmenter: CanonicalSegmenter, volume: CanonicalVolume, mask: np.ndarray
) -> dict[str, Any]:
    """Score the mask of each view and of their average: Dice and Hausdorff distance in mm."""
    prepared = segmenter.prepare(volume)
    one = segmenter.infer(prepared)
    other = segmenter.infer(replace(prepared, patchable=inverted(prepared.patchable)))
    expected = [expected_dice(view.margin) for view in (one, other)]
    both = average(one.margin, other.margin)
    margins = (one.margin, other.margin, both)
    found: dict[str, Any] = {
        "expected": [round(dice, 4) for dice in expected],
        "unsure": expected[0] < SURE_FROM,
    }
    for view, margin in zip(VIEWS, margins, strict=True):
        seen = segmenter.finish(replace(one, margin=margin)).mask_zyx
        spacing = volume.spacing_zyx_mm
        dice, distance = 0.0, diagonal_mm(mask.shape, spacing_zyx_mm=spacing)
        if seen.any():
            metrics = measure(seen, mask, spacing_zyx_mm=spacing)
            dice, distance = metrics.dice, metrics.hausdorff_mm
        found[view] = [round(dice, 4), round(distance, 1)]
    return found


def means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the number of volumes, and mean Dice and distance of each view."""
    if not rows:
        return {"volumes": 0}
    return {
        "volumes": len(rows),
        **{view: np.mean([row[view] for row in rows], axis=0).round(4).tolist() for view in VIEWS},
    }


if __name__ == "__main__":
    main()
