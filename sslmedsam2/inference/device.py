"""Choice of the device: a GPU only after it has computed right. Capabilities of a CPU."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from sslmedsam2.errors import UsageError, first_line

logger = logging.getLogger(__name__)

Device = str
"""``auto``, ``cpu``, ``cuda`` (the first GPU) or ``cuda:N`` (GPU number N, from 0)."""

DEVICE_PATTERN: Final = re.compile(r"auto|cpu|cuda(:\d+)?")

_KERNEL_DRIVER: Final = Path("/proc/driver/nvidia/version")
_OLDEST_DRIVER: Final = {"11": 450, "12": 525, "13": 580}
"""The oldest driver branch that a CUDA release runs on, by NVIDIA's compatibility tables."""

_TOLERATED_ERROR: Final = 0.01
"""Relative; fp16 products added up in fp32 differ by about 0.0005."""

_OLDER_BUILD: Final = "use the image for CUDA 12.6 (scripts/build_image.sh --cuda 12.6)"

_REMEDY_OF_START: Final = {
    "802": "Start nvidia-fabricmanager on the host: GPUs joined by NVSwitch need it",
    "804": "Update the driver on the host: cuda-compat serves data-centre cards only",
}
"""What to do where CUDA does not start, by the number of its error."""
_USUAL_REMEDY_OF_START: Final = "See nvidia-smi; after an update of the driver restart the host"


@dataclass(frozen=True)
class GpuFault:
    """Why a GPU is not used.

    Attributes
    ----------
    absent
        There is none to use, so nothing is wrong with computing on the CPU.
    """

    reason: str
    remedy: str
    absent: bool = False


def choose_device(wanted: Device) -> str:
    """Return the device to use: ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` takes the first GPU if it computes a small convolution right. If not, it takes the CPU
    and logs one warning with the reason; without any GPU, nothing is logged.

    Raises UsageError: ``wanted`` names no device, or a GPU that cannot be used.
    """
    if not DEVICE_PATTERN.fullmatch(wanted):
        raise UsageError(
            f"--device {wanted}",
            reason="there is no such device",
            remedy="Use auto, cpu, cuda, or cuda:1 for the second GPU",
        )
    if wanted in ("auto", "cpu"):
        return wanted if wanted == "cpu" else _usual_device()
    fault = gpu_fault(wanted)
    if fault is not None:
        raise UsageError(f"--device {wanted}", reason=fault.reason, remedy=fault.remedy)
    return wanted


@lru_cache(maxsize=1)
def _usual_device() -> str:
    if not has_cuda_driver():
        return "cpu"
    fault = gpu_fault("cuda")
    if fault is not None and not fault.absent:
        logger.warning("computing on the CPU: %s. %s", fault.reason, fault.remedy)
    return "cuda" if fault is None else "cpu"


def has_cuda_driver() -> bool:
    """Return whether CUDA's driver library exists; without it torch, slow to load, finds no GPU."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def gpu_fault(device: str) -> GpuFault | None:
    """Return why ``cuda`` or ``cuda:N`` cannot be used, or None if it computes right.

    A GPU is tried once in a process: an fp16 convolution, compared with the CPU's in fp32.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own words on an old driver
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return _why_no_gpu()
    if int(device.partition(":")[2] or 0) >= count:
        return GpuFault(f"{count} GPU(s) are visible, numbered from 0", "Give another number")
    return _fault_of_convolution(device)


@lru_cache(maxsize=16)
def _fault_of_convolution(device: str) -> GpuFault | None:
    try:
        error = _error_of_convolution(device)
    except Exception as exception:
        return _explained(exception, device)
    if not error < _TOLERATED_ERROR:
        reason = f"{device} computes wrong numbers (relative error {error:.1g})"
        return GpuFault(reason, "Have the card checked, or use --device cpu")
    return None


def _error_of_convolution(device: str) -> float:
    import torch
    from torch.nn.functional import conv3d

    generator = torch.Generator().manual_seed(0)
    patch = torch.randn((1, 8, 8, 16, 16), generator=generator)
    kernel = torch.randn((8, 8, 3, 3, 3), generator=generator)
    with torch.inference_mode():
        expected = conv3d(patch, kernel, padding=1)
        with torch.autocast("cuda", dtype=torch.float16):
            found = conv3d(patch.to(device), kernel.to(device), padding=1).float().cpu()
        return float((found - expected).norm() / expected.norm())


def _why_no_gpu() -> GpuFault:
    import torch

    built_for, driver = torch.version.cuda, driver_version()
    remedy = "Start the container with --gpus all, or use --device cpu"
    if built_for is None:
        why = "this build of torch knows no GPU"
    elif driver is None:
        why = "no NVIDIA driver is visible"
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        why = "CUDA_VISIBLE_DEVICES hides all GPUs"
    else:
        oldest = oldest_driver(built_for)
        if int(driver.partition(".")[0]) < oldest:
            reason = (
                f"driver {driver} is too old for CUDA {built_for}, which needs {oldest} or newer"
            )
            return GpuFault(reason, f"Update the driver, or {_OLDER_BUILD}")
        failure = _failure_of_start()
        if failure is not None:
            what_to_do = _REMEDY_OF_START.get(failure.partition(":")[0], _USUAL_REMEDY_OF_START)
            return GpuFault(f"CUDA does not start ({failure})", what_to_do)
        why = f"driver {driver} shows no GPU"
    return GpuFault(f"no usable CUDA device is visible ({why})", remedy, absent=True)


def _failure_of_start() -> str | None:
    """Return the error with which CUDA fails to start, or None where it only finds no GPU.

    `torch.cuda.is_available` tells of it in a warning, and only once in a process.
    """
    import torch

    try:
        torch.cuda.init()
    except RuntimeError as error:
        text = str(error)
        found = re.search(r"Error (\d+: .+)", text)
        if found is not None:
            return found[1]
        if "No CUDA GPUs" not in text and "no NVIDIA driver" not in text:
            return re.split(r" - |, |\. ", text)[0]
    return None


def _explained(exception: Exception, device: str) -> GpuFault:
    """Say in a user's words what CUDA's error message means."""
    import torch

    text = first_line(exception)
    if "out of memory" in text:
        remedy = (
            "End what else runs there (see nvidia-smi), or choose another card: --device cuda:1"
        )
        return GpuFault(f"the memory of {device} is full", remedy)
    if "busy or unavailable" in text:
        reason = f"another process has {device} to itself (compute mode exclusive)"
        return GpuFault(reason, "Wait for it to end, or allow sharing: nvidia-smi -c DEFAULT")
    if "no kernel image" in text:
        major, minor = torch.cuda.get_device_capability(device)
        archs = " ".join(torch.cuda.get_arch_list())
        reason = (
            f"this build of torch does not support {device}, of compute capability"
            f" {major}.{minor} (it supports {archs})"
        )
        return GpuFault(reason, f"For an older card {_OLDER_BUILD}")
    return GpuFault(f"{device} failed a first convolution ({text})", "See nvidia-smi and doctor")


def oldest_driver(cuda: str) -> int:
    """Return the branch of NVIDIA's driver that a CUDA release such as ``13.0`` needs."""
    return _OLDEST_DRIVER.get(cuda.partition(".")[0], 0)


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, or None where none is visible; makes no context."""
    try:
        words = _KERNEL_DRIVER.read_text(encoding="utf-8").splitlines()[0].split()
        return next(word for word in words if word[0].isdigit())
    except (OSError, IndexError, StopIteration):
        return _driver_of_nvidia_smi()


def _driver_of_nvidia_smi() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.splitlines()[0].strip() if not done.returncode and done.stdout else None
