"""Choice of the device, and capabilities of a CPU."""

from __future__ import annotations

from typing import Literal

from sslmedsam2.errors import UsageError

Device = Literal["auto", "cuda", "cpu"]


def choose_device(wanted: Device) -> Literal["cpu", "cuda"]:
    """Return the device to use; ``auto`` takes a GPU if there is one.

    Raises
    ------
    UsageError
        A GPU was asked for and none is there.
    """
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError(
            "--device cuda",
            reason="no usable CUDA device is visible",
            remedy="Start the container with --gpus all, or use --device cpu",
        )
    return "cuda" if available and wanted != "cpu" else "cpu"


def has_matrix_units() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 in units of their own, as Intel's AMX."""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
