import errno
import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from tiny_scans import abdomen, write_scan

from sslmedsam2 import __version__
from sslmedsam2.cli import main as cli_main
from sslmedsam2.cli.config import ConfiguredCommand
from sslmedsam2.errors import ExitCode, NoInputError

ENTRYPOINT = Path(__file__).parents[2] / "entrypoint.py"
HEAVY = {
    *("torch", "numpy", "nibabel", "SimpleITK", "scipy"),
    *("nnunetv2", "openvino", "rich", "sam2"),
}


@pytest.fixture
def predict(monkeypatch):
    """Stand in for the predict command; records the options of each call."""
    calls = []

    @click.command(cls=ConfiguredCommand)
    @click.option("--input", "input_dir", default="/input")
    @click.option("--output", "output_dir", default="/output")
    @click.option("--device", default="auto")
    @click.option("--fail", type=click.Choice(["family", "interrupt", "code"]))
    @click.pass_context
    def command(ctx, **options):
        calls.append(options)
        if options["fail"] == "family":
            raise NoInputError("/input", reason="the folder is empty", remedy="Mount the studies")
        if options["fail"] == "interrupt":
            raise KeyboardInterrupt
        if options["fail"] == "code":
            ctx.exit(int(ExitCode.SOME_CASES_FAILED))

    module = type(sys)("stand_in_predict")
    module.predict = command
    monkeypatch.setitem(sys.modules, "sslmedsam2.cli.stand_in_predict", module)
    entry = cli_main._COMMANDS["predict"]._replace(module="stand_in_predict")
    monkeypatch.setitem(cli_main._COMMANDS, "predict", entry)
    return calls


def run_entrypoint(*args, cwd=None):
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_without_arguments_predict_runs_on_the_container_folders(predict):
    assert cli_main.main([]) == 0
    assert predict == [
        {"input_dir": "/input", "output_dir": "/output", "device": "auto", "fail": None}
    ]


@pytest.mark.parametrize(
    "args",
    [
        ["--device", "cpu"],
        ["-v", "--device", "cpu"],
        ["predict", "--device", "cpu"],
        ["-q", "predict", "--device", "cpu", "-q"],
    ],
)
def test_options_without_a_command_go_to_predict(predict, args):
    assert cli_main.main(args) == 0
    assert predict[0]["device"] == "cpu"


def test_help_and_version_are_the_groups_own(predict, capsys):
    assert cli_main.main(["--help"]) == 0
    listing = capsys.readouterr().out
    assert cli_main.main(["--version"]) == 0

    assert "evaluate" in listing
    assert "package" in listing
    assert __version__ in capsys.readouterr().out
    assert predict == []


@pytest.mark.usefixtures("predict")
def test_a_family_error_is_one_line_with_its_exit_code(capsys):
    assert cli_main.main(["--fail", "family"]) == ExitCode.NO_VALID_INPUT

    assert capsys.readouterr().err == "error: /input: the folder is empty. Mount the studies.\n"


@pytest.mark.usefixtures("predict")
def test_verbose_adds_the_traceback(capsys):
    assert cli_main.main(["--fail", "family", "-v"]) == ExitCode.NO_VALID_INPUT

    assert "Traceback" in capsys.readouterr().err


@pytest.mark.usefixtures("predict")
def test_an_interrupt_ends_with_130():
    assert cli_main.main(["--fail", "interrupt"]) == 130


@pytest.mark.usefixtures("predict")
def test_a_commands_own_exit_code_is_passed_on():
    assert cli_main.main(["--fail", "code"]) == ExitCode.SOME_CASES_FAILED


@pytest.mark.parametrize("args", [["predikt"], ["--no-such-option"], ["-v", "-q"]])
def test_wrong_usage_ends_with_2(predict, args, capsys):
    assert cli_main.main(args) == ExitCode.USAGE
    assert capsys.readouterr().err.count("Traceback") == 0
    assert predict == []


@pytest.mark.parametrize(
    ("args", "level"),
    [
        ([], logging.INFO),
        (["-q"], logging.WARNING),
        (["predict", "--verbose"], logging.DEBUG),
        (["-v", "predict"], logging.DEBUG),
    ],
)
@pytest.mark.usefixtures("predict")
def test_the_switches_set_the_projects_log_level(args, level):
    cli_main.main(args)

    assert logging.getLogger("sslmedsam2").level == level


@pytest.mark.usefixtures("predict")
def test_the_command_line_overrules_a_switch_in_the_environment(monkeypatch):
    monkeypatch.setenv("SSLMEDSAM2_QUIET", "1")

    assert cli_main.main(["predict", "-v"]) == 0
    assert logging.getLogger("sslmedsam2").level == logging.DEBUG


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SSLMEDSAM2_DEVCE", "did you mean SSLMEDSAM2_DEVICE?"),
        ("sslmedsam2_mode", "did you mean SSLMEDSAM2_MODE?"),
        ("SSLMEDSAM_ON_FAILURE", "did you mean SSLMEDSAM2_ON_FAILURE?"),
        ("SSLMEDSAM2_ZZZZ", "has no effect"),
    ],
)
def test_a_mistyped_variable_of_the_environment_is_named(monkeypatch, capsys, name, said):
    monkeypatch.setenv(name, "1")
    # Of another command, and of a command below one.
    monkeypatch.setenv("SSLMEDSAM2_EPOCHS", "3")
    monkeypatch.setenv("SSLMEDSAM2_ACCEPT_LICENCE", "1")

    assert cli_main.main(["info"]) == ExitCode.OK

    warned = [line for line in capsys.readouterr().err.splitlines() if "environment" in line]
    assert len(warned) == 1
    assert f"{name} in the environment" in warned[0]
    assert said in warned[0]


@pytest.mark.usefixtures("predict")
def test_log_lines_off_a_terminal_are_plain_and_timestamped(capsys):
    cli_main.main([])

    logging.getLogger("sslmedsam2.probe").info("reading [bold]0001-A")

    line = capsys.readouterr().err
    assert line[:4].isdigit()
    assert line.endswith("INFO    reading [bold]0001-A\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes streams")
def test_a_command_without_streams_does_its_work(tmp_path):
    masks, table = tmp_path / "masks", tmp_path / "scores.csv"
    write_scan(masks / "0001-A" / "mask_T2.nii.gz", abdomen()[1], dtype=np.uint8)
    command = f"{sys.executable} {ENTRYPOINT} evaluate --predictions {masks} --references {masks}"

    done = subprocess.run(f"{command} --csv {table} <&- >&- 2>&-", shell=True, check=False)

    assert done.returncode == ExitCode.OK
    assert "0001-A,T2" in table.read_text()


def test_a_name_that_is_no_text_can_be_printed(monkeypatch, tmp_path):
    for place in ("pred/M\udcfcl/T2_pred.nii.gz", "ref/M\udcfcl/mask_T2.nii.gz"):
        write_scan(tmp_path / place, abdomen()[1], dtype=np.uint8)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "utf-8", errors="strict"))
    table, scores = tmp_path / "scores.csv", tmp_path / "scores.json"

    masks = ["--predictions", str(tmp_path / "pred"), "--references", str(tmp_path / "ref")]
    code = cli_main.main(["evaluate", *masks, "--csv", str(table), "--json", str(scores)])

    sys.stdout.flush()
    assert code == ExitCode.OK
    assert rb"M\udcfcl" in printed.getvalue()
    assert rb"M\udcfcl" in table.read_bytes()
    assert json.loads(scores.read_text())["rows"][0]["case"] == r"M\udcfcl"


def test_the_entrypoint_works_from_any_folder(tmp_path):
    done = run_entrypoint(str(ENTRYPOINT), "--version", cwd=tmp_path)

    assert done.returncode == 0
    assert __version__ in done.stdout


def test_help_of_no_command_imports_a_heavy_package():
    code = (
        "import sys\n"
        "from sslmedsam2.cli.main import _COMMANDS, main\n"
        "for words in ([], *([name] for name in _COMMANDS)):\n"
        "    assert main([*words, '--help']) == 0, words\n"
        f"    assert not set(sys.modules) & {HEAVY!r}, words\n"
    )
    done = run_entrypoint("-c", code, cwd=ENTRYPOINT.parent)

    assert done.returncode == 0, done.stderr
    assert "--on-failure" in done.stdout


@pytest.mark.parametrize("name", ["/data/out/progress.png", b"/data/out/progress.png"])
def test_a_file_that_a_library_cannot_write_is_one_line(monkeypatch, capsys, name):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device", name)

    monkeypatch.setattr(cli_main.cli, "main", full)

    assert cli_main.main([]) == ExitCode.SOME_CASES_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /data/out/progress.png: cannot be written (No space left")


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.EIO])
def test_an_error_of_reading_is_not_called_one_of_writing(monkeypatch, capsys, number):
    def closed(**_):
        raise OSError(number, "the cause", "/data/in/T2.nii.gz")

    monkeypatch.setattr(cli_main.cli, "main", closed)

    assert cli_main.main([]) == ExitCode.SOME_CASES_FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /data/in/T2.nii.gz: cannot be read or written (the cause). ")
    assert "output" not in line
