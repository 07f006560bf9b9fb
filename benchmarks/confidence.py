"""How well the estimated Dice agrees with the true one, and how often its interval holds it.

Labelled volumes of ``../shared/data`` (T2, T1, CT) and copies of them that are degraded on purpose,
segmented with the shipped weights in ``--mode fast``. Fit and interval are judged by patients that
were left out. Each prediction is kept in ``--work-dir``, so that the next call goes on from there.

    python benchmarks/confidence.py --work-dir WORK --json benchmarks/results/confidence.json
    python benchmarks/confidence.py --work-dir WORK --write weights/liver

The network was trained on these volumes: the undisturbed ones are easier than those of a new
patient, and the degraded copies give the spread.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import REAL_DATA, ROOT, parser, report, shipped_checkpoints
from scipy import stats

from sslmedsam2.imaging.intensity import window_if_hounsfield
from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical
from sslmedsam2.imaging.reading import read_mask, read_volume
from sslmedsam2.imaging.records import read_record, write_record
from sslmedsam2.inference.confidence import Calibration, logit
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.second_view import SURE_FROM
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.train.calibration import (
    Observation,
    add_calibration,
    fit,
    observe,
    patients_left_out,
)
from sslmedsam2.train.degradation import ORIGINAL, Scan

T2_COPIES, CT_COPIES = 4, 2
"""Degraded copies of each volume; a CT has several times the slices."""


def main() -> None:
    """Segment what is missing, fit, and report."""
    options = parser(__doc__)
    options.add_argument("--work-dir", type=Path, required=True, help="keeps the predictions")
    options.add_argument("--write", type=Path, help="model folder to write the calibration into")
    options.add_argument("--plot", type=Path, help="write a picture of estimate and true Dice")
    options.add_argument("--only-kept", action="store_true", help="predict nothing")
    given = options.parse_args()
    observations = list(kept(given.work_dir) if given.only_kept else observed(given.work_dir))
    calibration = fit(observations, sure_from=SURE_FROM)
    if given.write:
        add_calibration(given.write, calibration, folds=("all",))
    found = {"checkpoints": shipped_checkpoints(), **figures(observations, calibration)}
    if given.plot:
        plot(found["rows"], given.plot)
    report(found, given.json)


def kept(work_dir: Path) -> Iterator[Observation]:
    """Read the predictions of earlier calls."""
    for path in sorted(work_dir.glob("*.json")):
        yield from read_record(path, tuple[Observation, ...])


def observed(work_dir: Path) -> Iterator[Observation]:
    """Observe each volume, or read what an earlier call observed."""
    work_dir.mkdir(parents=True, exist_ok=True)
    spec = read_model_spec(ROOT / "weights" / "liver")
    segmenter = CanonicalSegmenter(spec, EngineOptions("cpu", "fast", sure_from=SURE_FROM))
    for patient, name, image, mask in volumes():
        path = work_dir / f"{patient}_{name}.json"
        if not path.is_file():
            n_degraded = CT_COPIES if name == "CT" else T2_COPIES
            found = observe(
                labelled(image, mask),
                patient=patient,
                name=name,
                segmenter=segmenter,
                n_degraded=n_degraded,
            )
            write_record(path, tuple(found))
        yield from read_record(path, tuple[Observation, ...])


def volumes() -> Iterator[tuple[str, str, Path, Path]]:
    """Yield patient, name, image and mask."""
    for folder, name in (("chaos_mr_t2", "T2"), ("btcv_ct", "CT"), ("totalseg_ct", "CT")):
        for image in sorted((REAL_DATA / folder).glob(f"*/{name}.nii.gz")):
            yield image.parent.name, name, image, image.with_name(f"mask_{image.name}")
    for image in sorted((REAL_DATA / "chaos_mr_t1").glob("*/T1_*.nii.gz")):
        name = image.name.removesuffix(".nii.gz")
        yield image.parent.name, name, image, image.with_name("approxmask_T1.nii.gz")


def labelled(image: Path, mask: Path) -> Scan:
    """Read an image as ``predict`` does, with its reference mask."""
    volume = to_canonical(read_volume(image))
    array, _ = window_if_hounsfield(volume.array_zyx)
    liver = apply_reorientation(read_mask(mask).array_zyx, volume.reorientation) > 0
    return Scan(
        np.ascontiguousarray(array, np.float32), np.ascontiguousarray(liver), volume.spacing_zyx_mm
    )


def figures(observations: list[Observation], calibration: Calibration) -> dict[str, Any]:
    """Return agreement and coverage, overall and by kind of volume."""
    left_out, covered = patients_left_out(observations)
    true = np.array([one.dice for one in observations])
    kinds = np.array([one.kind for one in observations])
    names = np.array([one.name for one in observations])
    groups = {
        "all": np.ones(len(true), bool),
        "undisturbed": kinds == ORIGINAL,
        **{f"contrast {name}": names == name for name in sorted(set(names))},
        **{f"copy {kind}": kinds == kind for kind in sorted(set(kinds) - {ORIGINAL})},
    }
    return {
        "volumes": calibration.volumes,
        "patients": calibration.patients,
        "groups": {name: group(left_out[at], true[at], covered[at]) for name, at in groups.items()},
        "rows": [
            {"patient": one.patient, "name": one.name, "kind": one.kind, "dice": round(d, 4)}
            | {"estimated": round(e, 4), "in_interval": bool(c)}
            for one, d, e, c in zip(observations, true, left_out, covered, strict=True)
        ],
        "calibration": {"intercept": calibration.intercept, "weights": calibration.weights},
    }


def group(left_out: np.ndarray, true: np.ndarray, covered: np.ndarray) -> dict[str, Any]:
    """Return figures of some volumes."""
    wanted = np.array([logit(dice) for dice in true])
    correlated = len(true) > 3
    return {
        "volumes": len(true),
        "mean_dice": round(float(true.mean()), 4),
        "spearman": round(float(stats.spearmanr(left_out, wanted)[0]), 3) if correlated else None,
        "mean_error": round(float(np.abs(left_out - true).mean()), 4),
        "coverage": round(float(covered.mean()), 3),
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the estimate of each mask, made without its patient, against its true Dice."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
    for axes, low in zip(panels, (0.0, 0.8), strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for words, marker, chosen in (
            ("degraded copy", "o", [row for row in rows if row["kind"] != ORIGINAL]),
            ("undisturbed volume", "^", [row for row in rows if row["kind"] == ORIGINAL]),
        ):
            axes.scatter(*_points(chosen), s=22, marker=marker, alpha=0.75, label=words)
        outside = [row for row in rows if not row["in_interval"]]
        axes.scatter(*_points(outside), s=70, facecolors="none", edgecolors="crimson",
                     label="true Dice outside the interval")  # fmt: skip
        axes.set(xlabel="true Dice", ylabel="estimated Dice", xlim=(low, 1), ylim=(low, 1),
                 xticks=np.linspace(low, 1, 5), yticks=np.linspace(low, 1, 5))  # fmt: skip
    panels[0].set_title("all masks", fontsize=10)
    panels[0].legend(loc="upper left", fontsize=8)
    panels[1].set_title("the corner from 0.8, enlarged", fontsize=10)
    figure.savefig(path, dpi=100)


def _points(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["dice"] for row in rows], [row["estimated"] for row in rows]


if __name__ == "__main__":
    main()
