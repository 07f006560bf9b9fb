"""Accuracy of a training on volumes that it never saw: cross-validation over T2 and CT.

Fold K of 4 keeps every fourth volume of `chaos_mr_t2` and of `btcv_ct` out, from the K-th on. It
trains on the others and on `totalseg_ct`, from random weights and as the shipped weights are
trained. Then it scores the volumes that were kept out, T2 also with inverted contrast, and the T1
pair if its patient is among them.

    python benchmarks/cross_validation.py --work-dir WORK --fold 1
    python benchmarks/cross_validation.py --work-dir WORK --json FILE

The smaller network that shipped before is `--preset compact --organ-weight 0`.
Run again, it goes on in `--work-dir`. Without `--fold` it only sums up the folds that are there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from accuracy import both_contrasts, labelled, means, model_spec, score, t1_pair
from common import parser, report, require_real_data

from sslmedsam2.imaging.records import write_record
from sslmedsam2.nnunet.plans import PRESETS, Preset
from sslmedsam2.nnunet.trainer import LiverTrainer, TrainingSettings
from sslmedsam2.nnunet.training import trained_model_dir
from sslmedsam2.train.pipeline import TrainOptions, train

FOLDS = 4
T2, CT = "chaos_mr_t2", "btcv_ct"
T1_PATIENT = "chaos01"
RECIPE = ("epochs", "organ_weight", "preset")
"""Options that decide how a fold is trained."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work-dir", type=Path, required=True)
    arguments.add_argument("--fold", type=int, choices=range(FOLDS), action="append", default=[])
    arguments.add_argument("--epochs", type=int, default=125, help="of 50 iterations")
    arguments.add_argument("--preset", choices=PRESETS, default="wide")
    arguments.add_argument("--organ-weight", type=float, default=TrainingSettings.organ_weight)
    options = arguments.parse_args()
    change_settings(organ_weight=options.organ_weight)
    for fold in options.fold:
        fold_dir = options.work_dir / f"fold{fold}"
        done = fold_dir / "figures.json"
        how_trained = {key: getattr(options, key) for key in RECIPE}
        if done.is_file():
            found = json.loads(done.read_text())
            if {key: found[key] for key in how_trained} != how_trained:
                raise SystemExit(f"{done} is of another recipe: choose another --work-dir")
        else:
            held_out = split(fold, fold_dir)
            preset = PRESETS[options.preset]
            how = recipe(fold_dir, work_dir=fold_dir / "work", epochs=options.epochs, preset=preset)
            model = trained(how)
            write_record(done, {**how_trained, **scored(model, held_out)})
    report(summary(options.work_dir), options.json)


def change_settings(**changes: Any) -> None:
    """Make all trainings of this process differ from the recipe."""
    usual = LiverTrainer.use

    def use(self: LiverTrainer, settings: TrainingSettings) -> None:
        usual(self, replace(settings, **changes))

    LiverTrainer.use = use  # type: ignore[method-assign]


def split(fold: int, fold_dir: Path) -> dict[str, list[str]]:
    """Link the training volumes of a fold into its folder; return the names of the others."""
    held_out = {}
    for name in (T2, CT):
        cases = sorted(p for p in require_real_data(name).iterdir() if p.is_dir())
        held_out[name] = [case.name for case in cases[fold::FOLDS]]
        for case in cases:
            link = fold_dir / name / case.name
            if case.name not in held_out[name] and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(case)
    return held_out


def kept_out(fold_dir: Path) -> dict[str, list[str]]:
    """Return the names of the volumes that are not linked in a fold's folder."""
    return {
        name: [
            case.name
            for case in sorted(require_real_data(name).iterdir())
            if case.is_dir() and not (fold_dir / name / case.name).is_symlink()
        ]
        for name in (T2, CT)
    }


def recipe(
    fold_dir: Path,
    *,
    work_dir: Path,
    epochs: int,
    learning_rate: float = 1.5e-3,
    warm_start: Path | None = None,
    preset: Preset = PRESETS["compact"],
) -> TrainOptions:
    """Return how to train on the linked volumes."""
    return TrainOptions(
        fold_dir / T2,
        work_dir,
        also_dirs=(fold_dir / CT, require_real_data("totalseg_ct")),
        share=0.5,
        folds=0,
        final_epochs=epochs,
        contrast_probability=0.5,
        learning_rate=learning_rate,
        warm_start=warm_start,
        preset=preset,
    )


def trained(options: TrainOptions) -> Path:
    """Train, or go on, and return the model folder."""
    if train(options) is None:
        raise SystemExit("stopped; run the same command again to go on")
    return trained_model_dir(options.work_dir)


def scored(model: Path, held_out: dict[str, list[str]]) -> dict[str, Any]:
    """Score a network on the volumes that it never saw, by kind."""
    spec = model_spec(model)
    return {
        **both_contrasts(spec, labelled(T2, only=held_out[T2])),
        "ct": score(spec, labelled(CT, only=held_out[CT])),
        "t1": t1_pair(spec) if T1_PATIENT in held_out[T2] else [],
    }


def summary(work_dir: Path) -> dict[str, Any]:
    """Return the means over all volumes of the folds that are done, by kind."""
    paths = sorted(work_dir.glob("fold*/figures.json"))
    folds = {path.parent.name: json.loads(path.read_text()) for path in paths}
    found: dict[str, Any] = {}
    for kind in ("t2", "t2_inverted", "ct", "t1"):
        rows = [{**row, "fold": fold} for fold, of in folds.items() for row in of.get(kind, ())]
        if rows:
            found[kind] = {**means(rows), "volumes": len(rows), "cases": rows}
    recipes = {key: {fold: of[key] for fold, of in folds.items()} for key in RECIPE}
    return {**recipes, **found}


if __name__ == "__main__":
    main()
