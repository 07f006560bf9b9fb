"""The command `doctor`: one screen for a person, JSON for a program."""

import json

import pytest

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode

SCREEN_LINES = 24


@pytest.fixture
def quick(tmp_path):
    (tmp_path / "out").mkdir()
    return ["doctor", "--no-inference", "--input", str(tmp_path), "--output", str(tmp_path / "out")]


def test_the_answer_fits_a_screen_and_ends_with_ready(quick, capsys):
    assert main(quick) == ExitCode.OK

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= SCREEN_LINES
    assert lines[-1] == "ready"
    assert all(line.startswith(("ok  ", "note", "    ")) for line in lines[:-1])


def test_problems_are_marked_counted_and_come_with_what_to_do(quick, capsys):
    assert main([*quick, "--output", "/proc"]) == ExitCode.SOME_CASES_FAILED

    lines = capsys.readouterr().out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("FAIL")]
    assert "/proc cannot be written" in lines[at]
    assert "--user" in lines[at + 1]
    assert lines[-1] == "not ready: 1 problem"


def test_json_holds_every_finding_by_its_name(quick, capsys):
    assert main([*quick, "--json", "--output", "/proc"]) == ExitCode.SOME_CASES_FAILED

    table = json.loads(capsys.readouterr().out)
    assert table["ready"] is False
    assert table["exit_code"] == ExitCode.SOME_CASES_FAILED
    assert table["findings"]["output"]["state"] == "problem"
    assert {"torch", "device", "sam2", "weights", "memory", "processes"} <= table["findings"].keys()
    assert table["findings"]["shared_memory"]["details"]["bytes"] > 0


def test_a_missing_model_ends_with_4(quick, tmp_path, capsys):
    assert main([*quick, "--model", str(tmp_path / "none")]) == ExitCode.MODEL_INVALID
    assert "there is no such folder" in capsys.readouterr().out
