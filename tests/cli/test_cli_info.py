import json
import os
import subprocess
import sys
from pathlib import Path

from sslmedsam2 import __version__
from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode
from sslmedsam2.weights.locate import SHIPPED_DIR

ENTRYPOINT = Path(__file__).parents[2] / "entrypoint.py"


def test_programs_learn_models_accuracy_and_exit_codes(capsys):
    assert main(["info", "--json"]) == ExitCode.OK

    about = json.loads(capsys.readouterr().out)
    [model] = about["models"]
    manifest = json.loads((SHIPPED_DIR / "manifest.json").read_text())["models"][0]
    assert about["version"] == __version__
    assert model["sha256"] == {file["path"]: file["sha256"] for file in manifest["files"]}
    assert model["measured"] == manifest["measured"]
    assert model["licence"].startswith("CC BY-NC-SA")
    assert {int(code) for code in about["exit_codes"]} == {int(code) for code in ExitCode}
    assert {"T2", "GED4"} <= set(about["sequences"])
    assert {".nii.gz", ".mha", "DICOM"} <= set(about["formats_read"])


def test_people_read_the_same_in_lines(capsys):
    assert main(["info"]) == ExitCode.OK

    printed = capsys.readouterr().out
    assert "model       liver (sequences: any)" in printed
    assert "130  stopped by Ctrl-C" in printed


def test_a_model_that_is_not_there_ends_with_4(capsys):
    assert main(["info", "--model", "/no/such/model"]) == ExitCode.MODEL_INVALID
    assert "/no/such/model" in capsys.readouterr().err


def complete(words: str) -> set[str]:
    """Ask for completions as bash does; the last word is incomplete."""
    asked = {
        "_ENTRYPOINT_PY_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, str(ENTRYPOINT)],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    return {line.partition(",")[2] for line in done.stdout.splitlines()}


def test_a_shell_completes_commands_options_and_values():
    assert {"predict", "pseudo-label"} <= complete("entrypoint.py p")
    assert {"--output", "--output-format"} <= complete("entrypoint.py predict --outp")
    assert complete("entrypoint.py predict --mode f") == {"fast"}
