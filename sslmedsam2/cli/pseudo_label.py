"""The command ``pseudo-label``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import click

from sslmedsam2.cli.cluster_option import cluster_option, for_cluster, open_executor
from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import (
    device_option,
    label_option,
    path_option,
    resume_option,
    sam2_option,
    sequence_map_option,
    sequences_option,
)

if TYPE_CHECKING:
    from sslmedsam2.pseudo_label.pipeline import PseudoLabelSummary
    from sslmedsam2.pseudo_label.records import PseudoLabelRecord

_LOG = logging.getLogger(__name__)


@click.command(cls=ConfiguredCommand)
@path_option(
    "--support",
    "support_dir",
    required=True,
    help="Labelled scans: case folders with <SEQ>.nii.gz and mask_<SEQ>.nii.gz.",
)
@path_option(
    "--query", "query_dir", required=True, help="Scans to label, in any layout that predict reads."
)
@path_option(
    "--output",
    "output_dir",
    required=True,
    help="Folder for masks, maps, records and previews; not inside the query folder.",
)
@label_option
@sequence_map_option
@sam2_option
@sequences_option(help="Sequences of the queries.  [default: all]")
@click.option(
    "--strategy",
    type=click.Choice(["retrieval", "random-insertion"]),
    default="retrieval",
    help="retrieval: this project's method; random-insertion: the published one, far slower.",
)
@click.option(
    "--harmonise/--no-harmonise",
    default=True,
    help="Match contrasts where support and query differ.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of random-insertion.")
@device_option
@resume_option
@click.option("--shard", help="Label one part of the queries: 2/8 is the second of eight.")
@cluster_option
def pseudo_label(
    *, strategy: str, harmonise: bool, seed: int, shard: str | None, cluster: str, **options: Any
) -> int:
    """Label scans (queries) with a frozen SAM2, from a few labelled scans (supports).

    Each pseudo label gets an estimated Dice and a verdict: accept, doubtful or reject.
    """
    from sslmedsam2.contract.pseudo_label_outputs import parse_shard
    from sslmedsam2.fewshot.strategy import FewShotSettings
    from sslmedsam2.pseudo_label.pipeline import PseudoLabelOptions
    from sslmedsam2.pseudo_label.pipeline import pseudo_label as run

    chosen = PseudoLabelOptions(
        **for_cluster(cluster, options),
        shard=None if shard is None else parse_shard(shard),
        settings=FewShotSettings(
            strategy="retrieval" if strategy == "retrieval" else "random-insertion",
            harmonise=harmonise,
            seed=seed,
        ),
    )
    with open_executor(cluster) as executor:
        summary = run(chosen, on_record=_tell, executor=executor)
    _summarise(summary)
    return summary.exit_code


def _tell(record: PseudoLabelRecord, done: int, total: int) -> None:
    estimate = "" if record.estimated_dice is None else f", Dice about {record.estimated_dice:.2f}"
    _LOG.info(
        "%d/%d %s %s: %s%s, %.1f s",
        done,
        total,
        record.case,
        record.sequence or "",
        record.verdict or "failed",
        estimate,
        sum(record.seconds.values()),
    )


def _summarise(summary: PseudoLabelSummary) -> None:
    counts = ", ".join(f"{count} {word}" for word, count in summary.counts.items() if count)
    counts = counts or "nothing to do"
    if summary.interrupted:
        done = f"interrupted after: {counts}" if summary.records else "interrupted before any mask"
        counts = f"{done}; the same command with --resume continues"
    left_out = len(summary.support_errors)
    note = f"; {left_out} labelled volume(s) left out" if left_out else ""
    click.echo(f"{counts}{note}; see {summary.table_path}")
