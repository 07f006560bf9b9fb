"""The commands ``retrain``, ``refine`` (its stages, one at a time) and ``plan-cluster``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslmedsam2.cli.cluster_option import cluster_option, for_cluster, open_executor
from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import (
    contrast_option,
    deterministic_option,
    device_option,
    folder_option,
    gpus_option,
    label_option,
    licence_option,
    name_option,
    path_option,
    present_file_option,
    preset_option,
    sam2_option,
    sequence_map_option,
    sequences_option,
    training_data_option,
    work_dir_option,
)
from sslmedsam2.errors import ExitCode, UsageError
from sslmedsam2.execution.interrupt import stop_on_signals
from sslmedsam2.execution.units import ThisProcess

if TYPE_CHECKING:
    from sslmedsam2.execution.units import Executor
    from sslmedsam2.retrain.pipeline import RetrainSummary
    from sslmedsam2.retrain.state import RetrainOptions


_ONLINE_LENGTH = 2
"""Of an online training, against that of a round."""

_OPTIONS = (
    path_option(
        "--labelled",
        "labelled_dir",
        required=True,
        help="Labelled scans: case folders with <SEQ>.nii.gz and mask_<SEQ>.nii.gz.",
    ),
    path_option(
        "--unlabelled",
        "unlabelled_dir",
        required=True,
        help="Scans without masks, in any layout that predict reads.",
    ),
    work_dir_option,
    label_option,
    sequence_map_option,
    sam2_option,
    sequences_option(help="Train on these only, for example T1.  [default: all]"),
    click.option(
        "--method",
        type=click.Choice(["rounds", "online"]),
        default="rounds",
        help="Rounds of training and relabelling, or one training that relabels on the way.",
    ),
    click.option(
        "--rounds", default="auto", help="A number, or auto: until the pseudo labels hardly change."
    ),
    click.option(
        "--max-rounds",
        type=click.IntRange(1),
        default=5,
        help="Largest number of rounds of auto; without effect on method online.",
    ),
    click.option(
        "--settled-at",
        type=click.FloatRange(0, 1),
        default=0.97,
        help="Rounds end when the pseudo labels of two rounds have this mean Dice; without effect"
        " on method online.",
    ),
    click.option(
        "--folds",
        type=click.IntRange(2),
        default=3,
        help="Networks in each round; each relabels the patients it was not trained on.",
    ),
    preset_option,
    click.option(
        "--epochs",
        type=click.IntRange(1),
        help="Of each training.  [default: compact and wide 30, resenc 100; online twice that]",
    ),
    click.option(
        "--iterations-per-epoch",
        type=click.IntRange(1),
        help="[default: compact and wide 50, resenc 250]",
    ),
    present_file_option(
        "--start", help="Initial checkpoint; it must not have been trained on these patients."
    ),
    click.option(
        "--warm-start/--from-scratch",
        default=True,
        help="Start each later round from the networks of the round before.",
    ),
    click.option(
        "--reference-masks-first/--pseudo-labels-first",
        default=False,
        help="Train round 1 on reference masks alone, then relabel with both branches.",
    ),
    click.option(
        "--reference-share",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.5,
        help="Share of training patches with reference masks; without effect on method online.",
    ),
    click.option(
        "--ignore-above",
        type=click.FloatRange(0, 1),
        default=0.95,
        help="Uncertainty in bits above which a voxel of a pseudo label is ignored.",
    ),
    click.option(
        "--agreement-needed",
        type=click.FloatRange(0, 1),
        default=0.85,
        help="Dice between networks from which a doubtful pseudo label is used; without effect on"
        " method online.",
    ),
    click.option(
        "--final",
        type=click.Choice(["ensemble", "best-fold", "average"]),
        default="ensemble",
        help="What is frozen of the best round: all folds, the best one, or their mean weights.",
    ),
    click.option("--seed", type=click.IntRange(0), default=20260),
    name_option,
    training_data_option,
    licence_option,
    contrast_option,
    deterministic_option,
    device_option,
    gpus_option,
)


_force_option = click.option(
    "--force",
    is_flag=True,
    help="Freeze even a network that is worse than the few-shot branch it learned from.",
)
_planned_dir_option = click.option(
    "--work-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Work directory made by refine plan.",
)


def retrain_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with all of them, in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def as_options(executor: Executor, **given: Any) -> RetrainOptions:
    """Turn what click parsed into the pipeline's options.

    ``executor`` says what device the networks train on: size and length follow that one, not this
    machine's.

    Raises UsageError: a value cannot be used, or the device is not there.
    """
    from sslmedsam2.inference.device import choose_device
    from sslmedsam2.nnunet.plans import PRESETS, default_preset
    from sslmedsam2.retrain.state import RetrainOptions
    from sslmedsam2.retrain.stopping import StoppingRule

    rounds = _rounds(given.pop("rounds"), method=given["method"])
    name = given.pop("preset")
    if name is None:
        name = default_preset(executor.call(choose_device, given["device"]))
    preset = PRESETS[name]
    schedule = preset.schedule
    length = _ONLINE_LENGTH if given["method"] == "online" else 1
    given["epochs"] = given["epochs"] or length * schedule.round_epochs
    given["iterations_per_epoch"] = given["iterations_per_epoch"] or schedule.iterations_per_epoch
    most, settled_at = given.pop("max_rounds"), given.pop("settled_at")
    return RetrainOptions(
        **given,
        preset=preset,
        rule=StoppingRule(
            most_rounds=most if rounds is None else rounds,
            settled_at=settled_at,
            fixed=rounds is not None,
        ),
    )


def _rounds(text: str, *, method: str) -> int | None:
    if method == "online":
        if text in ("auto", "1"):
            return 1
        raise UsageError(
            f"--rounds {text}",
            reason="--method online is a single training",
            remedy="Leave --rounds out, or choose --method rounds",
        )
    if text == "auto":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(
        f"--rounds {text}",
        reason="it is neither auto nor a number from 1",
        remedy="Write auto, or for example 3",
    )


@click.command(cls=ConfiguredCommand)
@retrain_options
@folder_option(
    "--weights-out",
    "weights_dir",
    help="Freeze the best round into this folder, for predict --model.",
)
@_force_option
@click.option(
    "--resume", is_flag=True, expose_value=False, help="No effect: retrain always continues."
)
@cluster_option
def retrain(*, cluster: str, **given: Any) -> int:
    """Train a model from a few labelled and many unlabelled scans, in rounds.

    SAM2 labels the unlabelled scans. Then nnU-Net trains on reference masks and pseudo labels,
    and relabels the scans that it was not trained on, until the pseudo labels hardly change. With
    --method online, one longer training does both at once.
    After a stop, the same command continues.
    """
    from sslmedsam2.retrain.pipeline import retrain as run

    with open_executor(cluster) as executor:
        options = as_options(executor, **for_cluster(cluster, given))
        summary = run(options, executor=executor)
    tell(summary, options.weights_dir)
    return summary.exit_code


def tell(summary: RetrainSummary, weights_dir: Path | None) -> None:
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
        folds = ", ".join(summary.model.folds)
        click.echo(f"frozen as {summary.model.name}, folds {folds}; predict --model {weights_dir}")


@click.group()
def refine() -> None:
    """Run the stages of retrain one at a time on one work directory.

    plan once, then train and relabel for each round, freeze at the end.
    """


@refine.command(cls=ConfiguredCommand)
@retrain_options
def plan(**given: Any) -> int:
    """Index the data, make and select pseudo labels, plan the network."""
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
@_planned_dir_option
@click.option(
    "--fold",
    "folds",
    type=click.IntRange(0),
    multiple=True,
    help="Train this fold only; may be repeated.  [default: all]",
)
def train(*, work_dir: Path, folds: tuple[int, ...]) -> int:
    """Train the folds of the next round, or continue them."""
    from sslmedsam2.retrain.pipeline import begin_round, current_round
    from sslmedsam2.retrain.state import WorkDir, options_of
    from sslmedsam2.retrain.train_round import train_folds

    options = options_of(WorkDir(work_dir))
    if any(fold >= options.folds for fold in folds):
        raise UsageError(
            f"--fold {max(folds)}",
            reason=f"the work directory has folds 0 to {options.folds - 1}",
            remedy="Choose one of these",
        )
    round_dir = current_round(options)
    begin_round(options, round_dir)
    with stop_on_signals() as stop:
        train_folds(round_dir, options, stop=stop, folds=folds or None)
    if stop:
        click.echo("stopped; run the same command again to go on")
        return ExitCode.INTERRUPTED
    click.echo(f"round {round_dir.number}: trained; next: refine relabel")
    return ExitCode.OK


@refine.command(cls=ConfiguredCommand)
@_planned_dir_option
def relabel(*, work_dir: Path) -> int:
    """Score the folds, relabel the unlabelled scans, decide whether another round is needed."""
    from sslmedsam2.retrain.pipeline import (
        begin_round,
        current_round,
        failures_so_far,
        finish_round,
    )
    from sslmedsam2.retrain.state import WorkDir, options_of

    options = options_of(WorkDir(work_dir))
    round_dir = current_round(options)
    with stop_on_signals() as stop:
        labels = begin_round(options, round_dir)
        decision = finish_round(options, round_dir, labels=labels, stop=stop)
    if decision is None:
        return ExitCode.INTERRUPTED
    then = "refine freeze" if decision.stop else "refine train"
    click.echo(f"{decision.reason}; best round {decision.best_round}; next: {then}")
    failures = failures_so_far(options)
    if failures:
        click.echo(f"{len(failures)} failure(s), the first: {failures[0]}")
    return ExitCode.SOME_CASES_FAILED if failures else ExitCode.OK


@refine.command(cls=ConfiguredCommand)
@_planned_dir_option
@folder_option(
    "--weights-out",
    "weights_dir",
    required=True,
    help="Folder for the frozen model, for predict --model.",
)
@_force_option
def freeze(*, work_dir: Path, weights_dir: Path, force: bool) -> None:
    """Freeze the best round so far."""
    from dataclasses import replace

    from sslmedsam2.retrain.pipeline import freeze as run
    from sslmedsam2.retrain.state import WorkDir, options_of

    options = options_of(WorkDir(work_dir))
    model = run(replace(options, weights_dir=weights_dir, force=force))
    click.echo(f"frozen as {model.name}, folds {', '.join(model.folds)}, in {weights_dir}")


@click.command(cls=ConfiguredCommand)
@click.option("--labelled", required=True, help="Folder of labelled scans, or their number.")
@click.option("--unlabelled", required=True, help="Folder of unlabelled scans, or their number.")
@click.option("--folds", type=click.IntRange(2), default=3)
@click.option("--epochs", type=click.IntRange(1), default=30)
@click.option("--iterations-per-epoch", type=click.IntRange(1), default=50)
@click.option("--rounds", type=click.IntRange(1), default=3)
@click.option(
    "--speedup",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    help="Speed of a worker, compared with two CPU cores without a GPU.",
)
@present_file_option("--costs", help="JSON file with costs measured on your own machine.")
def plan_cluster(*, labelled: str, unlabelled: str, costs: Path | None, **given: Any) -> None:
    """Estimate time, memory and disk of retrain on 1, 8 and 64 workers."""
    from sslmedsam2.retrain import estimate as planning

    n_labelled, n_unlabelled = planning.count_volumes(labelled, unlabelled)
    measured = planning.UnitCosts() if costs is None else planning.read_costs(costs)
    plan = planning.plan_cluster(n_labelled, n_unlabelled, **given, costs=measured)
    scans = f"{n_labelled} labelled scans, {n_unlabelled} not labelled"
    click.echo(f"an estimate, from measured costs: {scans}")
    for stage in plan.stages:
        often = f" x {stage.times} rounds" if stage.times > 1 else ""
        click.echo(f"  {stage.name}: {stage.units} x {stage.unit_s:.1f} s{often}")
    click.echo(f"{plan.worker_hours:.1f} worker hours in all; a worker is a GPU where there is one")
    for workers in (1, 8, 64):
        click.echo(f"  {workers:2d} workers: {plan.wall_hours(workers):.1f} h")
    click.echo(
        f"memory of a worker, without training: {plan.memory_mb / 1000:.1f} GB; "
        f"shared disk: {plan.disk_gb:.0f} GB"
    )
