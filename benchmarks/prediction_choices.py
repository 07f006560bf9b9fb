"""Choices at prediction time, on volumes that the network never saw.

The threshold, which pieces are kept, a smoothed margin, averaged views of the scan. Each is
compared with what `predict` does, on the T2 that a fold of `cross_validation.py` kept out.

    python benchmarks/prediction_choices.py --work-dir WORK --fold 1 --json FILE
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import canonical_pair, compared, invert, labelled, means, model_spec
from common import parser, report
from cross_validation import FOLDS, T2, split
from scipy import ndimage

from sslmedsam2.imaging.volume import CanonicalVolume
from sslmedsam2.inference.preprocessing import Prepared
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions, Inferred
from sslmedsam2.nnunet.training import trained_model_dir

Margin = np.ndarray
SHIFTS_ZYX = ((4, 12, 12), (8, 24, 24), (12, 36, 36))
"""Voxels by which the windows move over the scan."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work-dir", type=Path, required=True)
    arguments.add_argument("--fold", type=int, choices=range(FOLDS), required=True)
    options = arguments.parse_args()
    fold_dir = options.work_dir / f"fold{options.fold}"
    held_out = split(options.fold, fold_dir)
    spec = model_spec(trained_model_dir(fold_dir / "work"))
    segmenter = CanonicalSegmenter(spec, EngineOptions())
    rows: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for image in labelled(T2, only=held_out[T2]):
        volume, mask = canonical_pair(image.path, image.mask)
        inverted = replace(volume, array_zyx=invert(volume.array_zyx))
        for kind, shown in (("t2", volume), ("t2_inverted", inverted)):
            for choice, found in masks(segmenter, shown).items():
                rows[kind][choice].append(
                    compared(found, mask, spacing_zyx_mm=volume.spacing_zyx_mm)
                )
    figures = {kind: {c: means(found) for c, found in of.items()} for kind, of in rows.items()}
    report(figures, options.json)


def masks(segmenter: CanonicalSegmenter, volume: CanonicalVolume) -> dict[str, np.ndarray]:
    """Return the mask of each choice."""
    prepared = segmenter.prepare(volume)
    inferred = segmenter.infer(prepared)
    margins = {
        "as predict does": inferred.margin,
        **{name: change(inferred.margin) for name, change in CHANGES.items()},
        **views(segmenter, prepared, inferred),
    }
    return {
        name: segmenter.finish(replace(inferred, margin=margin.astype(np.float32))).mask_zyx
        for name, margin in margins.items()
    }


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def threshold(probability: float) -> Callable[[Margin], Margin]:
    return lambda margin: margin - logit(probability)


def joined(probability: float) -> Callable[[Margin], Margin]:
    """Join pieces of the mask across narrow gaps where the probability is above a lower threshold.

    A lobe that is joined to the liver by such voxels only is lost otherwise.
    """

    def change(margin: Margin) -> Margin:
        bridge = ndimage.binary_closing(margin > 0, iterations=3) & (margin > logit(probability))
        return np.where(bridge, np.maximum(margin, 1e-3), margin)

    return change


CHANGES: dict[str, Callable[[Margin], Margin]] = {
    **{f"threshold {p}": threshold(p) for p in (0.3, 0.4, 0.6, 0.7)},
    **{f"pieces joined above {p}": joined(p) for p in (0.1, 0.2, 0.3)},
    "margin smoothed by 0.5 voxels": lambda margin: ndimage.gaussian_filter(margin, 0.5),
    "margin smoothed by 1 voxel": lambda margin: ndimage.gaussian_filter(margin, 1),
}


def views(segmenter: CanonicalSegmenter, prepared: Prepared, plain: Inferred) -> dict[str, Margin]:
    """Return margins averaged over views of the scan: other windows, other contrasts."""

    def seen(patchable: np.ndarray) -> Margin:
        return segmenter.infer(replace(prepared, patchable=patchable)).margin

    scan = np.asarray(prepared.patchable)
    shifted = []
    for shift in SHIFTS_ZYX:
        moved = np.pad(scan, [(by, 0) for by in shift], mode="edge")
        shifted.append(seen(moved)[tuple(slice(by, None) for by in shift)])
    low = scan.min()
    span = max(float(scan.max() - low), 1e-6)
    curved = []
    for gamma in (0.8, 1.25):
        bent = ((scan - low) / span) ** gamma
        curved.append(seen(((bent - bent.mean()) / bent.std()).astype(np.float32)))
    return {
        "mean of 2 window positions": np.mean([plain.margin, shifted[0]], axis=0),
        "mean of 4 window positions": np.mean([plain.margin, *shifted], axis=0),
        "mean of 3 gamma curves": np.mean([plain.margin, *curved], axis=0),
        "mean of all 6": np.mean([plain.margin, *shifted, *curved], axis=0),
    }


if __name__ == "__main__":
    main()
