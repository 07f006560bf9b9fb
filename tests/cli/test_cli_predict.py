"""The command ``predict``: options in, exit code and one summary line out."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk  # noqa: N813
from rich.console import Console
from tiny_models import bright_tissue_model
from tiny_scans import write_scan

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode
from sslmedsam2.reporting.run_report import load_report
from sslmedsam2.weights.manifest import Manifest, ModelCard, ModelEntry, hash_model, write_manifest

REPOSITORY = Path(__file__).parents[2]
RECORDS = {"run_report.json", "liver_volumes.csv"}


@pytest.fixture
def folders(tmp_path):
    """An input with one good case, and the path of an output that does not exist yet."""
    write_scan(tmp_path / "input" / "Vendor-A" / "0001-A" / "GED4.nii.gz")
    return tmp_path / "input", tmp_path / "output"


@pytest.fixture
def run(folders, bright_model):
    """Run the command with the small model."""

    def call(*args, source=folders[0]):
        target = folders[1]
        return main(
            ["predict", "--input", str(source), "--output", str(target), "--device", "cpu",
             "--model", str(bright_model), *args]
        )  # fmt: skip

    return call


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_good_run_ends_with_0_and_says_where_to_look(run, folders, capsys):
    assert run() == ExitCode.OK

    printed = capsys.readouterr()
    table = folders[1] / "liver_volumes.csv"
    assert printed.out.strip() == f"1 ok; see {table}"
    assert "1/1 0001-A GED4: ok" in printed.err
    assert files_in(folders[1]) == {
        "liver_volumes.csv",
        "run_report.json",
        "LiSeg_pred/0001-A/GED4_pred.nii.gz",
        "previews/0001-A_GED4.png",
    }


def test_quiet_leaves_the_summary_only(run, capsys):
    assert run("--quiet") == ExitCode.OK

    printed = capsys.readouterr()
    assert printed.out.startswith("1 ok")
    assert "0001-A" not in printed.err


def test_options_reach_the_run(run, folders):
    assert run("--mode", "fast", "--no-mirror", "--no-second-view", "--on-failure", "skip",
               "--sequences", "ged4 t1", "--mask-dtype", "input",
               "--no-previews") == ExitCode.OK  # fmt: skip

    assert load_report(folders[1] / "run_report.json").options == {
        "sequences": ["GED4", "T1"],
        "device": "cpu",
        "mode": "fast",
        "mirror": False,
        "second_view": False,
        "on_failure": "skip",
        "previews": False,
        "mask_dtype": "input",
    }
    assert not (folders[1] / "previews").exists()


def test_the_container_needs_no_arguments(folders, bright_model, monkeypatch):
    monkeypatch.setenv("SSLMEDSAM2_INPUT", str(folders[0]))
    monkeypatch.setenv("SSLMEDSAM2_OUTPUT", str(folders[1]))
    monkeypatch.setenv("SSLMEDSAM2_MODEL", str(bright_model))
    monkeypatch.setenv("SSLMEDSAM2_DEVICE", "cpu")

    assert main([]) == ExitCode.OK
    assert (folders[1] / "LiSeg_pred" / "0001-A" / "GED4_pred.nii.gz").is_file()


def test_a_page_is_made_on_request_of_masks_that_stay_as_they_are(run, folders, capsys):
    assert run() == ExitCode.OK
    mask = folders[1] / "LiSeg_pred" / "0001-A" / "GED4_pred.nii.gz"
    without_page = mask.read_bytes()
    assert not (folders[1] / "report").exists()
    assert run("--report") == ExitCode.OK

    index = folders[1] / "report" / "index.html"
    assert capsys.readouterr().out.splitlines()[-1] == f"open {index} in a browser"
    assert "0001-A" in index.read_text()
    assert (folders[1] / "report" / "cases" / "0001.js").stat().st_size > 10_000
    assert mask.read_bytes() == without_page


def test_a_page_that_cannot_be_written_costs_a_warning_only(run, folders, capsys):
    folders[1].mkdir()
    (folders[1] / "report").write_text("in the way")

    # A run that does not resume moves away what is there.
    assert run("--report", "--resume") == ExitCode.OK

    printed = capsys.readouterr()
    assert printed.out.startswith("1 ok")
    assert "in a browser" not in printed.out
    assert "no page of the results: " in printed.err
    assert (folders[1] / "LiSeg_pred" / "0001-A" / "GED4_pred.nii.gz").is_file()


def test_resume_keeps_what_is_complete(run, capsys):
    assert run() == ExitCode.OK
    assert run("--resume") == ExitCode.OK

    shown = capsys.readouterr()
    assert "1 kept" in shown.out
    assert "skipped_resume" not in shown.err


def test_a_bad_file_among_good_ones_ends_with_1(run, folders, capsys):
    (folders[0] / "Vendor-A" / "0002-A").mkdir()
    (folders[0] / "Vendor-A" / "0002-A" / "GED4.nii.gz").write_bytes(b"")

    assert run() == ExitCode.SOME_CASES_FAILED

    printed = capsys.readouterr()
    assert printed.out.startswith("1 ok, 1 failed")
    assert "the file is empty (0 bytes)" in printed.err


def one_error(capsys):
    """Return the error line; there must be one and no traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    [line] = [line for line in lines if line.startswith("error: ")]
    return line


def test_an_input_that_is_not_there_ends_with_3(run, capsys):
    assert run(source="/no/such/folder") == ExitCode.NO_VALID_INPUT
    assert "/no/such/folder: does not exist" in one_error(capsys)


def test_an_empty_input_ends_with_3(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()

    assert run(source=tmp_path / "empty") == ExitCode.NO_VALID_INPUT
    assert "no volume can be used" in one_error(capsys)


def test_a_model_that_is_not_there_ends_with_4(run, folders, capsys):
    assert run("--model", "/no/such/model") == ExitCode.MODEL_INVALID
    assert "/no/such/model" in one_error(capsys)
    assert not folders[1].exists()


def test_a_folder_that_is_no_model_ends_with_4(run, folders, capsys):
    assert run("--model", str(folders[0])) == ExitCode.MODEL_INVALID
    assert "it holds no dataset.json" in one_error(capsys)


@pytest.mark.parametrize(
    "args", [("--sequences", "GED9"), ("--sequences", ","), ("--mode", "slow"), ("--steps", "3")]
)
def test_wrong_options_end_with_2(run, folders, args):
    assert run(*args) == ExitCode.USAGE
    assert not folders[1].exists()


def test_an_output_that_cannot_be_written_is_one_line(run, folders, capsys):
    folders[1].write_text("in the way")

    assert run() == ExitCode.SOME_CASES_FAILED
    assert "A part of the path is a file" in one_error(capsys)


def test_a_forgotten_output_is_an_error_outside_the_container(folders, capsys, monkeypatch):
    monkeypatch.setattr("sslmedsam2.cli.predict._CONTAINER_OUTPUT", folders[1] / "none")

    assert main(["predict", "--input", str(folders[0])]) == ExitCode.USAGE

    assert "--output: it is not given" in capsys.readouterr().err


def test_an_output_that_names_a_mask_is_that_mask(folders, bright_model, capsys):
    source, target = folders
    wanted = target.parent / "liver.nii.gz"
    call = ["predict", "--input", str(source), "--output", str(wanted), "--device", "cpu",
            "--no-mirror", "--model", str(bright_model)]  # fmt: skip

    assert main(call) == ExitCode.OK

    assert files_in(target.parent) == {"liver.nii.gz", "input/Vendor-A/0001-A/GED4.nii.gz"}
    assert f"see {wanted}" in capsys.readouterr().out
    write_scan(source / "Vendor-A" / "0001-A" / "T1.nii.gz")
    assert main(call) == ExitCode.USAGE


def test_a_mask_that_cannot_be_written_is_an_error_before_anything_is_computed(
    folders, bright_model, capsys, monkeypatch
):
    (folders[1].parent / "file").write_text("in the way")
    monkeypatch.setattr("sslmedsam2.predict.series.SeriesWork.compute", None)
    call = ["predict", str(folders[0]), "--output", str(folders[1].parent / "file" / "liver.nii"),
            "--device", "cpu", "--model", str(bright_model)]  # fmt: skip

    assert main(call) == ExitCode.SOME_CASES_FAILED
    assert "A part of the path is a file" in one_error(capsys)


@pytest.mark.parametrize("option", ["--resume", "--report", "--maps", "--statistics"])
def test_what_needs_a_folder_of_results_is_refused_for_one_mask(folders, capsys, option):
    source, target = folders

    call = ["predict", str(source), "--output", str(target.parent / "liver.nii.gz"), option]
    assert main(call) == ExitCode.USAGE

    assert f"{option}: it needs a folder of results" in capsys.readouterr().err
    assert not (target.parent / "liver.nii.gz").exists()


def test_a_rerun_into_a_used_folder_says_so_and_keeps_nothing_stale(run, folders, capsys):
    source, target = folders
    assert run("--no-previews") == ExitCode.OK
    (source / "Vendor-A" / "0001-A").rename(source / "Vendor-A" / "0002-A")
    capsys.readouterr()

    assert run("--no-previews") == ExitCode.OK

    assert "holds an earlier run; --resume would continue it" in capsys.readouterr().err
    masks = {name for name in files_in(target) if name.endswith(".nii.gz")}
    assert "LiSeg_pred/0002-A/GED4_pred.nii.gz" in masks
    [earlier] = masks - {"LiSeg_pred/0002-A/GED4_pred.nii.gz"}
    assert earlier.startswith("LiSeg_pred.replaced-")


def test_no_guess_is_written_outside_the_container_by_default(folders, tmp_path):
    source, target = folders
    blind = bright_tissue_model(tmp_path / "blind", threshold=1e6)
    call = ["predict", "--input", str(source), "--output", str(target), "--device", "cpu",
            "--no-mirror", "--no-previews", "--model", str(blind)]  # fmt: skip

    assert main(call) == ExitCode.SOME_CASES_FAILED
    assert files_in(target) == {"run_report.json", "liver_volumes.csv"}

    assert main([*call, "--on-failure", "fallback"]) == ExitCode.SOME_CASES_FAILED
    assert "LiSeg_pred/0001-A/GED4_pred.nii.gz" in files_in(target)


def test_a_system_without_the_module_resource_can_predict(monkeypatch):
    from sslmedsam2.predict.series import peak_memory_mb

    monkeypatch.setitem(sys.modules, "resource", None)

    assert peak_memory_mb() == 0.0


def command(folders, model, *args):
    """Run the command with paths of its own; it is quick and writes no preview."""
    options = ["--device", "cpu", "--no-mirror", "--no-previews", "--model", str(model)]
    return main(["predict", *options, *map(str, args), "-o", str(folders[1])])


def test_several_scans_and_folders_are_one_run(folders, bright_model, tmp_path, monkeypatch):
    write_scan(tmp_path / "a" / "scan.nii.gz")
    write_scan(tmp_path / "b" / "scan.nii.gz")
    write_scan(tmp_path / "b" / "other.nii.gz")

    monkeypatch.chdir(tmp_path / "b")
    given = ("../a/scan.nii.gz", "scan.nii.gz", "scan.nii.gz", "-i", folders[0])
    assert command(folders, bright_model, *given, "--report") == ExitCode.OK

    files = files_in(folders[1])
    shown = {name for name in files if re.fullmatch(r"report/cases/\d+\.js", name)}
    assert {(folders[1] / name).stat().st_size > 10_000 for name in shown} == {True}
    assert len(shown) == 3
    assert {name for name in files if not name.startswith("report/")} - RECORDS == {
        "a_scan_liver.nii.gz",
        "b_scan_liver.nii.gz",
        "LiSeg_pred/0001-A/GED4_pred.nii.gz",
    }
    report = load_report(folders[1] / "run_report.json")
    assert {result.input_path for result in report.series} == {
        "a/scan.nii.gz",
        "b/scan.nii.gz",
        "input/Vendor-A/0001-A/GED4.nii.gz",
    }


def test_scans_of_the_command_line_replace_those_of_file_and_environment(
    folders, bright_model, tmp_path, monkeypatch
):
    scan = write_scan(tmp_path / "a" / "scan.nii.gz")
    config = tmp_path / "run.json"
    config.write_text(json.dumps({"input": str(folders[0])}))
    monkeypatch.setenv("SSLMEDSAM2_INPUT", str(folders[0]))

    assert command(folders, bright_model, scan, "--config", config) == ExitCode.OK
    assert files_in(folders[1]) == RECORDS | {"scan_liver.nii.gz"}

    monkeypatch.delenv("SSLMEDSAM2_INPUT")
    assert command(folders, bright_model, "--config", config, "--resume") == ExitCode.OK
    assert "LiSeg_pred/0001-A/GED4_pred.nii.gz" in files_in(folders[1])


def test_a_mask_given_among_several_scans_is_reported(folders, bright_model, tmp_path, capsys):
    scan, mask = (write_scan(tmp_path / "a" / name) for name in ("s.nii.gz", "s_seg.nii.gz"))

    assert command(folders, bright_model, scan, mask) == ExitCode.SOME_CASES_FAILED

    assert "s_seg.nii.gz: is named like a mask" in capsys.readouterr().err


def test_one_of_several_scans_that_is_not_there_ends_with_3(folders, bright_model, capsys):
    given = (folders[0], folders[0] / "none.nii.gz")

    assert command(folders, bright_model, *given) == ExitCode.NO_VALID_INPUT

    shown = one_error(capsys)
    assert "none.nii.gz: does not exist" in shown
    assert "--output" in shown
    assert not folders[1].exists()


def test_masks_have_the_format_of_their_scans_on_request(folders, bright_model, tmp_path):
    image = sitk.ReadImage(str(write_scan(tmp_path / "a" / "one.nii.gz")))
    for name in ("two.mha", "three.nrrd"):
        sitk.WriteImage(image, str(tmp_path / "a" / name))

    same = command(folders, bright_model, tmp_path / "a", "--output-format", "same")
    assert same == ExitCode.OK

    masks = {"one_liver.nii.gz", "two_liver.mha", "three_liver.nrrd"}
    assert files_in(folders[1]) - RECORDS == masks
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(folders[1] / name))) for name in masks]
    assert all((array == arrays[0]).all() for array in arrays)


def test_the_sequence_of_plain_files_chooses_the_model(folders, tmp_path):
    model = bright_tissue_model(tmp_path / "models" / "liver")
    card = ModelCard("none", "none", "Apache-2.0", "2026-01-31", {})
    entry = ModelEntry("liver", ("T2",), ("0",), hash_model(model, ("0",)), card)
    write_manifest(Manifest((entry,)), tmp_path / "models" / "manifest.json")
    scan = write_scan(tmp_path / "a" / "scan.nii.gz")

    assert command(folders, tmp_path / "models", scan) == ExitCode.NO_VALID_INPUT
    assert command(folders, tmp_path / "models", scan, "--sequence", "T2w") == ExitCode.OK

    [result] = load_report(folders[1] / "run_report.json").series
    assert (result.sequence, result.output_path) == ("T2", "scan_liver.nii.gz")
    assert command(folders, tmp_path / "models", scan, "--sequence", "T1,T2") == ExitCode.USAGE


def test_programs_read_progress_as_one_object_a_line(folders, bright_model, capsys, monkeypatch):
    (folders[0] / "empty.nii.gz").write_bytes(b"")
    monkeypatch.setenv("SSLMEDSAM2_UNKNOWN", "1")

    code = command(folders, bright_model, folders[0], "--progress", "json")

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    scans = [line for line in lines if line["event"] == "scan"]
    assert code == ExitCode.SOME_CASES_FAILED
    assert [(scan["done"], scan["total"]) for scan in scans] == [(1, 2), (2, 2)]
    by_status = {scan["status"]: scan for scan in scans}
    assert by_status["ok"]["output_path"] == "LiSeg_pred/0001-A/GED4_pred.nii.gz"
    assert by_status["ok"]["liver_volume_ml"] > 0
    assert "the file is empty" in by_status["failed"]["error"]
    assert scans[-1]["seconds_left"] == 0
    assert {line["event"] for line in lines} == {"scan", "log"}
    assert "SSLMEDSAM2_UNKNOWN" in lines[0]["message"]


def test_an_error_is_an_object_too_for_programs(folders, bright_model, capsys):
    code = command(folders, bright_model, "/no/such/scan.nii.gz", "--progress", "json")

    assert code == ExitCode.NO_VALID_INPUT
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert last["event"] == "error"
    assert "/no/such/scan.nii.gz" in last["message"]


def test_masks_go_to_an_output_socket_of_grand_challenge(folders, bright_model, tmp_path):
    write_scan(tmp_path / "in" / "images" / "abdominal-mri" / "4f2a.nii.gz")

    options = ("--layout", "grand-challenge", "--output-slug", "liver")
    assert command(folders, bright_model, tmp_path / "in", *options) == ExitCode.OK

    [mask] = files_in(folders[1]) - RECORDS
    assert mask == "images/liver/images_abdominal-mri_4f2a.mha"
    assert command(folders, bright_model, *options, "--output-slug", "../x") == ExitCode.USAGE


def test_masks_are_named_as_bids_derivatives_on_request(folders, bright_model, tmp_path):
    anat = tmp_path / "bids" / "sub-01" / "ses-1" / "anat"
    write_scan(anat / "sub-01_ses-1_run-2_T2w.nii.gz")
    write_scan(tmp_path / "bids" / "0930-B" / "GED4.nii.gz")

    assert command(folders, bright_model, tmp_path / "bids", "--layout", "bids") == ExitCode.OK

    masks = {
        "dataset_description.json",
        "sub-01/ses-1/anat/sub-01_ses-1_run-2_label-liver_desc-T2w_mask.nii.gz",
        "sub-0930B/anat/sub-0930B_label-liver_desc-GED4_mask.nii.gz",
    }
    assert files_in(folders[1]) - RECORDS == masks
    report = load_report(folders[1] / "run_report.json")
    assert [(result.case, result.sequence) for result in report.series] == [
        ("0930-B", "GED4"),
        ("sub-01_ses-1_run-2", "T2"),
    ]
    # A second run replaces them.
    assert command(folders, bright_model, tmp_path / "bids", "--layout", "bids") == ExitCode.OK
    assert {n for n in files_in(folders[1]) if ".replaced-" not in n} == masks | RECORDS


def test_two_scans_of_one_name_in_a_layout_are_refused(folders, bright_model, tmp_path, capsys):
    write_scan(tmp_path / "a" / "p-1.nii.gz")
    write_scan(tmp_path / "a" / "p_1.nii.gz")

    assert command(folders, bright_model, tmp_path / "a", "--layout", "bids") == ExitCode.USAGE

    assert "2 scans would be written to sub-p1/anat" in one_error(capsys)
    assert not folders[1].exists()


@pytest.mark.parametrize("name", ["mask.mhd", "mask.png", "mask.dcm", "mask.nii.bz2", "mask.gz"])
def test_an_output_named_as_a_file_that_is_not_written_is_no_folder(tmp_path, capfd, name):
    scan = write_scan(tmp_path / "scan.nii.gz")

    code = main(["predict", str(scan), "-o", str(tmp_path / name)])

    assert code == ExitCode.USAGE
    assert "masks are not written in the format of this name" in capfd.readouterr().err
    assert not (tmp_path / name).exists()


UNUSED_FOR_A_NIFTI_SCAN = {
    *("torch", "nnunetv2", "SimpleITK", "nibabel", "pydicom", "highdicom", "skimage"),
    *("matplotlib", "jinja2", "rich", "dask", "openvino.tools.ovc"),
}
"""Each of these would lengthen the time to the first mask."""


def test_a_nifti_scan_is_segmented_on_a_cpu_without_packages_of_other_tasks(bright_model, tmp_path):
    scan = write_scan(tmp_path / "a" / "scan.nii.gz")
    predict = ["predict", str(scan), "-o", str(tmp_path / "mask.nii.gz"), "--device", "cpu"]
    predict += ["--model", str(bright_model), "--no-previews"]
    code = (
        "import sys\n"
        "from sslmedsam2.cli.main import main\n"
        f"assert main({predict!r}) == 0\n"
        f"used = {sorted(UNUSED_FOR_A_NIFTI_SCAN)!r}\n"
        "print([name for name in used if sys.modules.get(name)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_every_module_can_be_imported_without_posix_modules():
    """They are kept from this package alone: psutil, for one, takes Linux for granted here."""
    code = (
        "import builtins, importlib, pkgutil\n"
        "imported = builtins.__import__\n"
        "def without_posix(name, scope=None, *rest, **more):\n"
        "    if name in ('fcntl', 'resource', 'pwd', 'grp', 'termios', 'pty'):\n"
        "        if str((scope or {}).get('__name__')).startswith('sslmedsam2'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "    return imported(name, scope, *rest, **more)\n"
        "builtins.__import__ = without_posix\n"
        "import sslmedsam2\n"
        "found = pkgutil.walk_packages(sslmedsam2.__path__, 'sslmedsam2.')\n"
        "for name in [one.name for one in found if not one.name.endswith('__main__')]:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_a_system_without_posix_modules_and_calls_can_predict_and_be_checked(
    bright_model, tmp_path
):
    """As far as that shows on Linux: what macOS or Windows lack is taken away first."""
    scan, mask = write_scan(tmp_path / "a" / "scan.nii.gz"), tmp_path / "mask.nii.gz"
    predict = ["predict", str(scan), "-o", str(mask), "--device", "cpu", "--no-mirror"]
    predict += ["--model", str(bright_model)]
    doctor = ["doctor", "--no-inference", "--device", "cpu", "--model", str(bright_model)]
    code = (
        "import os, signal, sys\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios', 'pty'):\n"
        "    sys.modules[name] = None\n"
        "for name in ('sched_getaffinity', 'sched_setaffinity', 'getuid', 'getgid', 'statvfs'):\n"
        "    delattr(os, name)\n"
        "from sslmedsam2.cli.main import main\n"
        f"assert main({predict!r}) == 0\n"
        f"main({doctor!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert mask.is_file()
    assert "processors" in done.stdout


def test_a_terminal_shows_one_bar_with_the_time_left(folders, bright_model, monkeypatch):
    write_scan(folders[0] / "Vendor-A" / "0002-A" / "GED4.nii.gz")
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    for module in ("predict", "logging_setup"):
        monkeypatch.setattr(f"sslmedsam2.cli.{module}.terminal_console", lambda: console)

    assert command(folders, bright_model, folders[0]) == ExitCode.OK

    shown = console.file.getvalue()
    assert re.search(r"1/2 0:00:\d\d about \d+ s left", shown)
    assert "2/2 0002-A GED4: ok" in shown
    assert "INFO:" not in shown


def test_one_file_that_is_no_scan_is_named_with_the_reason_where_one_mask_is_asked_for(
    tmp_path, capsys
):
    scan = write_scan(tmp_path / "mask_of_me.nii.gz")

    assert main(["predict", str(scan), "--output", str(tmp_path / "liver.nii.gz")]) != ExitCode.OK

    shown = capsys.readouterr()
    assert "mask_of_me.nii.gz" in shown.err
    assert "liver.nii.gz" not in shown.out
