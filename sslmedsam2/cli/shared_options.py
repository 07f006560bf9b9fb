"""Options with the same meaning in several commands."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import click

from sslmedsam2.cli.config import load_table
from sslmedsam2.inference.device import DEVICE_PATTERN

path_option = partial(click.option, type=click.Path(path_type=Path))
folder_option = partial(click.option, type=click.Path(file_okay=False, path_type=Path))
present_file_option = partial(
    click.option, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)


class _Device(click.ParamType):
    """The name of a device; the command checks whether it exists, once torch is loaded."""

    name = "auto|cpu|cuda|cuda:N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not DEVICE_PATTERN.fullmatch(value):
            self.fail("must be auto, cpu, cuda, or cuda:1 for the second GPU", param, ctx)
        return str(value)


def _one_folder(_ctx: click.Context, _param: click.Parameter, name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise click.BadParameter("must be the name of one folder")
    return name


def _prepare_cublas(_ctx: click.Context, _param: click.Parameter, wanted: bool) -> bool:
    if wanted:
        # cuBLAS looks at it when it is first used in a process, which may be before the training.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return wanted


def _sequence_map(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Any:
    from sslmedsam2.contract.sequence_map import parse_sequence_map

    return parse_sequence_map({} if path is None else load_table(path))


def _sequences(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Any:
    from sslmedsam2.contract.names import parse_sequence_list

    return None if text is None else parse_sequence_list(text)


DEVICE = _Device()
device_option = click.option(
    "--device", type=DEVICE, default="auto", help="auto: the first GPU if it works, else the CPU."
)
preset_option = click.option(
    "--preset",
    type=click.Choice(["compact", "wide", "resenc-m", "resenc-l"]),
    help="Network: compact for a CPU; wide, the same with twice the features, which takes twice as "
    "long; resenc-m for a GPU with 12 GB, resenc-l for 24 GB.  "
    "[default: compact on a CPU, resenc-m on a GPU]",
)
deterministic_option = click.option(
    "--deterministic",
    is_flag=True,
    callback=_prepare_cublas,
    help="Give identical weights each time on the same hardware and software; slower.",
)
gpus_option = click.option(
    "--gpus",
    type=click.IntRange(1),
    default=1,
    help="Number of GPUs of this machine for each training.",
)
contrast_option = click.option(
    "--contrast-probability",
    type=click.FloatRange(0, 1),
    default=0.7,
    help="Share of training patches with random contrast: high for a model that serves sequences "
    "without labels, low for one that serves labelled sequences only.",
)
label_option = click.option(
    "--label",
    type=click.IntRange(1, 65535),
    help="Value of the liver in masks that hold several.  [default: the only value above 0]",
)
sequences_option = partial(click.option, "--sequences", callback=_sequences)
sequence_map_option = present_file_option(
    "--sequence-map",
    callback=_sequence_map,
    help="TOML or JSON file that says which sequence a file, a part of a name or a folder is.",
)
dicom_sequence_map_option = present_file_option(
    "--sequence-map",
    callback=_sequence_map,
    help="TOML or JSON file that corrects the sequences of DICOM series and of files.",
)
mode_option = click.option(
    "--mode",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    help="exact: all windows, as nnU-Net; fast: only windows that contain liver.",
)
model_option = path_option(
    "--model",
    "model_dir",
    help="Model folder, or folder of models with manifest.json.  [default: /opt/ml/model, then the"
    " included ones]",
)
slug_option = click.option(
    "--output-slug",
    "slug",
    callback=_one_folder,
    default="liver-segmentation",
    help="Name of the output on grand-challenge.org: masks go to images/<slug>/.",
)
sam2_option = click.option(
    "--sam2",
    default="compact",
    help="compact (included), sam2.1-hiera-tiny or medsam2 (after weights fetch), or a path.",
)
resume_option = click.option(
    "--resume", is_flag=True, help="Keep complete results of an earlier run."
)
work_dir_option = folder_option(
    "--work-dir",
    required=True,
    help="Folder for all intermediate files; the same command continues after a stop.",
)
name_option = click.option("--name", default="liver", help="Name of the frozen model.")
training_data_option = click.option(
    "--training-data",
    default="not stated",
    show_default=False,
    help="For the manifest: source of the training data.",
)
licence_option = click.option(
    "--licence",
    default="not stated",
    show_default=False,
    help="For the manifest: licence of the weights.",
)
