"""Which device a few-shot network computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sslmedsam2.errors import UsageError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]


def choose_device(wanted: Device) -> torch.device:
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
            remedy="Use --device cpu, or make a GPU visible",
        )
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")
