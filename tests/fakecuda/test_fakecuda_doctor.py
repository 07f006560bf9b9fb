"""``doctor`` beside a GPU: it tries the card, says what is wrong, and can leave it alone."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch

import fakecuda
from sslmedsam2 import doctor as checks
from sslmedsam2.doctor import DoctorOptions, State, run_checks


def found(**options):
    folders = {"input_path": Path("/proc/self/fd"), "output_dir": Path("/nowhere")}
    diagnosis = run_checks(DoctorOptions(**folders, **options))
    return diagnosis.findings


def test_sound_card_is_described_and_segments_the_phantom():
    findings = found()
    assert findings["device"].state is State.OK
    assert "Fake CUDA, 80.0 of 80.0 GB free, compute capability 9.0" in findings["device"].text
    assert findings["inference"].details["device"] == "cuda"
    assert findings["inference"].details["dice"] > 0.8


@pytest.mark.parametrize(("device", "state"), [("auto", State.NOTE), ("cuda", State.PROBLEM)])
def test_card_without_kernels_is_reported_with_what_to_do(device, state):
    fakecuda.install(devices=2, capability=(7, 0))
    with fakecuda.broken("CUDA error: no kernel image is available for execution on the device"):
        finding = found(device=device, inference=False)["device"]
    assert finding.state is state
    assert "compute capability 7.0" in finding.text
    assert "--cuda 12.6" in finding.remedy


def test_health_check_takes_no_memory_of_the_gpu(monkeypatch):
    def touched(*_):
        raise AssertionError("a context would be made")

    for name in ("is_available", "mem_get_info", "get_device_properties", "device_count"):
        monkeypatch.setattr(torch.cuda, name, touched)
    before = fakecuda.native.used()
    fakecuda.native.reset_peak()
    findings = found(device="cpu", inference=False)
    assert {finding.state for finding in findings.values()} <= {State.OK, State.NOTE}
    assert fakecuda.native.peak() == before


@pytest.mark.parametrize(("gigabytes", "state"), [(0.064, State.NOTE), (8, State.OK)])
def test_little_shared_memory_is_noted_beside_a_gpu(monkeypatch, gigabytes, state):
    usage = namedtuple("usage", "total free")(int(gigabytes * 1e9), int(gigabytes * 1e9))
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    assert checks.check_shared_memory(Path("/")).state is State.OK
    finding = checks.check_shared_memory(Path("/"), on_gpu=True)
    assert finding.state is state
    assert (finding.remedy is not None) == (state is State.NOTE)
