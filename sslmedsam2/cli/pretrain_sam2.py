"""The command ``pretrain-sam2``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import device_option


@click.command(cls=ConfiguredCommand)
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for all intermediate files; the same command continues after a stop.",
)
@click.option(
    "--output",
    "output_path",
    type=click.Path(path_type=Path),
    required=True,
    help="File for the finished network, *.safetensors, for pseudo-label --sam2.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=3800,
    show_default=True,
    help="Number of optimiser steps.",
)
@click.option(
    "--image-size",
    type=click.IntRange(64),
    default=128,
    show_default=True,
    help="Side of the slices, in pixels; a multiple of 32.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of processes for each step; the number of CPU cores is fastest.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@device_option
def pretrain_sam2(**options: Any) -> None:
    """Train the compact SAM2 from scratch, on synthetic volumes only."""
    from sslmedsam2.train.pretrain_sam2 import PretrainOptions
    from sslmedsam2.train.pretrain_sam2 import pretrain_sam2 as run

    path = run(PretrainOptions(**options))
    click.echo(f"wrote {path}; use it with pseudo-label --sam2 {path}")
