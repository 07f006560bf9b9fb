"""The shipped weights on real volumes, nearly all of which they were trained on.

Volumes that a network never saw: `cross_validation.py`.

- The T2 cases, all of which the shipped weights were **trained on**, as they are and with the
  contrast inverted (dark becomes bright, air stays dark): how well they fit.
- Another contrast altogether: the shipped weights on ``totalseg_ct``, as stored and mirrored into
  the opposite handedness.
- The shipped weights on BTCV's CTs: whether these were trained on, the model card says. BTCV's
  reference masks leave out the portal vein, also where it runs through the liver.
- The shipped weights on the T1 pair (in and opposed phase) of ``chaos_mr_t1``, which no network was
  trained on. Its mask was moved there from the patient's T2 and refitted: good enough to compare
  two networks, no reference for a claim.
- The shipped weights on the phantoms of ``test_inputs/``.

``hausdorff_mm`` is that of the challenge, between surfaces. ``voxels_hausdorff_mm`` is that between
all voxels of the masks, as ITK computes it: the surface of a vessel that only one mask leaves out
adds nothing to it but the vessel's radius.

``--model FOLDER`` scores another model folder in the place of the shipped weights, and ``--only
CASE`` these cases of T2 and BTCV alone, for a model that was trained on the others.

    python benchmarks/accuracy.py --json benchmarks/results/accuracy.json
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from common import ROOT, parser, report, require_real_data, shipped_checkpoints
from scipy.ndimage import distance_transform_edt

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.imaging.image_file import ImageFile
from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.volume import CanonicalVolume
from sslmedsam2.inference.model_folder import ModelSpec, read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.nnunet.dataset import case_key
from sslmedsam2.predict.pipeline import PredictOptions, predict
from sslmedsam2.submission.evaluate import evaluate
from sslmedsam2.submission.metrics import measure
from sslmedsam2.weights.locate import locate_models


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, help="in the place of the shipped weights")
    arguments.add_argument("--only", action="append", help="score only this case of T2 or BTCV")
    options = arguments.parse_args()
    figures: dict[str, Any] = {}
    if options.model is None:
        figures["checkpoints"] = shipped_checkpoints()
    spec = model_spec(options.model)
    figures["t1_pair"] = t1_pair(spec)
    t2 = both_contrasts(spec, labelled("chaos_mr_t2", only=options.only))
    figures["t2"] = {contrast: {**means(rows), "cases": rows} for contrast, rows in t2.items()}
    ct = score(spec, labelled("btcv_ct", only=options.only))
    figures["btcv_ct"] = {**means(ct), "cases": ct}
    figures["totalseg_ct"] = other_contrast(options.model)
    figures["phantoms"] = phantoms(options.model)
    report(figures, options.json)


def model_spec(folder: Path | None) -> ModelSpec:
    (model,) = locate_models(folder or ROOT / "weights")
    return read_model_spec(model.path, folds=model.folds)


def labelled(name: str, *, only: Sequence[str] | None = None) -> list[ImageFile]:
    images = find_labelled_series(require_real_data(name))
    return [image for image in images if only is None or image.case in only]


def t1_pair(spec: ModelSpec) -> list[dict[str, Any]]:
    folder = require_real_data("chaos_mr_t1") / "chaos01"
    segmenter = CanonicalSegmenter(spec, EngineOptions())
    rows = []
    for name in ("T1_in", "T1_out"):
        pair = canonical_pair(folder / f"{name}.nii.gz", folder / "approxmask_T1.nii.gz")
        rows.append({"image": name, **scores(segmenter, *pair)})
    return rows


def score(spec: ModelSpec, images: Sequence[ImageFile]) -> list[dict[str, Any]]:
    segmenter = CanonicalSegmenter(spec, EngineOptions())
    return [
        {"case": case_key(image), **scores(segmenter, *canonical_pair(image.path, image.mask))}
        for image in images
    ]


def both_contrasts(spec: ModelSpec, images: Sequence[ImageFile]) -> dict[str, list[dict[str, Any]]]:
    """Score a model on images as they are, and on the same with the contrast inverted."""
    segmenter = CanonicalSegmenter(spec, EngineOptions())
    rows: dict[str, list[dict[str, Any]]] = {"t2": [], "t2_inverted": []}
    for image in images:
        volume, mask = canonical_pair(image.path, image.mask)
        inverted = replace(volume, array_zyx=invert(volume.array_zyx))
        for contrast, shown in (("t2", volume), ("t2_inverted", inverted)):
            rows[contrast].append({"case": case_key(image), **scores(segmenter, shown, mask)})
    return rows


def scores(
    segmenter: CanonicalSegmenter, volume: CanonicalVolume, mask: np.ndarray
) -> dict[str, float]:
    predicted = segmenter.segment(volume).mask_zyx
    return compared(predicted, mask, spacing_zyx_mm=volume.spacing_zyx_mm)


def compared(
    predicted: np.ndarray, mask: np.ndarray, *, spacing_zyx_mm: tuple[float, float, float]
) -> dict[str, float]:
    """Return overlap and distances of a predicted mask and the reference mask."""
    found = measure(predicted, mask, spacing_zyx_mm=spacing_zyx_mm)
    return {
        "dice": round(found.dice, 4),
        "hausdorff_mm": round(found.hausdorff_mm, 1),
        "hausdorff95_mm": round(found.hausdorff95_mm, 1),
        "voxels_hausdorff_mm": round(voxels_hausdorff_mm(predicted, mask, spacing_zyx_mm), 1),
    }


def voxels_hausdorff_mm(
    first: np.ndarray, second: np.ndarray, spacing_zyx_mm: tuple[float, float, float]
) -> float:
    """Return the largest distance from a voxel of either mask to the nearest one of the other."""
    return max(
        float(distance_transform_edt(b == 0, sampling=spacing_zyx_mm)[a != 0].max(initial=0))
        for a, b in ((first, second), (second, first))
    )


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the means of the figures that all rows have."""
    names = ("dice", "hausdorff_mm", "hausdorff95_mm", "voxels_hausdorff_mm")
    return {
        f"mean_{name}": round(float(np.mean([row[name] for row in rows])), 4)
        for name in names
        if all(name in row for row in rows)
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


def other_contrast(model: Path | None) -> dict[str, Any]:
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
            "as_stored": scored(data, scratch / "out_stored", references=data, model=model),
            "other_handedness": scored(
                scratch / "mirrored",
                scratch / "out",
                references=scratch / "mirrored",
                model=model,
            ),
        }


def phantoms(model: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        inputs = ROOT / "test_inputs"
        return scored(inputs / "images", Path(name), references=inputs / "references", model=model)


def scored(inputs: Path, output: Path, *, references: Path, model: Path | None) -> dict[str, Any]:
    options = PredictOptions(inputs, output, model_dir=model, previews=False)
    predict(options)
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
