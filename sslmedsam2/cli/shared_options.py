"""Options that mean the same to several commands."""

from __future__ import annotations

from pathlib import Path

import click

device_option = click.option(
    "--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True
)

preset_option = click.option(
    "--preset",
    type=click.Choice(["compact", "resenc-m", "resenc-l"]),
    help="Size of the network: for a CPU, a GPU of 12 GB, one of 24 GB.  [default: compact on a "
    "CPU, resenc-m on a GPU]",
)
deterministic_option = click.option(
    "--deterministic",
    is_flag=True,
    help="Same data, same weights also on a GPU, which takes longer; a CPU always does so.",
)
gpus_option = click.option(
    "--gpus",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="GPUs of this machine that share each training.",
)
contrast_option = click.option(
    "--contrast-probability",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="Part of the patches repainted with a random contrast: high to serve sequences without "
    "labels, low to be precise on those that have some.",
)
model_option = click.option(
    "--model",
    "model_dir",
    type=click.Path(path_type=Path),
    help="nnU-Net model folder.  [default: /opt/ml/model, then the shipped one]",
)
sam2_option = click.option(
    "--sam2",
    default="compact",
    show_default=True,
    help="The shipped 'compact', 'sam2.1-hiera-tiny' or 'medsam2' after weights fetch, or a path.",
)
name_option = click.option(
    "--name", default="liver", show_default=True, help="Name of the frozen model."
)
training_data_option = click.option(
    "--training-data", default="not stated", help="For the manifest: whose data, and where from."
)
licence_option = click.option(
    "--licence", default="not stated", help="For the manifest: terms of the weights."
)
