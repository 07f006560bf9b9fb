"""The fake device is as strict as CUDA, and a GPU is used only after it has computed right."""

import pytest
import torch
from click.testing import CliRunner

import fakecuda
from sslmedsam2.cli.shared_options import DEVICE
from sslmedsam2.errors import UsageError
from sslmedsam2.inference import device as device_module
from sslmedsam2.inference.device import choose_device, gpu_fault

NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


def test_fake_refuses_mixed_devices_and_counts_copies():
    on_gpu = torch.ones(1000, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        on_gpu + torch.ones(1000)
    fakecuda.reset()
    (torch.ones(1000).cuda() + on_gpu).cpu()
    assert fakecuda.transfers() == (2, 4000, 4000)


def test_fake_runs_out_of_memory_and_breaks_for_good_as_cuda_does():
    with fakecuda.memory_limit(1000), pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(1000, device="cuda")
    tensor = torch.ones(3, device="cuda")
    with fakecuda.broken("CUDA error: an illegal memory access", after=1):
        tensor + 1
        for _ in range(2):
            with pytest.raises(torch.AcceleratorError, match="illegal"):
                tensor.cpu()
    assert torch.isnan(torch.empty(3, device="cuda")).all(), "fresh memory holds nothing of use"


def test_autocast_of_the_fake_computes_convolutions_in_half_precision():
    volume, kernel = torch.randn(1, 1, 4, 4, 4).cuda(), torch.randn(1, 1, 3, 3, 3).cuda()
    with torch.autocast("cuda", torch.float16):
        assert torch.nn.functional.conv3d(volume, kernel).dtype == torch.float16


def test_gpu_that_computes_right_is_chosen_by_default(caplog):
    assert [choose_device(wanted) for wanted in ("auto", "cuda", "cuda:0", "cpu")] == [
        "cuda",
        "cuda",
        "cuda:0",
        "cpu",
    ]
    assert not caplog.records


def test_number_of_a_gpu_that_is_not_there_and_other_words_are_refused():
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(UsageError, match="2 GPU"):
        choose_device("cuda:2")
    with pytest.raises(UsageError, match="no such device"):
        choose_device("gpu")


@pytest.mark.parametrize(
    ("message", "reason", "remedy"),
    [
        (NO_KERNEL, "compute capability 7.0 (it supports sm_75 sm_90)", "--cuda 12.6"),
        ("CUDA-capable device(s) is/are busy or unavailable", "to itself", "-c DEFAULT"),
        ("CUDA error: uncorrectable ECC error encountered", "ECC error", "nvidia-smi"),
        ("CUDA error: out of memory", "memory of cuda is full", "--device cuda:1"),
    ],
    ids=["unsupported card", "exclusive mode", "broken card", "full card"],
)
def test_card_that_cannot_be_used_leaves_the_cpu_and_one_line(caplog, message, reason, remedy):
    fakecuda.install(devices=2, capability=(7, 0))
    with fakecuda.broken(message):
        assert [choose_device("auto") for _ in range(3)] == ["cpu"] * 3
        with pytest.raises(UsageError) as refused:
            choose_device("cuda")

    (record,) = caplog.records
    assert "computing on the CPU" in record.message
    for text in (record.message, str(refused.value)):
        assert reason in text
        assert remedy in text
        assert "\n" not in text


def test_full_card_leaves_the_cpu():
    with fakecuda.memory_limit(1000):
        assert choose_device("auto") == "cpu"


def test_card_that_computes_wrong_numbers_is_not_used(monkeypatch):
    monkeypatch.setattr(device_module, "_error_of_convolution", lambda _: float("nan"))
    fault = gpu_fault("cuda")
    assert fault is not None
    assert "wrong numbers" in fault.reason


@pytest.mark.parametrize(
    ("driver", "reason", "warned"),
    [
        (
            "535.154.05",
            "driver 535.154.05 is too old for CUDA 13.0, which needs 580 or newer",
            True,
        ),
        ("580.65.06", "driver 580.65.06 shows no GPU", False),
        (None, "no NVIDIA driver is visible", False),
    ],
)
def test_too_old_a_driver_is_reported_and_a_missing_one_is_not(
    monkeypatch, caplog, driver, reason, warned
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device_module, "driver_version", lambda: driver)
    assert choose_device("auto") == "cpu"
    assert [reason in record.message for record in caplog.records] == [True] * warned
    with pytest.raises(UsageError, match="CUDA") as refused:
        choose_device("cuda")
    assert reason in str(refused.value)


UNEXPECTED = "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions? Error "


@pytest.mark.parametrize(
    ("message", "reason", "remedy"),
    [
        (f"{UNEXPECTED}802: system not yet initialized", "(802: system not", "fabricmanager"),
        (f"{UNEXPECTED}804: forward compatibility was attempted", "(804: forward", "Update the"),
        (f"{UNEXPECTED}803: system has unsupported driver", "(803: system has", "restart the host"),
        ("CUDA unknown error - e.g. of settings.", "(CUDA unknown error)", "restart the host"),
    ],
    ids=["no fabric manager", "cuda-compat on a consumer card", "driver updated", "unknown"],
)
def test_cuda_that_does_not_start_leaves_the_cpu_and_one_line(
    monkeypatch, caplog, message, reason, remedy
):
    def fail():
        raise RuntimeError(message)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device_module, "driver_version", lambda: "580.65.06")
    assert [choose_device("auto") for _ in range(2)] == ["cpu", "cpu"]
    (record,) = caplog.records
    assert reason in record.message
    assert remedy in record.message
    with pytest.raises(UsageError, match="does not start"):
        choose_device("cuda")


@pytest.mark.parametrize("word", ["cuda:1", "auto"])
def test_device_option_takes_a_number(word):
    assert DEVICE.convert(word, None, None) == word


def test_device_option_refuses_other_words():
    import click

    command = click.Command("test", params=[click.Option(["--device"], type=DEVICE)])
    result = CliRunner().invoke(command, ["--device", "gpu"])
    assert result.exit_code == 2
    assert "cuda:1" in result.output
