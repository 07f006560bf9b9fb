"""The command ``package``."""

from __future__ import annotations

from pathlib import Path

import click

from sslmedsam2.cli.config import ConfiguredCommand


@click.command(cls=ConfiguredCommand)
@click.option(
    "--output",
    "output_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="The output folder of predict.",
)
@click.option(
    "--zip",
    "zip_path",
    type=click.Path(path_type=Path),
    help="File to write.  [default: CARE-Liver-Submission.zip in the output folder]",
)
@click.option(
    "--description",
    type=click.Path(path_type=Path),
    help="Text file to add as Method_Description.md.",
)
@click.option("--with-fallbacks", is_flag=True, help="Also pack masks that are guesses.")
def package(
    output_dir: Path, zip_path: Path | None, description: Path | None, with_fallbacks: bool
) -> None:
    """Pack masks as a submission zip.

    It holds LiSeg_pred and, if sequences other than GED4 were segmented, the list of them.
    """
    from sslmedsam2.submission import package as pipeline
    from sslmedsam2.submission.package import DEFAULT_ZIP_NAME

    target = zip_path or output_dir / DEFAULT_ZIP_NAME
    plan = pipeline.package(
        output_dir=output_dir,
        zip_path=target,
        description=description,
        with_fallbacks=with_fallbacks,
    )
    click.echo(f"{target}: {len(plan.masks)} masks")
