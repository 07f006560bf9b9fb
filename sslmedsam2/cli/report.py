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
    help="The output folder of predict or of pseudo-label.",
)
@click.option(
    "--input",
    "input_path",
    type=click.Path(path_type=Path),
    help="The input of predict, the queries of pseudo-label; without it only previews are shown.",
)
@click.option(
    "--references",
    type=click.Path(path_type=Path),
    help="Folder of reference masks, named as for evaluate; shown and scored.",
)
@click.option(
    "--output",
    "output_dir",
    type=click.Path(path_type=Path),
    help="Folder for the page.  [default: report in the folder of --run]",
)
@click.pass_context
def report(
    ctx: click.Context,
    run_dir: Path,
    input_path: Path | None,
    references: Path | None,
    output_dir: Path | None,
) -> None:
    """Write the results page of a run: a table of all scans, and a view of each.

    The page is index.html with two folders beside it. It opens in a browser, without a network or
    a server. Exit code 0: all masks and images were read; 1: some were not (the page says which);
    3: there is no run.
    """
    from sslmedsam2.contract.outputs import find_records, report_path
    from sslmedsam2.predict import page as of_predict
    from sslmedsam2.pseudo_label import page as of_pseudo_label

    is_pseudo = not report_path(run_dir).exists() and bool(find_records(run_dir))
    command = of_pseudo_label if is_pseudo else of_predict
    options = of_predict.ReportOptions(run_dir, input_path, references, output_dir)
    page = command.report(options)
    shown = sum(entry.shown == "volumes" for entry in page.entries)
    click.echo(f"{page.index_path}: {len(page.entries)} series, {shown} with volumes to look at")
    ctx.exit(int(page.exit_code))
