"""The command group ``refine``: the stages of ``retrain``, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.retrain import as_options, retrain_options

_work_dir = click.option(
    "--work-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Work directory made by refine plan.",
)


@click.group()
def refine() -> None:
    """Run the stages of retrain one at a time on one work directory.

    plan once, then train and relabel for each round, freeze at the end.
    """


@refine.command(cls=ConfiguredCommand)
@retrain_options
def plan(**given: Any) -> int:
    """Index the data, make and select pseudo labels, plan the network."""
    from sslmedsam2.errors import ExitCode
    from sslmedsam2.execution.interrupt import stop_on_signals
    from sslmedsam2.execution.units import ThisProcess
    from sslmedsam2.retrain.pipeline import plan as run

    options = as_options(ThisProcess(), **given)
    with stop_on_signals() as stop:
        labels = run(options, stop)
    if labels is None:
        return ExitCode.INTERRUPTED
    words = [label.candidate.verdict or "failed" for label in labels]
    counts = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
    click.echo(f"planned in {options.work_dir}: {counts}; next: refine train")
    return ExitCode.OK


@refine.command(cls=ConfiguredCommand)
@_work_dir
@click.option(
    "--fold",
    "folds",
    type=click.IntRange(0),
    multiple=True,
    help="Train this fold only; may be repeated.  [default: all]",
)
def train(*, work_dir: Path, folds: tuple[int, ...]) -> int:
    """Train the folds of the next round, or continue them."""
    from sslmedsam2.errors import ExitCode, UsageError
    from sslmedsam2.execution.interrupt import stop_on_signals
    from sslmedsam2.retrain.pipeline import begin_round
    from sslmedsam2.retrain.state import WorkDir, options_of
    from sslmedsam2.retrain.train_round import train_round

    options = options_of(WorkDir(work_dir))
    if any(fold >= options.folds for fold in folds):
        raise UsageError(
            f"--fold {max(folds)}",
            reason=f"the work directory has folds 0 to {options.folds - 1}",
            remedy="Choose one of these",
        )
    round_dir = begin_round(options).round_dir
    with stop_on_signals() as stop:
        train_round(round_dir, options, stop=stop, folds=folds or None)
    if stop:
        click.echo("stopped; run the same command again to go on")
        return ExitCode.INTERRUPTED
    click.echo(f"round {round_dir.number}: trained; next: refine relabel")
    return ExitCode.OK


@refine.command(cls=ConfiguredCommand)
@_work_dir
def relabel(*, work_dir: Path) -> int:
    """Score the folds, relabel the unlabelled scans, decide whether another round is needed."""
    from sslmedsam2.errors import ExitCode
    from sslmedsam2.execution.interrupt import stop_on_signals
    from sslmedsam2.retrain.index import read_index
    from sslmedsam2.retrain.pipeline import begin_round, failures_so_far, finish_round
    from sslmedsam2.retrain.state import WorkDir, options_of

    options = options_of(WorkDir(work_dir))
    with stop_on_signals() as stop:
        decision = finish_round(begin_round(options), options, stop)
    if decision is None:
        return ExitCode.INTERRUPTED
    then = "refine freeze" if decision.stop else "refine train"
    click.echo(f"{decision.reason}; best round {decision.best_round}; next: {then}")
    work = WorkDir(work_dir)
    failures = failures_so_far(work, read_index(work))
    if failures:
        click.echo(f"{len(failures)} failure(s), the first: {failures[0]}")
    return ExitCode.SOME_CASES_FAILED if failures else ExitCode.OK


@refine.command(cls=ConfiguredCommand)
@_work_dir
@click.option(
    "--weights-out",
    "weights_dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the frozen model, for predict --model.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Freeze even a network that is worse than the few-shot branch it learned from.",
)
def freeze(*, work_dir: Path, weights_dir: Path, force: bool) -> None:
    """Freeze the best round so far."""
    from dataclasses import replace

    from sslmedsam2.retrain.pipeline import freeze as run
    from sslmedsam2.retrain.state import WorkDir, options_of

    options = options_of(WorkDir(work_dir))
    model = run(replace(options, weights_dir=weights_dir, force=force))
    click.echo(f"frozen as {model.name}, folds {', '.join(model.folds)}, in {weights_dir}")
