"""What `doctor` finds on a sound machine, and how it tells of one that is not."""

import os
import shutil
from pathlib import Path

import pytest

from sslmedsam2 import doctor as surroundings
from sslmedsam2.doctor import DoctorOptions, State, run_checks
from sslmedsam2.errors import ExitCode
from sslmedsam2.execution.host import Limits
from sslmedsam2.weights.locate import SHIPPED_DIR


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "in" / "0001-A").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    return {"input_path": tmp_path / "in", "output_dir": tmp_path / "out"}


def test_a_sound_machine_segments_a_phantom_with_the_shipped_weights(folders):
    diagnosis = run_checks(DoctorOptions(**folders, device="cpu"))

    found = diagnosis.findings
    assert diagnosis.problems == ()
    assert diagnosis.exit_code == ExitCode.OK
    assert found["inference"].state is State.OK
    assert found["inference"].details["dice"] > 0.8
    model = found["weights"].details["models"][0]
    assert model["verified"] is True
    assert model["sha256"]["fold_all/checkpoint_final.pth"][:12] in found["weights"].text
    assert "compact" in found["sam2"].details["weights"]
    assert found["input"].text.endswith("1 entries")
    assert list(folders["output_dir"].iterdir()) == []


def test_an_altered_model_is_to_blame_and_all_else_is_still_answered(folders, tmp_path):
    shutil.copytree(SHIPPED_DIR, tmp_path / "weights")
    (tmp_path / "weights" / "liver" / "plans.json").write_text("{}")

    diagnosis = run_checks(DoctorOptions(**folders, model_dir=tmp_path / "weights", device="cpu"))

    found = diagnosis.findings
    assert set(diagnosis.problems) == {"weights", "inference"}
    assert diagnosis.exit_code == ExitCode.MODEL_INVALID
    assert "plans.json" in found["weights"].text
    assert found["output"].state is State.OK


def test_a_model_that_misses_a_phantom_is_worth_a_note(folders, bright_model):
    options = DoctorOptions(**folders, model_dir=bright_model, device="cpu")

    found = run_checks(options).findings

    assert found["weights"].state is State.NOTE
    assert found["inference"].state is State.NOTE
    assert found["inference"].details["dice"] < 0.7


def test_without_inference_no_network_is_loaded(folders):
    assert "inference" not in run_checks(DoctorOptions(**folders, inference=False)).findings


def test_a_library_that_cannot_be_loaded_is_a_finding(folders, monkeypatch):
    def broken(_name):
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr("sslmedsam2.doctor.version", broken)

    diagnosis = run_checks(DoctorOptions(**folders, inference=False))

    assert set(diagnosis.problems) == {"torch", "sam2"}
    assert diagnosis.findings["torch"].text.startswith("ImportError: libcudart.so.13")


def test_a_gpu_that_was_asked_for_and_is_not_there_is_a_problem(folders, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    diagnosis = run_checks(DoctorOptions(**folders, device="cuda", inference=False))

    assert diagnosis.problems == ("device",)
    assert "--gpus all" in diagnosis.findings["device"].remedy


def test_a_driver_whose_gpu_cannot_be_used_is_noted(folders, monkeypatch, tmp_path):
    words = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.223.02  Sat Oct  7 2023\n"
    (tmp_path / "version").write_text(words)
    monkeypatch.setattr("sslmedsam2.inference.device._KERNEL_DRIVER", tmp_path / "version")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.0")

    device = run_checks(DoctorOptions(**folders, inference=False)).findings["device"]

    assert device.state is State.NOTE
    assert "driver 470.223.02 is too old for CUDA 13.0, which needs 580 or newer" in device.text
    assert "--cuda 12.6" in device.remedy


@pytest.mark.parametrize(
    ("limits", "ask", "state"),
    [
        (Limits(None, 8 * 10**9, 0, None, None), surroundings.check_memory, State.OK),
        (Limits(None, 10**9, 0, None, None), surroundings.check_memory, State.PROBLEM),
        (Limits(None, None, None, 128, 5), surroundings.check_processes, State.OK),
        (Limits(None, None, None, 32, 5), surroundings.check_processes, State.PROBLEM),
        (Limits(None, None, None, None, None), surroundings.check_processes, State.OK),
    ],
)
def test_tight_limits_are_problems(limits, ask, state):
    finding = ask(limits)
    assert finding.state is state
    assert (finding.remedy is not None) == (state is State.PROBLEM)


def test_an_output_folder_that_cannot_be_written_is_a_problem():
    # Nobody may make files there, whoever runs the tests.
    finding = surroundings.check_output(Path("/proc"))
    assert finding.state is State.PROBLEM
    assert "--user" in finding.remedy


def test_folders_that_are_not_there_are_worth_a_note(tmp_path):
    assert surroundings.check_input(tmp_path / "none").state is State.NOTE
    assert surroundings.check_output(tmp_path / "none").state is State.NOTE


def test_no_temporary_folder_is_a_problem(monkeypatch):
    def nowhere():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    finding = surroundings.check_temporary_folder()
    assert finding.state is State.PROBLEM
    assert "--tmpfs /tmp" in finding.remedy


def test_processors_are_those_that_the_process_may_use():
    details = surroundings.check_processors(Limits(1.5, None, None, None, None)).details
    assert details["used"] == len(os.sched_getaffinity(0))
    assert details["limit"] == 1.5
