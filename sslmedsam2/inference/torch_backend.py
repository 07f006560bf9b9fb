"""Run a network with torch: on a GPU, or on a CPU where OpenVINO cannot."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

logger = logging.getLogger(__name__)


class TorchMarginNetwork:
    """A network on one device; see ``sliding_window.MarginNetwork``.

    Computes as nnU-Net does: in fp16 on CUDA, in fp32 on a CPU.

    Runs out of GPU memory gracefully: first the batch is halved down to single patches, then the
    network moves to the CPU for good. Each step is kept in ``degradations``.
    """

    def __init__(self, network: nn.Module, *, device: str) -> None:
        """Place ``network`` on ``device``."""
        self._network = network.to(device)
        self._device = torch.device(device)
        self._max_batch: int | None = None
        self.degradations: list[str] = []

    @torch.inference_mode()
    def __call__(self, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Predict ``(batch, 1, *patch)`` margins."""
        margins = []
        start = 0
        while start < len(patches):
            size = min(self._max_batch or len(patches), len(patches) - start)
            try:
                margins.append(self._forward(patches[start : start + size]))
            except torch.cuda.OutOfMemoryError:
                self._degrade(size)
            else:
                start += size
        return np.concatenate(margins)

    def _forward(self, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        batch = torch.from_numpy(patches).to(self._device)
        on_gpu = self._device.type == "cuda"
        with torch.autocast("cuda", dtype=torch.float16, enabled=on_gpu):
            return self._network(batch).float().cpu().numpy()

    def _degrade(self, failed_batch: int) -> None:
        torch.cuda.empty_cache()
        if failed_batch > 1:
            self._max_batch = failed_batch // 2
            step = f"out of GPU memory: batches of {self._max_batch} patches from here on"
        else:
            self._device = torch.device("cpu")
            self._network.to(self._device)
            self._max_batch = 1
            step = "out of GPU memory with a single patch: continuing on the CPU"
        logger.warning(step)
        self.degradations.append(step)
