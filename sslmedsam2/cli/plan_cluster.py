"""The command ``plan-cluster``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sslmedsam2.cli.config import ConfiguredCommand


@click.command(cls=ConfiguredCommand)
@click.option("--labelled", required=True, help="Folder of labelled scans, or their number.")
@click.option("--unlabelled", required=True, help="Folder of unlabelled scans, or their number.")
@click.option("--folds", type=click.IntRange(2), default=3, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True)
@click.option("--iterations-per-epoch", type=click.IntRange(1), default=50, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--speedup",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Speed of a worker, compared with two CPU cores without a GPU.",
)
@click.option(
    "--costs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file with costs measured on your own machine.",
)
def plan_cluster(*, labelled: str, unlabelled: str, costs: Path | None, **given: Any) -> None:
    """Estimate time, memory and disk of retrain on 1, 8 and 64 workers."""
    from sslmedsam2.retrain.plan_cluster import (
        PlanOptions,
        UnitCosts,
        count_volumes,
        read_costs,
        stages_once,
    )
    from sslmedsam2.retrain.plan_cluster import plan_cluster as run

    n_labelled, n_unlabelled = count_volumes(labelled, unlabelled)
    plan = run(
        PlanOptions(
            n_labelled,
            n_unlabelled,
            **given,
            costs=UnitCosts() if costs is None else read_costs(costs),
        )
    )
    click.echo(f"an estimate, from measured costs: {n_labelled} labelled, {n_unlabelled} not")
    for stage, times in stages_once(plan.stages):
        often = f" x {times} rounds" if times > 1 else ""
        click.echo(f"  {stage.name}: {stage.units} x {stage.unit_s:.1f} s{often}")
    click.echo(f"{plan.worker_hours:.1f} worker hours in all; a worker is a GPU where there is one")
    for workers in (1, 8, 64):
        click.echo(f"  {workers:2d} workers: {plan.wall_hours(workers):.1f} h")
    click.echo(
        f"memory of a worker, without training: {plan.memory_mb / 1000:.1f} GB; "
        f"shared disk: {plan.disk_gb:.0f} GB"
    )
