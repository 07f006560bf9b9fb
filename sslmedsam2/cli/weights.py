"""The command group ``weights``: list and verify models, download official SAM2 checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import (
    device_option,
    label_option,
    model_option,
    path_option,
    sequence_map_option,
)
from sslmedsam2.weights.catalogue import FETCHED_DIR, OFFICIAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sslmedsam2.weights.catalogue import CatalogueEntry
    from sslmedsam2.weights.locate import ModelLocation


@click.group()
def weights() -> None:
    """List, verify and download model weights."""


@weights.command("list", cls=ConfiguredCommand)
@model_option
@click.option("--json", "as_json", is_flag=True, help="Print all details as JSON.")
def list_models(model_dir: Path | None, as_json: bool) -> None:
    """List the models that predict would use."""
    from sslmedsam2.weights.locate import locate_models

    models = locate_models(model_dir)
    if as_json:
        click.echo(json.dumps([_as_table(model) for model in models], indent=2))
    else:
        click.echo(_as_text(models))


@weights.command("verify", cls=ConfiguredCommand)
@model_option
def verify_models(model_dir: Path | None) -> None:
    """Compare every file with the manifest; exit code 4 if one differs."""
    from sslmedsam2.errors import ModelError
    from sslmedsam2.weights.locate import SHIPPED_DIR, locate_models
    from sslmedsam2.weights.manifest import verify_sam2

    if model_dir is None:
        for checkpoint in verify_sam2(SHIPPED_DIR):
            click.echo(f"{checkpoint.path}: unchanged")
    for model in locate_models(model_dir):
        if not model.verified:
            raise ModelError(
                model.path,
                reason="no manifest lists this model, so there is nothing to compare it with",
                remedy="Verify a folder that has a manifest.json",
            )
        click.echo(f"{model.name}: {len(model.files)} files unchanged ({_size(model)})")


@weights.command("calibrate", cls=ConfiguredCommand)
@path_option(
    "--model",
    "model_dir",
    required=True,
    help="Model folder, or folder of one model with manifest.json.",
)
@path_option(
    "--labelled",
    "labelled_dir",
    required=True,
    help="Folder of scans with reference masks, of patients that the model was not trained on.",
)
@label_option
@sequence_map_option
@device_option
def calibrate(model_dir: Path, labelled_dir: Path, **options: Any) -> None:
    """Fit how a model's certainty relates to Dice, so that predict can estimate it.

    Segments each labelled scan and three degraded copies of it, and writes confidence.json into
    the model folder.
    """
    from sslmedsam2.train.calibration import calibrate_model

    found = calibrate_model(model_dir, labelled_dir, **options)
    click.echo(
        f"{found.volumes} volumes of {found.patients} patients: Spearman {found.spearman:.2f}, "
        f"the 90 % interval holds {found.coverage:.0%}"
    )


@weights.command("fetch", cls=ConfiguredCommand)
@click.argument("name", type=click.Choice(list(OFFICIAL)))
@path_option(
    "--to",
    "to_dir",
    default=FETCHED_DIR,
    show_default=False,
    help="Folder to write to.  [default: weights/sam2 in a clone, else ~/.local/share/sslmedsam2]",
)
@click.option(
    "--from",
    "source",
    metavar="URL|FILE",
    help="URL of a mirror, or a downloaded file.  [default: the publisher]",
)
@click.option("--accept-licence", is_flag=True, help="Accept the licence without a question.")
def fetch_official(name: str, to_dir: Path, source: str | None, accept_licence: bool) -> None:
    """Download an official SAM2 checkpoint.

    Its licence is shown first. The file is compared with its published size and SHA-256 and stored
    with its licence.
    """
    from sslmedsam2.weights.fetch import fetch

    entry = OFFICIAL[name]
    click.echo(_terms(entry), err=True)
    if entry.licence.must_be_accepted and not accept_licence:
        _require_acceptance(entry)
    show_progress = sys.stderr.isatty()
    click.echo(fetch(entry, to_dir=to_dir, source=source, show_progress=show_progress))


def _terms(entry: CatalogueEntry) -> str:
    licence = entry.licence
    return (
        f"{entry.name}: {entry.file_name}, {entry.size_bytes / 1e6:.1f} MB,"
        f" revision {entry.revision[:12]}\n"
        f"Licence: {licence.name}. {licence.summary} See {licence.url}"
    )


def _require_acceptance(entry: CatalogueEntry) -> None:
    from sslmedsam2.errors import UsageError

    if sys.stdin.isatty() and click.confirm("Do you accept these terms?", err=True):
        return
    raise UsageError(
        entry.name,
        reason=f"its terms were not accepted ({entry.licence.name})",
        remedy=f"Read {entry.licence.url} and, if you agree, give --accept-licence",
    )


def _as_table(model: ModelLocation) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(model) | {"path": str(model.path)}


def _as_text(models: Sequence[ModelLocation]) -> str:
    from sslmedsam2.reporting.volume_table import aligned

    rows = [("NAME", "SEQUENCES", "FOLDS", "SIZE", "STATE", "FOLDER")]
    rows += [
        (
            model.name,
            "any" if model.sequences == ("*",) else ",".join(model.sequences),
            ",".join(model.folds),
            _size(model),
            "verified" if model.verified else "unverified",
            str(model.path),
        )
        for model in models
    ]
    return "\n".join(aligned(rows))


def _size(model: ModelLocation) -> str:
    return f"{sum(file.bytes for file in model.files) / 1e6:.1f} MB"
