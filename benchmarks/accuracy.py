"""Accuracy of a training and of the shipped weights on real volumes.

- T2 by cross-validation: each fold of a ``train`` work directory on the cases it never saw, in
  their own contrast and with the contrast inverted (dark becomes bright, air stays dark).
- The shipped weights on the same T2 cases, all of which they were **trained on**: how well they
  fit.
- Another contrast altogether: the shipped weights on ``totalseg_ct``, as stored and mirrored into
  the opposite handedness.
- The shipped weights on the phantoms of ``test_inputs/``.

    python benchmarks/accuracy.py --work-dir WORK --json benchmarks/results/accuracy.json
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from common import ROOT, parser, report, require_real_data

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.volume import CanonicalVolume
from sslmedsam2.inference.model_folder import ModelSpec, read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.nnunet.dataset import alternating_splits, case_key
from sslmedsam2.nnunet.training import trained_model_dir
from sslmedsam2.predict.pipeline import PredictOptions, predict
from sslmedsam2.submission.evaluate import evaluate
from sslmedsam2.submission.metrics import measure
from sslmedsam2.weights.locate import locate_models


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work-dir", type=Path, help="of a finished `train`, for the folds")
    arguments.add_argument("--folds", type=int, default=2, help="that the data are split into")
    arguments.add_argument("--fold", type=int, action="append", help="score only this one")
    options = arguments.parse_args()
    figures: dict[str, Any] = {}
    if options.work_dir:
        figures["cross_validation"] = cross_validation(
            options.work_dir, options.folds, only=options.fold
        )
    figures["trained_on"] = trained_on()
    figures["totalseg_ct"] = other_contrast()
    figures["phantoms"] = phantoms()
    report(figures, options.json)


def cross_validation(work_dir: Path, n_folds: int, *, only: list[int] | None) -> dict[str, Any]:
    images = t2_images()
    rows: dict[str, list[dict[str, Any]]] = {}
    for fold, split in enumerate(alternating_splits(images, n_folds=n_folds)):
        if only is not None and fold not in only:
            continue
        spec = read_model_spec(trained_model_dir(work_dir), folds=(str(fold),))
        held_out = [image for image in images if case_key(image) in split["val"]]
        for contrast, found in both_contrasts(spec, held_out).items():
            rows.setdefault(contrast, []).extend({**row, "fold": fold} for row in found)
    return {contrast: {**means(found), "cases": found} for contrast, found in rows.items()}


def trained_on() -> dict[str, Any]:
    (shipped,) = locate_models(ROOT / "weights")
    spec = read_model_spec(shipped.path, folds=shipped.folds)
    return {contrast: means(found) for contrast, found in both_contrasts(spec, t2_images()).items()}


def t2_images() -> list[ImageFile]:
    found = find_labelled_series(require_real_data("chaos_mr_t2"))
    return list(found)


def both_contrasts(spec: ModelSpec, images: Sequence[ImageFile]) -> dict[str, list[dict[str, Any]]]:
    """Score a model on images as they are, and on the same with the contrast inverted."""
    segmenter = CanonicalSegmenter(spec, EngineOptions())
    rows: dict[str, list[dict[str, Any]]] = {"t2": [], "t2_inverted": []}
    for image in images:
        volume, mask = canonical_pair(image.path, image.mask)
        inverted = replace(volume, array_zyx=invert(volume.array_zyx))
        for contrast, shown in (("t2", volume), ("t2_inverted", inverted)):
            found = measure(
                segmenter.segment(shown).mask_zyx, mask, spacing_zyx_mm=shown.spacing_zyx_mm
            )
            rows[contrast].append(
                {
                    "case": case_key(image),
                    "dice": round(found.dice, 4),
                    "hausdorff_mm": round(found.hausdorff_mm, 1),
                    "hausdorff95_mm": round(found.hausdorff95_mm, 1),
                }
            )
    return rows


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {
        f"mean_{name}": round(float(np.mean([row[name] for row in rows])), 4)
        for name in ("dice", "hausdorff_mm", "hausdorff95_mm")
    }


def canonical_pair(image: Path, mask: Path) -> tuple[CanonicalVolume, np.ndarray]:
    from sslmedsam2.imaging.reading import read_volume

    volume = to_canonical(read_volume(image))
    return volume, apply_reorientation(read_mask(mask).array_zyx, volume.reorientation)


def invert(array: np.ndarray) -> np.ndarray:
    """Invert the tissue's contrast and leave air dark."""
    low, high = np.quantile(array, [0.005, 0.995])
    unit = np.clip((array - low) / (high - low), 0, 1)
    air = np.clip(unit / 0.08, 0, 1)
    return ((1 - unit) * air).astype(np.float32)


def other_contrast() -> dict[str, Any]:
    data = require_real_data("totalseg_ct")
    series = find_labelled_series(data)[0]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = scratch / "mirrored" / series.case
        folder.mkdir(parents=True)
        for path in (series.path, series.mask):
            image = nibabel.load(path)
            turn = np.array([[0, -1], [1, 1], [2, 1]])
            nibabel.save(image.as_reoriented(turn), folder / path.name)
        return {
            "as_stored": scored(data, scratch / "out_stored", references=data),
            "other_handedness": scored(
                scratch / "mirrored", scratch / "out", references=scratch / "mirrored"
            ),
        }


def phantoms() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        inputs = ROOT / "test_inputs"
        return scored(inputs / "images", Path(name), references=inputs / "references")


def scored(inputs: Path, output: Path, *, references: Path) -> dict[str, Any]:
    predict(PredictOptions(input_path=inputs, output_dir=output, previews=False))
    rows = evaluate(predictions=output, references=references).rows
    return {
        f"{row.case} {row.sequence or ''}".strip(): {
            "dice": round(row.metrics.dice, 4),
            "hausdorff_mm": round(row.metrics.hausdorff_mm, 1),
        }
        for row in rows
        if row.metrics is not None
    }


if __name__ == "__main__":
    main()
