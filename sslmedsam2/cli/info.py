"""The command ``info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sslmedsam2 import __version__
from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import model_option
from sslmedsam2.errors import ExitCode

_EXIT_CODES = {
    ExitCode.OK: "every scan has a mask",
    ExitCode.SOME_CASES_FAILED: "some scans failed or have a guess, or an output cannot be written",
    ExitCode.USAGE: "an option or its value is not valid",
    ExitCode.NO_VALID_INPUT: "no usable input",
    ExitCode.MODEL_INVALID: "the model is missing, incomplete or altered",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C or SIGTERM; finished results are kept",
}


@click.command(cls=ConfiguredCommand)
@model_option
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, for programs.")
def info(model_dir: Path | None, as_json: bool) -> None:
    """Describe the program: version, models, sequences, formats, exit codes."""
    from sslmedsam2.contract.names import PREDICTED_SEQUENCES, SEQUENCES
    from sslmedsam2.imaging.formats import IMAGE_EXTENSIONS, WRITTEN_EXTENSIONS
    from sslmedsam2.reporting.run_report import SCHEMA_VERSION
    from sslmedsam2.weights.locate import locate_models

    about = {
        "program": "sslmedsam2",
        "version": __version__,
        "models": [_model(model) for model in locate_models(model_dir)],
        "sequences": list(SEQUENCES),
        "sequences_by_default": list(PREDICTED_SEQUENCES),
        "formats_read": [*IMAGE_EXTENSIONS, "DICOM"],
        "formats_written": list(WRITTEN_EXTENSIONS),
        "run_report_schema_version": SCHEMA_VERSION,
        "exit_codes": {str(int(code)): meaning for code, meaning in _EXIT_CODES.items()},
    }
    click.echo(json.dumps(about, indent=2, ensure_ascii=False) if as_json else _as_text(about))


def _model(model: Any) -> dict[str, Any]:
    card = model.card
    return {
        "name": model.name,
        "path": str(model.path),
        "sequences": list(model.sequences),
        "sha256": model.sha256,
        "verified": model.verified,
        "licence": card.licence if card else None,
        "training_data": card.training_data if card else None,
        "measured": dict(card.measured) if card else {},
    }


def _as_text(about: dict[str, Any]) -> str:
    lines = [f"sslmedsam2 {about['version']}"]
    for model in about["models"]:
        served = "any" if model["sequences"] == ["*"] else ", ".join(model["sequences"])
        measured = ", ".join(f"{name} {value:g}" for name, value in model["measured"].items())
        lines += [
            f"model       {model['name']} (sequences: {served}) in {model['path']}",
            f"  licence   {model['licence'] or 'not stated'}",
            f"  measured  {measured or 'not in the manifest; see MODEL_CARD.md'}",
        ]
    lines += [
        f"sequences   {', '.join(about['sequences'])}",
        f"reads       {', '.join(about['formats_read'])}",
        f"writes      {', '.join(about['formats_written'])}, DICOM-SEG",
        "exit codes",
        *(f"  {code:>3}  {meaning}" for code, meaning in about["exit_codes"].items()),
    ]
    return "\n".join(lines)
