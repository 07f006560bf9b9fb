"""Choices of the training, on volumes that the network never saw.

Each choice continues the same network, a fold of `cross_validation.py` at its end, by a short
training with the learning rate falling to zero, and is scored on the volumes that the fold kept
out.

    python benchmarks/training_choices.py --work-dir WORK --fold 1 --choice "as before"
    python benchmarks/training_choices.py --work-dir WORK --fold 1 --json FILE

With `--from-start` a choice is a whole training of the fold from random weights instead, or with
`--warm-start` from the weights of a checkpoint.

Run again, it goes on in `--work-dir`. Without `--choice` it only sums up what is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accuracy import means
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from common import parser, report
from cross_validation import FOLDS, change_settings, recipe, scored, split, trained
from long_lobes import LongLobeTransform

from sslmedsam2.imaging.records import write_record
from sslmedsam2.nnunet import augmentation
from sslmedsam2.nnunet.plans import PRESETS, CompactPreset, Preset
from sslmedsam2.nnunet.trainer import LiverTrainer, TrainingSettings
from sslmedsam2.nnunet.training import final_checkpoint

EPOCHS = 25
LEARNING_RATE = 1e-3
EPOCHS_FROM_START = 125
LEARNING_RATE_FROM_START = 1.5e-3
CONTINUED, FROM_START = "choices", "choices_from_start"


@dataclass(frozen=True)
class Choice:
    """What differs from the recipe.

    Attributes
    ----------
    settings
        Changes to `TrainingSettings`.
    forced_liver
        A third of the patches is centred on a voxel of liver. nnU-Net's default forces the last
        third of each batch, which is none in a batch of one.
    geometry
        Changes to the arguments of `SpatialTransform`.
    long_lobes
        Also lengthen the liver in some patches.
    preset
        Size of the network and of its patches; to continue a fold it must be that of the fold.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    forced_liver: bool = False
    scanner_effects: bool = True
    geometry: Mapping[str, Any] = field(default_factory=dict)
    long_lobes: RandomTransform | None = None
    preset: Preset = PRESETS["compact"]


LONG_LOBES = RandomTransform(LongLobeTransform(longest=0.3, widest=0.09), 0.25)

CHOICES = {
    "as before": Choice(),
    "random contrast in 15 % of the patches": Choice({"contrast_probability": 0.15}),
    "random contrast in 15 %, no scanner effects": Choice(
        {"contrast_probability": 0.15}, scanner_effects=False
    ),
    "a third of the patches centred on liver": Choice(forced_liver=True),
    "no mirrored patches": Choice({"mirror_probability": 0.0}),
    "elastic deformation of half of the patches": Choice(geometry={"p_elastic_deform": 0.5}),
    "long lobes in a quarter of the patches": Choice(long_lobes=LONG_LOBES),
    "long lobes in 40 % of the patches": Choice(
        long_lobes=RandomTransform(LongLobeTransform(longest=0.4, widest=0.12), 0.4)
    ),
    "twice the features at the three finest resolutions": Choice(preset=PRESETS["wide"]),
    "twice the features, long lobes in a quarter of the patches": Choice(
        long_lobes=LONG_LOBES, preset=PRESETS["wide"]
    ),
    "wide, as before": Choice(preset=PRESETS["wide"]),
    "wide, random contrast in 15 % of the patches": Choice(
        {"contrast_probability": 0.15}, preset=PRESETS["wide"]
    ),
    "grid of 5 x 2.5 x 2.5 mm": Choice(
        preset=CompactPreset(spacing_zyx_mm=(5.0, 2.5, 2.5), patch_zyx=(40, 112, 112))
    ),
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work-dir", type=Path, required=True)
    arguments.add_argument("--fold", type=int, choices=range(FOLDS), required=True)
    arguments.add_argument("--choice", choices=CHOICES)
    arguments.add_argument("--from-start", action="store_true")
    arguments.add_argument("--epochs", type=int, help="of 50 iterations  [default: 25, or 125]")
    arguments.add_argument("--learning-rate", type=float, help="[default: 1e-3, or 1.5e-3]")
    arguments.add_argument("--warm-start", type=Path, help="checkpoint for --from-start")
    options = arguments.parse_args()
    if options.warm_start and not options.from_start:
        arguments.error("--warm-start needs --from-start")
    fold_dir = options.work_dir / f"fold{options.fold}"
    if options.choice is not None:
        if options.from_start:
            length, rate, start = EPOCHS_FROM_START, LEARNING_RATE_FROM_START, options.warm_start
        else:
            length, rate = EPOCHS, LEARNING_RATE
            start = final_checkpoint(fold_dir / "work", "all")
        run(
            fold_dir,
            options.fold,
            CHOICES[options.choice],
            work_dir=fold_dir / (FROM_START if options.from_start else CONTINUED) / options.choice,
            epochs=options.epochs or length,
            learning_rate=options.learning_rate or rate,
            warm_start=start,
        )
    report(summary(fold_dir), options.json)


def run(
    fold_dir: Path,
    fold: int,
    choice: Choice,
    *,
    work_dir: Path,
    epochs: int,
    learning_rate: float,
    warm_start: Path | None,
) -> None:
    """Train and score a choice, unless that is done."""
    done = work_dir / "figures.json"
    if done.is_file():
        return
    held_out = split(fold, fold_dir)
    arrange(choice)
    how = recipe(
        fold_dir,
        work_dir=work_dir,
        epochs=epochs,
        learning_rate=learning_rate,
        warm_start=warm_start,
        preset=choice.preset,
    )
    write_record(done, scored(trained(how), held_out))


def arrange(choice: Choice) -> None:
    """Make all trainings of this process follow a choice."""
    change_settings(**choice.settings)
    usual = LiverTrainer.use

    def use(self: Any, settings: TrainingSettings) -> None:
        usual(self, settings)
        self.probabilistic_oversampling = choice.forced_liver

    LiverTrainer.use = use
    if not choice.scanner_effects:
        augmentation._scanner_effects = list
    if choice.long_lobes is not None:
        geometry, longer = augmentation._geometry, choice.long_lobes
        augmentation._geometry = lambda *args, **kwargs: ComposeTransforms(
            [geometry(*args, **kwargs), longer]
        )
    spatial: Any = augmentation.SpatialTransform
    augmentation.SpatialTransform = lambda *args, **kwargs: spatial(
        *args, **{**kwargs, **choice.geometry}
    )


def summary(fold_dir: Path) -> dict[str, Any]:
    """Return the means of what is done, and of the network that all continue."""
    paths = {"the network before": fold_dir / "figures.json"}
    paths |= {name: fold_dir / CONTINUED / name / "figures.json" for name in CHOICES}
    paths |= {
        f"from the start: {name}": fold_dir / FROM_START / name / "figures.json" for name in CHOICES
    }
    found = {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}
    kinds = ("t2", "t2_inverted", "ct")
    return {name: {kind: means(of[kind]) for kind in kinds} for name, of in found.items()}


if __name__ == "__main__":
    main()
