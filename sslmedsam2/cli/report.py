"""The command ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import path_option


@click.command(cls=ConfiguredCommand)
@path_option(
    "--run", "run_dir", required=True, help="The output folder of predict or of pseudo-label."
)
@path_option(
    "--input",
    "input_path",
    help="The input of predict, the queries of pseudo-label; without it only previews are shown.",
)
@path_option(
    "--references", help="Folder of reference masks, named as for evaluate; shown and scored."
)
@path_option(
    "--output", "output_dir", help="Folder for the page.  [default: report in the folder of --run]"
)
def report(*, run_dir: Path, **options: Any) -> int:
    """Write the results page of a run: a table of all scans, and a view of each.

    The page is index.html with two folders beside it. It opens in a browser, without a network or
    a server. Exit code 0: all masks and images were read; 1: some were not (the page says which);
    3: there is no run.
    """
    from sslmedsam2.contract.outputs import report_path
    from sslmedsam2.contract.pseudo_label_outputs import find_records
    from sslmedsam2.predict import page as of_predict
    from sslmedsam2.pseudo_label import page as of_pseudo_label

    is_pseudo = not report_path(run_dir).exists() and bool(find_records(run_dir))
    command = of_pseudo_label if is_pseudo else of_predict
    page = command.report(of_predict.ReportOptions(run_dir, **options))
    shown = sum(entry.shown == "volumes" for entry in page.entries)
    click.echo(f"open {page.index_path} in a browser: {len(page.entries)} scans, {shown} in 3-D")
    return page.exit_code
