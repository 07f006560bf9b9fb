"""The command ``phantom``."""

from __future__ import annotations

from pathlib import Path

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import folder_option
from sslmedsam2.errors import UsageError


@click.command(cls=ConfiguredCommand)
@folder_option("--output", required=True, help="Folder to write to.")
@click.option(
    "--cases",
    type=click.IntRange(min=1),
    help="Number of training cases; without it the fixed test inputs are written.",
)
@click.option(
    "--labelled",
    type=click.IntRange(min=0),
    help="Number of training cases with masks, the first ones.  [default: all]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    help="Seed of the first training case; each further case adds 1.",
)
def phantom(output: Path, cases: int | None, labelled: int | None, seed: int) -> None:
    """Write synthetic abdominal MRI studies with known liver masks.

    Without --cases: the test inputs, with images and reference masks in separate folders. With
    --cases: training cases, with masks beside the images.
    """
    if cases is None:
        if labelled is not None:
            raise UsageError("--labelled", reason="has no meaning alone", remedy="Add --cases N")
        from sslmedsam2.phantom.studies import write_test_inputs

        write_test_inputs(output)
    else:
        if labelled is not None and labelled > cases:
            raise UsageError(
                f"--labelled {labelled}",
                reason=f"there are only {cases} cases",
                remedy="Raise --cases, or leave --labelled out to label all",
            )
        from sslmedsam2.phantom.studies import write_training_cases

        write_training_cases(
            output, cases=cases, labelled=cases if labelled is None else labelled, seed=seed
        )
    click.echo(f"Synthetic studies are in {output}")
