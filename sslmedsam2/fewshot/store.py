"""Encoded supports in GPU memory, host memory and, beyond that, on disk.

Each support is encoded once for a data set and stored under a key of its content. Memory is bounded
for any number of labelled volumes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as nnf

from sslmedsam2.fewshot.checkpoint import LoadedSam2
from sslmedsam2.fewshot.memory import Features, Memory, encode_slices, remember_prompts
from sslmedsam2.fewshot.slices import SliceStack

logger = logging.getLogger(__name__)

_BATCH: Final = {"cpu": 16, "cuda": 32}
"""Initial number of slices in a batch."""

_DESCRIPTOR_CELLS: Final = 4
"""A descriptor holds the features at stride 8, averaged over a grid of this many cells a side.
Those at stride 16 differ more between CT and MR than along the body."""


Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class DescribedVolume:
    """The ``n`` slices of a volume as needed for alignment.

    Attributes
    ----------
    descriptors
        ``(n, d)``, coarse image features of each slice.
    z_mm
        ``(n,)``, height of each slice above the lowest.
    """

    descriptors: npt.NDArray[np.float32]
    z_mm: npt.NDArray[np.floating]

    @property
    def n_slices(self) -> int:
        """How many slices there are."""
        return len(self.z_mm)


@dataclass(frozen=True, kw_only=True)
class EncodedVolume(DescribedVolume):
    """All slices of a volume after the image encoder."""

    features: Features

    def without_features(self) -> DescribedVolume:
        """Return the volume without features, which need most of the memory."""
        return DescribedVolume(descriptors=self.descriptors, z_mm=self.z_mm)


@dataclass(frozen=True)
class EncodedSupport:
    """A labelled volume, encoded and remembered.

    ``masks`` are 0 or 1, ``(n, size, size)``.
    """

    volume: EncodedVolume
    memory: Memory
    masks: npt.NDArray[np.float32]


class Encoder:
    """Runs the image encoder and counts its calls."""

    def __init__(self, sam2: LoadedSam2) -> None:
        self.sam2 = sam2
        self.calls = 0
        self._batch = _BATCH[sam2.device.type]

    def volume(self, stack: SliceStack, *, slices: Tensor | None = None) -> EncodedVolume:
        """Encode each slice once; ``slices`` are those of the stack on the device, if available."""
        there = self.on_device(stack.slices) if slices is None else slices
        parts = self.in_batches(
            len(there), lambda part: encode_slices(self.sam2.model, there[part])
        )
        features = Features.joined(parts)
        self.calls += len(stack.slices)
        pooled = nnf.adaptive_avg_pool2d(features.middle.float(), _DESCRIPTOR_CELLS)
        return EncodedVolume(
            features=features,
            descriptors=pooled.flatten(1).cpu().numpy(),
            z_mm=np.arange(len(stack.slices)) * stack.spacing_zyx_mm[0],
        )

    def remember(self, volume: EncodedVolume, masks: npt.NDArray) -> Memory:
        """Make the memory of every slice with its mask ``(n, size, size)``, 0 or 1 of any type."""

        def compute(part: slice) -> Memory:
            masks_there = self.on_device(masks[part])
            return remember_prompts(self.sam2.model, volume.features[part], masks_there)

        return Memory.joined(self.in_batches(len(masks), compute))

    def in_batches(self, n: int, compute: Callable[[slice], Part]) -> list[Part]:
        """Return the result of ``compute`` for each batch of ``n`` slices.

        If the memory of the GPU is exhausted, the batch size is halved for all further batches;
        raises ``torch.cuda.OutOfMemoryError`` if a single slice does not fit.
        """
        parts: list[Part] = []
        start = 0
        while start < n:
            part, is_full = slice(start, min(start + self._batch, n)), False
            try:
                with self.sam2.computing():
                    parts.append(compute(part))
            except torch.cuda.OutOfMemoryError:
                if self._batch == 1:
                    raise
                is_full = True
            # Not inside the handler, whose traceback keeps the activations in memory.
            if is_full:
                torch.cuda.empty_cache()
                self._batch //= 2
                logger.warning("out of GPU memory: %d slices at once from here on", self._batch)
            else:
                start = part.stop
        return parts

    def on_device(self, array: npt.NDArray) -> Tensor:
        """Return ``(n, h, w)`` of any type as float32 ``(n, 1, h, w)`` on SAM2's device."""
        there = torch.from_numpy(np.ascontiguousarray(array)).to(self.sam2.device)
        return there[:, None].float()


_USUAL_LIMIT_BYTES: Final = 2 * 2**30


def content_key(*arrays: npt.NDArray) -> str:
    """Return a hash of the arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class MemoryLimits:
    """Largest size of the supports on SAM2's device, and of further ones in host memory."""

    device_bytes: int
    host_bytes: int = 0


def memory_for_supports(device: torch.device, limit_mb: int | None) -> MemoryLimits:
    """Return the limits; None is 2 GiB of host memory, and half of what a GPU has free."""
    if limit_mb is not None:
        return MemoryLimits(limit_mb * 2**20)
    if device.type == "cpu":
        return MemoryLimits(_USUAL_LIMIT_BYTES)
    return MemoryLimits(torch.cuda.mem_get_info(device)[0] // 2, _USUAL_LIMIT_BYTES)


class SupportStore:
    """Stores encoded supports; those beyond the limits are written to ``folder``."""

    def __init__(self, folder: Path, *, limits: MemoryLimits, device: torch.device) -> None:
        self._folder = folder
        self._device_bytes, self._host_bytes = limits.device_bytes, limits.host_bytes
        self._device = device
        self._kept: dict[str, EncodedSupport] = {}

    def __contains__(self, key: str) -> bool:
        """Return whether something is stored under ``key``."""
        return key in self._kept or self._path(key).is_file()

    def put(self, key: str, support: EncodedSupport) -> None:
        """Store a support."""
        n_bytes = sum(tensor.nbytes for tensor in _tensors(support).values())
        if n_bytes <= self._device_bytes:
            self._kept[key] = support
            self._device_bytes -= n_bytes
        elif n_bytes <= self._host_bytes:
            self._kept[key] = _moved(support, _page_locked)
            self._host_bytes -= n_bytes
        else:
            _write(support, self._path(key))

    def get(self, key: str) -> EncodedSupport:
        """Return the support stored under ``key``, on the device."""
        kept = self._kept[key] if key in self._kept else _read(self._path(key))
        return _moved(kept, self._to_device)

    def memory(self, key: str) -> Memory:
        """Return the memory of what was stored under ``key``, a small part of it."""
        kept = self._kept.get(key)
        memory = _read_memory(self._path(key)) if kept is None else kept.memory
        return memory.map(self._to_device)

    def _to_device(self, tensor: Tensor) -> Tensor:
        # Waits for the copy; why, see inference.on_gpu.pinned.
        return tensor.to(self._device)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


def _tensors(support: EncodedSupport) -> dict[str, torch.Tensor]:
    return {
        **vars(support.volume.features),
        **vars(support.memory),
        "masks": torch.from_numpy(support.masks),
        "descriptors": torch.from_numpy(support.volume.descriptors),
        "z_mm": torch.from_numpy(support.volume.z_mm),
    }


def _moved(support: EncodedSupport, move: Callable[[Tensor], Tensor]) -> EncodedSupport:
    """Move the tensors for the network to the device; the others stay in host memory."""
    volume = replace(support.volume, features=support.volume.features.map(move))
    return replace(support, volume=volume, memory=support.memory.map(move))


def _page_locked(tensor: Tensor) -> Tensor:
    """Copy to host memory that a GPU reads quickest, if the system lets it be locked."""
    here = tensor.cpu()
    try:
        return here.pin_memory()
    except RuntimeError:
        return here


def _write(support: EncodedSupport, path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous().cpu() for name, value in _tensors(support).items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def _read(path: Path) -> EncodedSupport:
    from safetensors.torch import load_file

    tensors = load_file(path)
    return EncodedSupport(
        volume=EncodedVolume(
            features=Features(tensors["fine"], tensors["middle"], tensors["coarse"]),
            descriptors=tensors["descriptors"].numpy(),
            z_mm=tensors["z_mm"].numpy(),
        ),
        memory=Memory(tensors["spatial"], tensors["pointer"]),
        masks=tensors["masks"].numpy(),
    )


def _read_memory(path: Path) -> Memory:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return Memory(file.get_tensor("spatial"), file.get_tensor("pointer"))
