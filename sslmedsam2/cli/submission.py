"""The commands ``evaluate``, ``validate`` and ``package``: masks against references and rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import label_option, path_option, sequence_map_option


@click.command(cls=ConfiguredCommand)
@path_option(
    "--predictions",
    required=True,
    help="Folder with LiSeg_pred/<Case>/<MOD>_pred.nii.gz or <name>_liver.nii.gz.",
)
@path_option(
    "--references",
    required=True,
    help="Folder with <Case>/mask_<MOD>.nii.gz, <Case>/<MOD>.nii.gz or <name>.nii.gz.",
)
@label_option
@sequence_map_option
@path_option("--json", "json_path", help="Write rows and means to this file.")
@path_option("--csv", "csv_path", help="Write the rows to this file.")
def evaluate(*, json_path: Path | None, csv_path: Path | None, **options: Any) -> int:
    """Score masks against reference masks.

    Prints Dice, the full Hausdorff distance, HD95, the average symmetric surface distance and
    the volume error of each case, and their means by sequence and vendor. Exit code 0: every
    reference mask was compared with a mask that is not empty; 1: some were not; 3: nothing to
    compare.
    """
    from sslmedsam2.submission import evaluate as pipeline
    from sslmedsam2.submission.tables import format_tables

    result = pipeline.evaluate(**options)
    pipeline.write_results(result, json_path=json_path, csv_path=csv_path)
    click.echo(format_tables(result.rows, result.summaries))
    for path in filter(None, (json_path, csv_path)):
        click.echo(f"scores in {path}")
    return result.exit_code


@click.command(cls=ConfiguredCommand)
@path_option("--input", "input_path", required=True, help="The input of predict.")
@path_option("--output", "output_dir", required=True, help="The output folder to check.")
@path_option("--json", "json_path", help="Write the lines to this file too.")
def validate(*, input_path: Path, output_dir: Path, json_path: Path | None) -> int:
    """Check masks against the rules of the challenge.

    PASS and FAIL lines check names, values, voxel type, shape and position of the masks. NOTE
    lines are for information. Exit code 0: no FAIL line; 1: at least one; 3: nothing to check.
    """
    from sslmedsam2.submission import validate as pipeline

    result = pipeline.validate(input_path=input_path, output_dir=output_dir)
    if json_path:
        pipeline.write_json(result, json_path)
    for check in result.checks:
        click.echo(f"{check.status}  {check.subject}: {check.detail} [{check.rule}]")
    click.echo(f"{len(result.checks)} checks, {result.failures} failed")
    return result.exit_code


@click.command(cls=ConfiguredCommand)
@path_option("--output", "output_dir", required=True, help="The output folder of predict.")
@path_option(
    "--zip",
    "zip_path",
    help="File to write.  [default: CARE-Liver-Submission.zip in the output folder]",
)
@path_option("--description", help="Text file to add as Method_Description.md.")
@click.option("--with-fallbacks", is_flag=True, help="Also pack masks that are guesses.")
def package(*, output_dir: Path, zip_path: Path | None, **options: Any) -> None:
    """Pack masks as a submission zip.

    It holds LiSeg_pred and, if sequences other than GED4 were segmented, the list of them.
    """
    from sslmedsam2.submission import package as pipeline

    target = zip_path or output_dir / pipeline.DEFAULT_ZIP_NAME
    plan = pipeline.package(output_dir=output_dir, zip_path=target, **options)
    click.echo(f"{target}: {len(plan.masks)} masks")
