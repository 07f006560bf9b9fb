"""How well the estimated Dice agrees with the true one, and how often its interval holds it.

Labelled volumes of ``../shared/data`` and copies of them that are degraded on purpose, segmented in
``--mode fast``. The calibration of the shipped weights is fitted, as that of ``train``, to volumes
that the network never saw: those that a fold of `cross_validation.py` kept out, segmented by the
network of the fold, and the T1 pair, segmented by the shipped weights. Fit and interval are judged
by patients that were left out. For comparison, the calibration is also applied to volumes that the
shipped weights were trained on. Each prediction is kept in ``--work-dir``, so that the next call
goes on from there.

    python benchmarks/confidence.py --work-dir WORK --fold-dir CROSS_VALIDATION/fold2 \\
        --fold-dir CROSS_VALIDATION/fold3 --json benchmarks/results/confidence.json
    ... --write weights/liver
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import model_spec
from common import ROOT, parser, report, require_real_data, shipped_checkpoints
from cross_validation import CT, T2, kept_out
from scipy import stats

from sslmedsam2.imaging.intensity import window_if_hounsfield
from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical
from sslmedsam2.imaging.reading import read_mask, read_volume
from sslmedsam2.imaging.records import read_record, write_record
from sslmedsam2.inference.confidence import Calibration, logit
from sslmedsam2.inference.second_view import SURE_FROM
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.nnunet.training import trained_model_dir
from sslmedsam2.train.calibration import (
    Observation,
    add_calibration,
    fit,
    observe,
    patients_left_out,
)
from sslmedsam2.train.degradation import ORIGINAL, Scan

UNSEEN_COPIES = {"T2": 8, "T1": 8, "CT": 4}
TRAINED_COPIES = {"T2": 2, "CT": 1}
"""Degraded copies of each volume; a CT has several times the slices."""
T1 = "chaos_mr_t1"


@dataclass(frozen=True)
class LabelledVolume:
    """An image with its reference mask; ``name`` begins with the contrast."""

    patient: str
    name: str
    image: Path
    mask: Path


def main() -> None:
    """Segment what is missing, fit, and report."""
    options = parser(__doc__)
    options.add_argument("--work-dir", type=Path, required=True, help="keeps the predictions")
    options.add_argument("--fold-dir", type=Path, action="append", required=True)
    options.add_argument("--write", type=Path, help="model folder to write the calibration into")
    options.add_argument("--plot", type=Path, help="write a picture of estimate and true Dice")
    given = options.parse_args()
    shipped = given.work_dir / "shipped"
    unseen = list(observed(shipped, ROOT / "weights", t1_volumes(), UNSEEN_COPIES))
    for fold_dir in given.fold_dir:
        names = {name for of_kind in kept_out(fold_dir).values() for name in of_kind}
        chosen = [one for one in volumes() if one.patient in names]
        model = trained_model_dir(fold_dir / "work")
        unseen += observed(given.work_dir / fold_dir.name, model, chosen, UNSEEN_COPIES)
    trained_on = list(observed(shipped, ROOT / "weights", volumes(), TRAINED_COPIES))
    calibration = fit(unseen, sure_from=SURE_FROM)
    if given.write:
        add_calibration(given.write, calibration, folds=("all",))
    found = {
        "checkpoints": shipped_checkpoints(),
        "folds": [fold_dir.name for fold_dir in given.fold_dir],
        **figures(unseen, calibration),
    }
    found["groups"]["trained on"] = applied(calibration, trained_on)
    if given.plot:
        plot(found["rows"], given.plot)
    report(found, given.json)


def observed(
    work_dir: Path, model: Path, chosen: Iterable[LabelledVolume], copies: Mapping[str, int]
) -> Iterator[Observation]:
    """Observe each volume, or read what an earlier call observed."""
    work_dir.mkdir(parents=True, exist_ok=True)
    segmenter = CanonicalSegmenter(
        model_spec(model), EngineOptions("cpu", "fast", sure_from=SURE_FROM)
    )
    for one in chosen:
        path = work_dir / f"{one.patient}_{one.name}.json"
        if not path.is_file():
            found = observe(
                labelled(one.image, one.mask),
                patient=one.patient,
                name=one.name,
                segmenter=segmenter,
                n_degraded=copies[one.name[:2]],
            )
            write_record(path, tuple(found))
        yield from read_record(path, tuple[Observation, ...])


def volumes() -> Iterator[LabelledVolume]:
    """Yield T2 and CT, which the shipped weights were trained on."""
    for folder, name in ((T2, "T2"), (CT, "CT"), ("totalseg_ct", "CT")):
        for image in sorted(require_real_data(folder).glob(f"*/{name}.nii.gz")):
            mask = image.with_name(f"mask_{image.name}")
            yield LabelledVolume(image.parent.name, name, image, mask)


def t1_volumes() -> Iterator[LabelledVolume]:
    """Yield the T1 pair."""
    for image in sorted(require_real_data(T1).glob("*/T1_*.nii.gz")):
        name, mask = image.name.removesuffix(".nii.gz"), image.with_name("approxmask_T1.nii.gz")
        yield LabelledVolume(image.parent.name, name, image, mask)


def labelled(image: Path, mask: Path) -> Scan:
    """Read an image as ``predict`` does, with its reference mask."""
    volume = to_canonical(read_volume(image))
    array, _ = window_if_hounsfield(volume.array_zyx)
    liver = apply_reorientation(read_mask(mask).array_zyx, volume.reorientation) > 0
    return Scan(
        np.ascontiguousarray(array, np.float32), np.ascontiguousarray(liver), volume.spacing_zyx_mm
    )


def figures(observations: Sequence[Observation], calibration: Calibration) -> dict[str, Any]:
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


def applied(calibration: Calibration, observations: Sequence[Observation]) -> dict[str, Any]:
    """Return the figures of a calibration on volumes that it was not fitted to."""
    found = [calibration.estimate(one.evidence) for one in observations]
    true = np.array([one.dice for one in observations])
    low, high = np.array([one.interval for one in found]).T
    return group(np.array([one.dice for one in found]), true, (low <= true) & (true <= high))


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
