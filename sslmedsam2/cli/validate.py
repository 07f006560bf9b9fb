"""The command ``validate``."""

from __future__ import annotations

from pathlib import Path

import click

from sslmedsam2.cli.config import ConfiguredCommand


@click.command(cls=ConfiguredCommand)
@click.option(
    "--input",
    "input_path",
    type=click.Path(path_type=Path),
    required=True,
    help="The input of predict.",
)
@click.option(
    "--output",
    "output_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="The output folder to check.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the lines to this file too."
)
@click.pass_context
def validate(
    ctx: click.Context, input_path: Path, output_dir: Path, json_path: Path | None
) -> None:
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
    ctx.exit(int(result.exit_code))
