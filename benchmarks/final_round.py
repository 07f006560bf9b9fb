"""Which network should ship: one trained further on labels, or the last round of `retrain`?

Both go on from the network of a fold of `cross_validation.py` for the same number of iterations,
on its training volumes:

    labels   `train`, as the shipped weights are trained
    retrain  `retrain --method online`, one network on all volumes, which also learns from the
             T1 pair without its mask
    teacher  the same without few-shot masks: only the average of the network's weights teaches

They are scored on the volumes that the fold kept out. The figures of the T1 pair are of scans that
`retrain` saw without masks, and whose patient may be among those with a T2 mask.

    python benchmarks/final_round.py --work-dir WORK --fold-dir CROSS_VALIDATION/fold2 --arm labels
    python benchmarks/final_round.py --work-dir WORK --fold-dir CROSS_VALIDATION/fold2 --json FILE

Run again, it goes on in `--work-dir`. Without `--arm` it only sums up what is there.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from accuracy import means, model_spec, t1_pair
from common import parser, report, require_real_data
from cross_validation import CT, T2, kept_out, recipe, scored, trained

from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.imaging.records import write_record
from sslmedsam2.nnunet.plans import CompactPreset
from sslmedsam2.nnunet.trainer import TrainingSettings
from sslmedsam2.nnunet.training import (
    final_checkpoint,
    train_fold,
    trained_model_dir,
    worth_measuring,
)
from sslmedsam2.retrain.index import read_index
from sslmedsam2.retrain.pipeline import plan
from sslmedsam2.retrain.state import RetrainOptions, WorkDir
from sslmedsam2.retrain.train_round import online_settings
from sslmedsam2.train.pipeline import TrainOptions

ARMS = ("labels", "retrain", "teacher")
ITERATIONS_PER_EPOCH = 50
UNLABELLED = "chaos_mr_t1"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work-dir", type=Path, required=True)
    arguments.add_argument("--fold-dir", type=Path, required=True, help="of cross_validation.py")
    arguments.add_argument("--arm", choices=ARMS, action="append", default=[])
    arguments.add_argument("--epochs", type=int, default=20, help="of 50 iterations")
    arguments.add_argument("--learning-rate", type=float, default=1.5e-3)
    options = arguments.parse_args()
    held_out = kept_out(options.fold_dir)
    start = options.fold_dir / "work"
    write_figures(trained_model_dir(start), held_out, options.work_dir / "start.json")
    for arm in options.arm:
        work_dir = options.work_dir / arm
        since = time.time()
        usual = recipe(
            options.fold_dir,
            work_dir=work_dir,
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            warm_start=final_checkpoint(start, "all"),
        )
        model = trained(usual) if arm == "labels" else retrain(options.fold_dir, usual)
        hours = round((time.time() - since) / 3600, 2)
        more = {"learning_rate": options.learning_rate, "hours": hours}
        write_figures(model, held_out, options.work_dir / f"{arm}.json", **more)
    report(summary(options.work_dir), options.json)


def retrain(fold_dir: Path, usual: TrainOptions) -> Path:
    """Train as `retrain --method online` does; returns the model folder."""
    work_dir, epochs = usual.work_dir, usual.final_epochs
    data = work_dir / "data"
    for case in (
        *(fold_dir / T2).iterdir(),
        *(fold_dir / CT).iterdir(),
        *require_real_data("totalseg_ct").iterdir(),
    ):
        link = data / "labelled" / case.name
        if case.is_dir() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(case.resolve())
    for image in require_real_data(UNLABELLED).glob("*/T1_*.nii.gz"):
        copy = data / "unlabelled" / image.parent.name / image.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, copy)
    options = RetrainOptions(
        data / "labelled",
        data / "unlabelled",
        work_dir,
        method="online",
        preset=CompactPreset(),
        device="cpu",
    )
    work = WorkDir(work_dir)
    if plan(options, StopRequest()) is None:
        raise SystemExit("stopped; run the same command again to go on")
    online = online_settings(read_index(work))
    settings = TrainingSettings(
        epochs=epochs,
        iterations_per_epoch=ITERATIONS_PER_EPOCH,
        contrast_probability=usual.contrast_probability,
        learning_rate=usual.learning_rate,
        measure_cpu=worth_measuring(epochs * ITERATIONS_PER_EPOCH),
        online=replace(online, hand_over=0.0) if work_dir.name == "teacher" else online,
    )
    round_dir = work.round(1).path
    train_fold(round_dir, fold="all", settings=settings, device="cpu", warm_start=usual.warm_start)
    return trained_model_dir(round_dir)


def write_figures(model: Path, held_out: dict[str, list[str]], path: Path, **more: Any) -> None:
    """Score a network, unless it has been done."""
    if not path.is_file():
        figures = scored(model, held_out)
        figures["t1"] = t1_pair(model_spec(model))
        write_record(path, {**more, **figures})


def summary(work_dir: Path) -> dict[str, Any]:
    """Return the means of each network that is there, by kind of volume."""
    found: dict[str, Any] = {}
    for name in ("start", *ARMS):
        path = work_dir / f"{name}.json"
        if path.is_file():
            figures = json.loads(path.read_text())
            kinds = {kind: rows for kind, rows in figures.items() if isinstance(rows, list)}
            found[name] = {
                **{key: value for key, value in figures.items() if key not in kinds},
                **{kind: {**means(rows), "cases": rows} for kind, rows in kinds.items()},
            }
    return found


if __name__ == "__main__":
    main()
