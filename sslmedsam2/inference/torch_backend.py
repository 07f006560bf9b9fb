"""Run a network with torch: on a GPU, or on a CPU where OpenVINO cannot."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sslmedsam2.errors import first_line
from sslmedsam2.inference.sliding_window import MarginNetwork

logger = logging.getLogger(__name__)

_MOST_PATCHES: Final = 16
"""Patches in one batch on a GPU; more are not faster."""

_MEMORY_SHARE: Final = 0.5
"""Share of the free GPU memory for a batch; cuDNN's fastest algorithms need some of the rest."""


class TorchMarginNetwork:
    """A network on one device; see ``sliding_window.MarginNetwork``.

    On a GPU it computes in fp16 as nnU-Net does, and repeats patches that overflow in fp32. The
    batch size follows from the memory that the first patch takes. A failure of the GPU does not end
    a run: if memory is exhausted, the batch is halved, down to single patches; after any other
    error, or if a single patch does not fit, the network moves to the CPU permanently and repeats
    the patches there. Each such step is logged and added to ``degradations``, ``name: sentence``.
    """

    in_bfloat16: Final = False

    def __init__(
        self,
        network: nn.Module,
        *,
        device: str,
        make_cpu_network: Callable[[], MarginNetwork] | None = None,
    ) -> None:
        """Copy ``network`` to ``device``; the original stays on the CPU in case the GPU fails.

        ``make_cpu_network`` returns the network for the CPU; by default that is torch in fp32.
        """
        self._device = torch.device(device)
        self._make_cpu_network = make_cpu_network or (lambda: _on_cpu(network))
        self._cpu_network: MarginNetwork | None = None
        self._given = network
        self._in_fp32: nn.Module | None = None
        """A copy on the GPU, made after the first overflow in fp16."""
        self._max_batch: int | None = None
        """None before the first patch was measured."""
        self.degradations: list[str] = []
        if self._device.type == "cpu":
            self._cpu_network = self._make_cpu_network()
            return
        try:
            # A copy: after a CUDA error, weights cannot be copied back from the GPU.
            self._network = in_half_precision(copy.deepcopy(network)).to(self._device)
        except RuntimeError as error:
            self.leave_gpu(first_line(error))
        else:
            torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()

    @property
    def backend(self) -> str:
        """Library and number format at the start."""
        return f"torch {'fp32' if self._device.type == 'cpu' else 'fp16'}"

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU still computes."""
        return self._cpu_network is None

    def __call__(self, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Predict ``(batch, 1, *patch)`` margins."""
        if self._cpu_network is not None:
            return self._cpu_network(patches)
        return self.predict(torch.from_numpy(patches)).numpy()

    def in_float32(self, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Predict ``(batch, 1, *patch)`` margins; on a CPU torch computes in float32 anyway."""
        return self(patches)

    def predict(self, patches: Tensor) -> Tensor:
        """Predict ``(batch, 1, *patch)`` margins, on the patches' device."""
        margins: list[Tensor] = []
        start = 0
        while self.on_gpu and start < len(patches):
            size = self._batch_size(len(patches) - start)
            failed_batch, error = 0, ""
            try:
                # Without a variable, which would keep the margins on the GPU.
                margins.append(self._measured(patches[start : start + size]).to(patches.device))
            except torch.cuda.OutOfMemoryError:
                failed_batch = size
            except RuntimeError as exception:
                error = first_line(exception)
            # Not inside the handler, whose traceback keeps the activations in memory.
            if failed_batch:
                self._shrink(failed_batch)
            elif error:
                self.leave_gpu(error)
            else:
                start += size
        if self._cpu_network is None:
            return margins[0] if len(margins) == 1 else torch.cat(margins)
        # All patches again: after an error, margins cannot be copied from the GPU.
        return torch.from_numpy(self._cpu_network(patches.cpu().numpy())).to(patches.device)

    def _batch_size(self, waiting: int) -> int:
        """Return a power of two, because cuDNN searches for algorithms for each new size."""
        return 1 << (min(waiting, self._max_batch or 1).bit_length() - 1)

    def _measured(self, patches: Tensor) -> Tensor:
        """Predict on the GPU; the first patch is used to measure how many fit into memory."""
        if self._max_batch is not None:
            return self._forward(patches)
        # The first pass, in which cuDNN searches for algorithms, is not measured.
        self._forward(patches)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        margins = self._forward(patches)
        taken = torch.cuda.max_memory_allocated(self._device) - before
        free, _ = torch.cuda.mem_get_info(self._device)
        fitting = int(_MEMORY_SHARE * free / max(1, taken))
        self._max_batch = max(1, min(_MOST_PATCHES, fitting))
        return margins

    @torch.inference_mode()
    def _forward(self, patches: Tensor) -> Tensor:
        """Predict on the GPU."""
        batch = patches.to(self._device)
        with torch.autocast("cuda", dtype=torch.float16):
            margins = self._network(batch).float()
        if not torch.isfinite(margins).all():
            if self._in_fp32 is None:
                self._in_fp32 = copy.deepcopy(self._given).to(self._device)
            margins = self._in_fp32(batch)
        return margins

    def _shrink(self, failed_batch: int) -> None:
        torch.cuda.empty_cache()
        if failed_batch == 1:
            self.leave_gpu("out of GPU memory with a single patch")
            return
        self._max_batch = failed_batch // 2
        self._note(f"gpu_memory: it is full; batches of {self._max_batch} patches from here on")

    def leave_gpu(self, reason: str) -> None:
        """Compute on the CPU from now on; without effect if it already does."""
        if self._cpu_network is not None:
            return
        self._network = nn.Identity()
        self._in_fp32 = None
        self._cpu_network = self._make_cpu_network()
        self._note(f"gpu_failed: {reason}; continuing on the CPU")

    def _note(self, step: str) -> None:
        logger.warning(step)
        self.degradations.append(step)


def in_half_precision(network: nn.Module) -> nn.Module:
    """Convert the weights of convolutions and linear layers to fp16, in place.

    Without this, ``torch.autocast`` converts them for every batch, with the same results.
    """
    for module in network.modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            module.half()
    return network


def _on_cpu(network: nn.Module) -> MarginNetwork:
    @torch.inference_mode()
    def predict(patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return torch.cat([network(patch[None]) for patch in torch.from_numpy(patches)]).numpy()

    return predict
