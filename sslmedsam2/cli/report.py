"""The command ``report``."""

from __future__ import annotations

from pathlib import Path

import click

from sslmedsam2.cli.config import ConfiguredCommand


@click.command(cls=ConfiguredCommand)
@click.option(
    "--run",
    "run_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="The output folder of predict.",
)
@click.option(
    "--input",
    "input_path",
    type=click.Path(path_type=Path),
    help="What predict was given as input; without it the page shows previews, no volumes.",
)
@click.option(
    "--references",
    type=click.Path(path_type=Path),
    help="Folder of reference masks, named as for evaluate; drawn and scored.",
)
@click.option(
    "--output",
    "output_dir",
    type=click.Path(path_type=Path),
    help="Where the page goes.  [default: report in the run's folder]",
)
@click.pass_context
def report(
    ctx: click.Context,
    run_dir: Path,
    input_path: Path | None,
    references: Path | None,
    output_dir: Path | None,
) -> None:
    """Make a page of a run: every result in a table, worst first, with its volume to look at.

    The page is index.html with two folders beside it. It opens by double click, without a network.
    Ends with 0 if all masks and images could be read, with 1 if some could not (the page says
    which), with 3 if there is no run.
    """
    from sslmedsam2.predict.page import ReportOptions
    from sslmedsam2.predict.page import report as run

    page = run(ReportOptions(run_dir, input_path, references, output_dir))
    shown = sum(entry.shown == "volumes" for entry in page.entries)
    click.echo(f"{page.index_path}: {len(page.entries)} series, {shown} with volumes to look at")
    ctx.exit(int(page.exit_code))
