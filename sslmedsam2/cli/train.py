"""The commands ``train`` and ``pretrain-sam2``."""

from __future__ import annotations

from typing import Any

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import (
    contrast_option,
    deterministic_option,
    device_option,
    gpus_option,
    label_option,
    licence_option,
    name_option,
    path_option,
    present_file_option,
    preset_option,
    sequence_map_option,
    training_data_option,
    work_dir_option,
)


@click.command(cls=ConfiguredCommand)
@path_option(
    "--data",
    "data_dir",
    required=True,
    help="Case folders with <SEQ>.nii.gz, mask_<SEQ>.nii.gz and optional organs_<SEQ>.nii.gz.",
)
@path_option(
    "--also",
    "also_dirs",
    multiple=True,
    help="More labelled data of the same layout: trained on in every fold, never scored.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.75,
    help="Share of patches from --data if --also is given.",
)
@work_dir_option
@click.option(
    "--folds",
    type=click.IntRange(0),
    default=2,
    help="Cross-validation folds before the final network: 0 (none), or 2 and more.",
)
@label_option
@sequence_map_option
@preset_option
@click.option(
    "--epochs",
    type=click.IntRange(1),
    help="Of each fold.  [default: compact and wide 28, resenc 100]",
)
@click.option(
    "--final-epochs",
    type=click.IntRange(1),
    help="Of the final network.  [default: compact and wide 18, resenc 60]",
)
@click.option(
    "--iterations-per-epoch",
    type=click.IntRange(1),
    help="[default: compact and wide 50, resenc 250]",
)
@contrast_option
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 0.1, min_open=True),
    default=1e-3,
    help="At the start; it falls to zero.",
)
@deterministic_option
@gpus_option
@device_option
@present_file_option(
    "--start",
    help="Initial checkpoint of every fold; it must not have been trained on these cases.",
)
@present_file_option(
    "--warm-start",
    help="Initial checkpoint of the final network.  [default: that of the first fold]",
)
@path_option(
    "--weights-out",
    "weights_dir",
    help="Freeze the final network into this folder, for predict --model.",
)
@name_option
@training_data_option
@licence_option
def train(**options: Any) -> int:
    """Train a model from labelled scans: cross-validation, then a final network on all cases."""
    from sslmedsam2.errors import ExitCode
    from sslmedsam2.inference.device import choose_device
    from sslmedsam2.nnunet.plans import PRESETS, default_preset
    from sslmedsam2.train.pipeline import TrainOptions
    from sslmedsam2.train.pipeline import train as run

    options["device"] = choose_device(options["device"])
    preset = PRESETS[options.pop("preset") or default_preset(options["device"])]
    schedule = preset.schedule
    options["epochs"] = options["epochs"] or schedule.fold_epochs
    options["final_epochs"] = options["final_epochs"] or schedule.final_epochs
    options["iterations_per_epoch"] = (
        options["iterations_per_epoch"] or schedule.iterations_per_epoch
    )
    scores = run(TrainOptions(**options, preset=preset))
    if scores is None:
        click.echo("stopped; run the same command again to go on")
        return ExitCode.INTERRUPTED
    for score in scores:
        click.echo(
            f"{score.case} {score.sequence}: Dice {score.dice:.4f}, "
            f"Hausdorff {score.hausdorff_mm:.1f} mm"
        )
    if scores:
        mean = sum(score.dice for score in scores) / len(scores)
        click.echo(f"mean Dice of {len(scores)} images by cross-validation: {mean:.4f}")
    return 0


@click.command(cls=ConfiguredCommand)
@work_dir_option
@path_option(
    "--output",
    "output_path",
    required=True,
    help="File for the finished network, *.safetensors, for pseudo-label --sam2.",
)
@click.option("--steps", type=click.IntRange(1), default=3800, help="Number of optimiser steps.")
@click.option(
    "--image-size",
    type=click.IntRange(64),
    default=128,
    help="Side of the slices, in pixels; a multiple of 32.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    help="Number of processes for each step; the number of CPU cores is fastest.",
)
@path_option(
    "--organs",
    "organs_dir",
    help="Labelled scans with maps of organs (organs_*); the liver is never a target.",
)
@click.option(
    "--organ-share",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Share of the steps that use these scans; the others use synthetic volumes.",
)
@present_file_option(
    "--start",
    "start_path",
    help="Compact SAM2 to start from (*.safetensors).  [default: random weights]",
)
@click.option("--seed", type=click.IntRange(0), default=0)
@device_option
def pretrain_sam2(**options: Any) -> None:
    """Train the compact SAM2, on synthetic volumes and, with --organs, on organs of scans."""
    from sslmedsam2.train.pretrain_sam2 import PretrainOptions
    from sslmedsam2.train.pretrain_sam2 import pretrain_sam2 as run

    path = run(PretrainOptions(**options))
    click.echo(f"wrote {path}; use it with pseudo-label --sam2 {path}")
