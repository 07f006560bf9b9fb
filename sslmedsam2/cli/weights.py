"""``weights``: list the models that would be used, and verify them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslmedsam2.cli.config import ConfiguredCommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sslmedsam2.weights.locate import ModelLocation

_MODEL_OPTION = click.option(
    "--model",
    "model_dir",
    type=click.Path(path_type=Path),
    help="Folder of a model or of several with a manifest.json. Without it: /opt/ml/model, then"
    " the models that ship.",
)


@click.group()
def weights() -> None:
    """List and verify model weights."""


@weights.command("list", cls=ConfiguredCommand)
@_MODEL_OPTION
@click.option("--json", "as_json", is_flag=True, help="Write all that is known, as JSON.")
def list_models(model_dir: Path | None, as_json: bool) -> None:
    """List the models that predict would use."""
    from sslmedsam2.weights.locate import locate_models

    models = locate_models(model_dir)
    if as_json:
        click.echo(json.dumps([_as_table(model) for model in models], indent=2))
    else:
        click.echo(_as_text(models))


@weights.command("verify", cls=ConfiguredCommand)
@_MODEL_OPTION
def verify_models(model_dir: Path | None) -> None:
    """Compare every file with the manifest; exit with 4 where one differs."""
    from sslmedsam2.errors import ModelError
    from sslmedsam2.weights.locate import locate_models

    for model in locate_models(model_dir):
        if not model.verified:
            raise ModelError(
                model.path,
                reason="no manifest lists this model, so there is nothing to compare it with",
                remedy="Verify a folder that has a manifest.json",
            )
        click.echo(f"{model.name}: {len(model.files)} files unchanged ({_size(model)})")


def _as_table(model: ModelLocation) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(model) | {"path": str(model.path)}


def _as_text(models: Sequence[ModelLocation]) -> str:
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _size(model: ModelLocation) -> str:
    return f"{sum(file.n_bytes for file in model.files) / 1e6:.1f} MB"
