"""The command ``retrain``."""

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
    gpus_option,
    label_option,
    licence_option,
    name_option,
    preset_option,
    sam2_option,
    sequence_map_option,
    training_data_option,
)

if TYPE_CHECKING:
    from sslmedsam2.execution.units import Executor
    from sslmedsam2.retrain.options import RetrainOptions
    from sslmedsam2.retrain.pipeline import RetrainSummary


_ONLINE_LENGTH = 2
"""Of an online training, against that of a round."""

_OPTIONS = (
    click.option(
        "--labelled",
        "labelled_dir",
        type=click.Path(path_type=Path),
        required=True,
        help="Labelled scans: case folders with <SEQ>.nii.gz and mask_<SEQ>.nii.gz.",
    ),
    click.option(
        "--unlabelled",
        "unlabelled_dir",
        type=click.Path(path_type=Path),
        required=True,
        help="Scans without masks, in any layout that predict reads.",
    ),
    click.option(
        "--work-dir",
        type=click.Path(file_okay=False, path_type=Path),
        required=True,
        help="Folder for all intermediate files; the same command continues after a stop.",
    ),
    label_option,
    sequence_map_option,
    sam2_option,
    click.option("--sequences", help="Train on these only, for example T1.  [default: all]"),
    click.option(
        "--method",
        type=click.Choice(["rounds", "online"]),
        default="rounds",
        show_default=True,
        help="Rounds of training and relabelling, or one training that relabels on the way.",
    ),
    click.option(
        "--rounds",
        default="auto",
        show_default=True,
        help="A number, or auto: until the pseudo labels hardly change.",
    ),
    click.option(
        "--max-rounds",
        type=click.IntRange(1),
        default=5,
        show_default=True,
        help="Largest number of rounds of auto.",
    ),
    click.option(
        "--settled-at",
        type=click.FloatRange(0, 1),
        default=0.97,
        show_default=True,
        help="Rounds end when the pseudo labels of two rounds have this mean Dice.",
    ),
    click.option(
        "--folds",
        type=click.IntRange(2),
        default=3,
        show_default=True,
        help="Networks in each round; each relabels the patients it was not trained on.",
    ),
    preset_option,
    click.option(
        "--epochs",
        type=click.IntRange(1),
        help="Of each training.  [default: compact 30, others 100; online twice that]",
    ),
    click.option(
        "--iterations-per-epoch",
        type=click.IntRange(1),
        help="[default: compact 50, others 250]",
    ),
    click.option(
        "--start",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Initial checkpoint; it must not have been trained on these patients.",
    ),
    click.option(
        "--warm-start/--from-scratch",
        default=True,
        show_default=True,
        help="Start each later round from the networks of the round before.",
    ),
    click.option(
        "--reference-masks-first/--pseudo-labels-first",
        default=False,
        show_default=True,
        help="Train round 1 on reference masks alone, then relabel with both branches.",
    ),
    click.option(
        "--reference-share",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.5,
        show_default=True,
        help="Share of training patches with reference masks.",
    ),
    click.option(
        "--ignore-above",
        type=click.FloatRange(0, 1),
        default=0.95,
        show_default=True,
        help="Uncertainty in bits above which a voxel of a pseudo label is ignored.",
    ),
    click.option(
        "--agreement-needed",
        type=click.FloatRange(0, 1),
        default=0.85,
        show_default=True,
        help="Dice between networks from which a doubtful pseudo label is used.",
    ),
    click.option(
        "--final",
        type=click.Choice(["ensemble", "best-fold", "average"]),
        default="ensemble",
        show_default=True,
        help="What is frozen of the best round: all folds, the best one, or their mean weights.",
    ),
    click.option("--seed", type=click.IntRange(0), default=20260, show_default=True),
    name_option,
    training_data_option,
    licence_option,
    contrast_option,
    deterministic_option,
    device_option,
    gpus_option,
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

    Raises
    ------
    UsageError
        A value cannot be used, or the device is not there.
    """
    from sslmedsam2.contract.names import parse_sequence_list
    from sslmedsam2.inference.device import choose_device
    from sslmedsam2.nnunet.plans import PRESETS, default_preset, default_schedule
    from sslmedsam2.retrain.options import RetrainOptions
    from sslmedsam2.retrain.selection import StoppingRule

    rounds = _rounds(given.pop("rounds"), method=given["method"])
    name = given.pop("preset")
    if name is None:
        name = default_preset(executor.call(choose_device, given["device"]))
    preset = PRESETS[name]
    schedule = default_schedule(preset)
    length = _ONLINE_LENGTH if given["method"] == "online" else 1
    given["epochs"] = given["epochs"] or length * schedule.round_epochs
    given["iterations_per_epoch"] = given["iterations_per_epoch"] or schedule.iterations_per_epoch
    most, settled_at = given.pop("max_rounds"), given.pop("settled_at")
    sequences = given.pop("sequences")
    return RetrainOptions(
        **given,
        preset=preset,
        sequences=None if sequences is None else parse_sequence_list(sequences),
        rule=StoppingRule(
            most_rounds=most if rounds is None else rounds,
            settled_at=settled_at,
            fixed=rounds is not None,
        ),
    )


def _rounds(text: str, *, method: str) -> int | None:
    from sslmedsam2.errors import UsageError

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
    and relabels the scans that it was not trained on, until the pseudo labels hardly change. With
    --method online, one longer training does both at once.
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
