"""The command ``doctor``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.cli.shared_options import device_option, model_option, path_option

if TYPE_CHECKING:
    from sslmedsam2.doctor import Diagnosis

_MARKS = {"ok": "ok", "note": "note", "problem": "FAIL"}


@click.command(cls=ConfiguredCommand)
@path_option("--input", "input_path", default=Path("/input"), help="The input of predict.")
@path_option(
    "--output",
    "output_dir",
    default=Path("/output"),
    help="The output of predict; a test file is written and removed.",
)
@model_option
@device_option
@click.option(
    "--inference/--no-inference",
    default=True,
    help="Load the networks and segment a small phantom.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
def doctor(*, as_json: bool, **options: Any) -> int:
    """Check the requirements of a run, and segment a small phantom.

    Checks device, driver, torch, SAM2, weights, memory, shared memory, processes and folders.
    Exit code 0: a run can start; 4: the model is missing or altered; 1: any other problem.
    """
    from sslmedsam2.doctor import DoctorOptions, run_checks

    diagnosis = run_checks(DoctorOptions(**options))
    click.echo(_as_json(diagnosis) if as_json else _as_text(diagnosis))
    return int(diagnosis.exit_code)


def _as_json(diagnosis: Diagnosis) -> str:
    from dataclasses import asdict

    table = {
        "ready": not diagnosis.problems,
        "exit_code": int(diagnosis.exit_code),
        "findings": {
            name: {**asdict(finding), "state": finding.state.value}
            for name, finding in diagnosis.findings.items()
        },
    }
    return json.dumps(table, indent=2, ensure_ascii=False)


def _as_text(diagnosis: Diagnosis) -> str:
    width = max(map(len, diagnosis.findings))
    lines = []
    for name, finding in diagnosis.findings.items():
        mark, heading = _MARKS[finding.state.value], name.replace("_", " ")
        lines.append(f"{mark:4}  {heading:{width}}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':{width + 8}}{finding.remedy}")
    count = len(diagnosis.problems)
    lines.append("ready" if not count else f"not ready: {count} problem{'s' * (count > 1)}")
    return "\n".join(lines)
