"""Options with the same meaning in several commands."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from sslmedsam2.cli.config import load_table


class _Device(click.ParamType):
    """A device's name; whether it is there is for the command to say, once torch is loaded."""

    name = "auto|cpu|cuda|cuda:N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            self.fail("must be auto, cpu, cuda, or cuda:1 for the second GPU", param, ctx)
        return str(value)


def _one_folder(_ctx: click.Context, _param: click.Parameter, name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise click.BadParameter("must be the name of one folder")
    return name


DEVICE = _Device()
device_option = click.option(
    "--device",
    type=DEVICE,
    default="auto",
    show_default=True,
    help="auto: the first GPU if it works, else the CPU.",
)

preset_option = click.option(
    "--preset",
    type=click.Choice(["compact", "resenc-m", "resenc-l"]),
    help="Network: compact for a CPU, resenc-m for a GPU with 12 GB, resenc-l for 24 GB.  "
    "[default: compact on a CPU, resenc-m on a GPU]",
)


def _prepare_cublas(_ctx: click.Context, _param: click.Parameter, wanted: bool) -> bool:
    if wanted:
        # cuBLAS looks at it when it is first used in a process, which may be before the training.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return wanted


deterministic_option = click.option(
    "--deterministic",
    is_flag=True,
    callback=_prepare_cublas,
    help="Train deterministically on a GPU too; slower. On a CPU training always is.",
)
gpus_option = click.option(
    "--gpus",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of GPUs of this machine for each training.",
)
contrast_option = click.option(
    "--contrast-probability",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="Share of training patches with random contrast: high for a model that serves sequences "
    "without labels, low for one that serves labelled sequences only.",
)
label_option = click.option(
    "--label",
    type=click.IntRange(1, 65535),
    help="Value of the liver in masks that hold several.  [default: the only value above 0]",
)


def _sequence_map(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Any:
    from sslmedsam2.contract.sequence_map import parse_sequence_map

    return parse_sequence_map({} if path is None else load_table(path))


sequence_map_option = click.option(
    "--sequence-map",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_sequence_map,
    help="TOML or JSON file that says which sequence a file, a part of a name or a folder is.",
)
mode_option = click.option(
    "--mode",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="exact: the same result as nnU-Net; fast: only windows that contain liver.",
)
model_option = click.option(
    "--model",
    "model_dir",
    type=click.Path(path_type=Path),
    help="nnU-Net model folder.  [default: /opt/ml/model, then the included one]",
)
slug_option = click.option(
    "--output-slug",
    "slug",
    callback=_one_folder,
    default="liver-segmentation",
    show_default=True,
    help="Name of the output on grand-challenge.org: masks go to images/<slug>/.",
)
sam2_option = click.option(
    "--sam2",
    default="compact",
    show_default=True,
    help="compact (included), sam2.1-hiera-tiny or medsam2 (after weights fetch), or a path.",
)
name_option = click.option(
    "--name", default="liver", show_default=True, help="Name of the frozen model."
)
training_data_option = click.option(
    "--training-data", default="not stated", help="For the manifest: source of the training data."
)
licence_option = click.option(
    "--licence", default="not stated", help="For the manifest: licence of the weights."
)
