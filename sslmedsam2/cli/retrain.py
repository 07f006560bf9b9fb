"""The command ``retrain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslmedsam2.cli.cluster_option import cluster_option, for_cluster, open_executor
from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.retrain_options import as_options, retrain_options

if TYPE_CHECKING:
    from sslmedsam2.retrain.pipeline import RetrainSummary


@click.command(cls=ConfiguredCommand)
@retrain_options
@click.option(
    "--weights-out",
    "weights_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Freeze the best round into this folder, for predict --model.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Freeze even a network that is worse than the few-shot branch it learned from.",
)
@click.option(
    "--resume",
    is_flag=True,
    expose_value=False,
    help="No effect: retrain always continues.",
)
@cluster_option
def retrain(*, cluster: str, **given: Any) -> int:
    """Train a model from a few labelled and many unlabelled scans, in rounds.

    SAM2 labels the unlabelled scans. Then nnU-Net trains on reference masks and pseudo labels,
    and relabels the scans that it was not trained on, until the pseudo labels hardly change.
    After a stop, the same command continues.
    """
    from sslmedsam2.retrain.pipeline import retrain as run

    with open_executor(cluster) as executor:
        options = as_options(executor, **for_cluster(cluster, given))
        summary = run(options, executor=executor)
    tell(summary)
    return summary.exit_code


def tell(summary: RetrainSummary) -> None:
    """Print rounds, decision and frozen model of a run."""
    for figures in summary.rounds:
        change = "-" if figures.change_dice is None else f"{figures.change_dice:.4f}"
        click.echo(
            f"round {figures.round}: Dice on reference masks {figures.validation_dice:.4f}, "
            f"between masks before and after {change}"
        )
    if summary.interrupted:
        click.echo("stopped; run the same command again to continue")
    elif summary.decision is not None:
        click.echo(f"ended: {summary.decision.reason}; best round {summary.decision.best_round}")
    if summary.problems:
        click.echo(f"{len(summary.problems)} image(s) could not take part, see index.json")
    if summary.failures:
        click.echo(f"{len(summary.failures)} failure(s), the first: {summary.failures[0]}")
    if summary.warning is not None:
        then = "; nothing was frozen, see --force" if summary.withheld else ""
        click.echo(f"warning: {summary.warning}{then}")
    if summary.model is not None:
        click.echo(f"frozen as {summary.model.name}, folds {', '.join(summary.model.folds)}")
