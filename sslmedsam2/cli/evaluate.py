"""The command ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import label_option, sequence_map_option


@click.command(cls=ConfiguredCommand)
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with LiSeg_pred/<Case>/<MOD>_pred.nii.gz or <name>_liver.nii.gz.",
)
@click.option(
    "--references",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with <Case>/mask_<MOD>.nii.gz, <Case>/<MOD>.nii.gz or <name>.nii.gz.",
)
@label_option
@sequence_map_option
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    help="Write rows and means to this file.",
)
@click.option(
    "--csv", "csv_path", type=click.Path(path_type=Path), help="Write the rows to this file."
)
@click.pass_context
def evaluate(
    ctx: click.Context,
    predictions: Path,
    references: Path,
    label: int | None,
    sequence_map: Any,
    json_path: Path | None,
    csv_path: Path | None,
) -> None:
    """Score masks against reference masks.

    Prints Dice, the full Hausdorff distance, HD95, the average symmetric surface distance and
    the volume error of each case, and their means by sequence and vendor (in-distribution: A,
    B1, B2). Exit code 0: every reference mask was compared with a mask that is not empty; 1: some
    were not; 3: nothing to compare.
    """
    from sslmedsam2.submission import evaluate as pipeline
    from sslmedsam2.submission.tables import format_tables

    result = pipeline.evaluate(
        predictions=predictions, references=references, label=label, sequence_map=sequence_map
    )
    pipeline.write_results(result, json_path=json_path, csv_path=csv_path)
    click.echo(format_tables(result.rows, result.summaries))
    ctx.exit(int(result.exit_code))
