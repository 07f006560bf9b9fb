"""How many wrong masks get the status ``check``, and how many right ones.

The volumes that each fold of `cross_validation.py` kept out, segmented by the network of the fold:
as they are, with left and right exchanged, and in four random parts, cut within the liver. A mask
is wrong below a Dice of 0.5 and right from 0.8 on. The models of the folds have no calibration, so
the limit of the estimated Dice flags nothing here.

    python benchmarks/wrong_masks.py --fold-dir CROSS_VALIDATION/fold0 \\
        --fold-dir CROSS_VALIDATION/fold1 --json benchmarks/results/wrong_masks.json
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import model_spec
from common import parser, report
from confidence import labelled, volumes
from cross_validation import kept_out
from plausibility import volume_of

from sslmedsam2.imaging.volume import mask_dice, mask_volume_ml
from sslmedsam2.inference.masks import judge
from sslmedsam2.inference.second_view import SURE_FROM
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.nnunet.training import trained_model_dir
from sslmedsam2.train.degradation import Scan, degraded

PARTS = 4
LEAST_LIVER_ML = 20
"""Parts with less liver are left out."""
WRONG_BELOW, RIGHT_FROM = 0.5, 0.8
SECOND_REGION = "second_region"
FLAGS = ("no_liver", "no_typical_liver", "implausible_volume", "low_estimate", SECOND_REGION)
"""Warnings after which a mask has to be checked."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--fold-dir", type=Path, action="append", required=True)
    given = options.parse_args()
    rows = [row for fold_dir in given.fold_dir for row in of_fold(fold_dir)]
    report({"counts": counts(rows), "rows": rows}, given.json)


def of_fold(fold_dir: Path) -> Iterator[dict[str, Any]]:
    """Segment the volumes of a fold in every form."""
    model = model_spec(trained_model_dir(fold_dir / "work"))
    segmenter = CanonicalSegmenter(model, EngineOptions("cpu", "fast", sure_from=SURE_FROM))
    names = {name for of_kind in kept_out(fold_dir).values() for name in of_kind}
    for volume in volumes():
        if volume.patient not in names:
            continue
        for form, scan in forms(labelled(volume.image, volume.mask), name=volume.patient):
            liver_ml = mask_volume_ml(scan.liver_zyx, spacing_zyx_mm=scan.spacing_zyx_mm)
            if liver_ml < LEAST_LIVER_ML:
                continue
            ready = volume_of(scan.array_zyx, scan.spacing_zyx_mm)
            found = segmenter.segment(ready.canonical)
            judged = judge(found.mask_zyx, ready, found)
            warnings = [warning.partition(":")[0] for warning in judged.warnings]
            yield {
                "patient": volume.patient,
                "form": form,
                "liver_ml": round(liver_ml),
                "volume_ml": round(judged.volume_ml),
                "dice": round(mask_dice(found.mask_zyx > 0, scan.liver_zyx), 4),
                "removed_share": round(found.removed_share, 3),
                "flags": [name for name in warnings if name in FLAGS],
            }


def forms(scan: Scan, *, name: str) -> Iterator[tuple[str, Scan]]:
    """Yield a scan as it is, mirrored, and parts of it."""
    yield "whole", scan
    exchanged = (np.ascontiguousarray(a[:, :, ::-1]) for a in (scan.array_zyx, scan.liver_zyx))
    yield "mirrored", Scan(*exchanged, scan.spacing_zyx_mm)
    for number in range(PARTS):
        yield "part", degraded(scan, kind="cropped", seed=f"{name}/part/{number}")


def counts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return how many masks of each form are wrong or right, and how many of these are flagged."""
    found = {}
    for form in dict.fromkeys(row["form"] for row in rows):
        of_form = [row for row in rows if row["form"] == form]
        wrong = [row["flags"] for row in of_form if row["dice"] < WRONG_BELOW]
        right = [row["flags"] for row in of_form if row["dice"] >= RIGHT_FROM]
        found[form] = {"volumes": len(of_form)}
        for name, masks in (("wrong", wrong), ("right", right)):
            found[form] |= {
                name: len(masks),
                f"{name}_flagged": sum(bool(flags) for flags in masks),
                f"{name}_by_second_region_alone": masks.count([SECOND_REGION]),
            }
    return found


if __name__ == "__main__":
    main()
