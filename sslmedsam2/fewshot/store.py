"""Encoded supports: in memory as far as they fit, otherwise on disk.

Each is encoded once for a data set and stored under a key of its content, so that memory stays
bounded for any number of labelled volumes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
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

_BATCH: Final = 16
"""How many slices go through the network at once, at first."""

_DESCRIPTOR_CELLS: Final = 4
"""A slice's descriptor keeps where things are, on a grid of this many cells a side. It is made of
the features at stride 8: those at stride 16 differ more between CT and MR than along the body."""


Part = TypeVar("Part")


@dataclass(frozen=True)
class EncodedVolume:
    """All slices of a volume after the image encoder.

    Attributes
    ----------
    features
        Of the ``n`` slices.
    descriptors
        ``(n, d)``: what a slice looks like and where, for retrieval.
    z_mm
        ``(n,)``, heights of the slices over the lowest.
    """

    features: Features
    descriptors: npt.NDArray[np.float32]
    z_mm: npt.NDArray[np.floating]

    @property
    def n_slices(self) -> int:
        """How many slices there are."""
        return len(self.z_mm)


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
        """Count from 0."""
        self.sam2 = sam2
        self.calls = 0
        self._batch = _BATCH

    def volume(self, stack: SliceStack) -> EncodedVolume:
        """Encode each slice once."""
        features = self._features(stack.slices)
        self.calls += len(stack.slices)
        return EncodedVolume(
            features=features,
            descriptors=_descriptors(features),
            z_mm=np.arange(len(stack.slices)) * stack.spacing_zyx_mm[0],
        )

    def remember(self, volume: EncodedVolume, masks: npt.NDArray[np.float32]) -> Memory:
        """Make the memory of every slice with its mask ``(n, size, size)``."""

        def compute(part: slice) -> Memory:
            masks_there = self._on_device(masks[part])
            return remember_prompts(self.sam2.model, volume.features[part], masks_there)

        parts = self.in_batches(len(masks), compute)
        return Memory(
            torch.cat([part.spatial for part in parts]), torch.cat([part.pointer for part in parts])
        )

    def in_batches(self, n: int, compute: Callable[[slice], Part]) -> list[Part]:
        """Return what ``compute`` makes of each batch of ``n`` slices.

        Where the GPU's memory runs out, the batch is halved from there on; raises
        ``torch.cuda.OutOfMemoryError`` where a single slice is too much.
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
            # Not inside the handler, whose traceback holds on to the activations.
            if is_full:
                torch.cuda.empty_cache()
                self._batch //= 2
                logger.warning("out of GPU memory: %d slices at once from here on", self._batch)
            else:
                start = part.stop
        return parts

    def _features(self, slices: npt.NDArray[np.float32]) -> Features:
        parts = self.in_batches(
            len(slices), lambda part: encode_slices(self.sam2.model, self._on_device(slices[part]))
        )
        return Features(
            torch.cat([part.fine for part in parts]),
            torch.cat([part.middle for part in parts]),
            torch.cat([part.coarse for part in parts]),
        )

    def _on_device(self, array: npt.NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))[:, None].to(self.sam2.device)


def _descriptors(features: Features) -> npt.NDArray[np.float32]:
    pooled = nnf.adaptive_avg_pool2d(features.middle.float(), _DESCRIPTOR_CELLS)
    return pooled.flatten(1).cpu().numpy()


_USUAL_LIMIT_BYTES: Final = 2 * 2**30


def content_key(*arrays: npt.NDArray) -> str:
    """Return a name for what the arrays hold."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def memory_for_supports(device: torch.device, limit_mb: int | None) -> int:
    """Return how many bytes of supports are kept; None is half of what a GPU has free, or 2 GiB."""
    if limit_mb is None:
        on_gpu = device.type == "cuda"
        return torch.cuda.mem_get_info(device)[0] // 2 if on_gpu else _USUAL_LIMIT_BYTES
    return limit_mb * 2**20


class SupportStore:
    """Keeps encoded supports; ``folder`` takes those beyond ``limit_bytes``."""

    def __init__(self, folder: Path, *, limit_bytes: int, device: torch.device) -> None:
        """Start empty; ``device`` is where supports are computed with."""
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._device = device
        self._kept: dict[str, EncodedSupport] = {}
        self._kept_bytes = 0

    def __contains__(self, key: str) -> bool:
        """Say whether something is stored under ``key``."""
        return key in self._kept or self._path(key).is_file()

    def put(self, key: str, support: EncodedSupport) -> None:
        """Store a support."""
        n_bytes = sum(tensor.nbytes for tensor in _tensors(support).values())
        if self._kept_bytes + n_bytes <= self._limit_bytes:
            self._kept[key] = support
            self._kept_bytes += n_bytes
        else:
            _write(support, self._path(key))

    def get(self, key: str) -> EncodedSupport:
        """Return what was stored under ``key``."""
        kept = self._kept.get(key)
        return _read(self._path(key), self._device) if kept is None else kept

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


def _tensors(support: EncodedSupport) -> dict[str, torch.Tensor]:
    features, memory = support.volume.features, support.memory
    return {
        "fine": features.fine,
        "middle": features.middle,
        "coarse": features.coarse,
        "spatial": memory.spatial,
        "pointer": memory.pointer,
        "masks": torch.from_numpy(support.masks),
        "descriptors": torch.from_numpy(support.volume.descriptors),
        "z_mm": torch.from_numpy(support.volume.z_mm),
    }


def _write(support: EncodedSupport, path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous().cpu() for name, value in _tensors(support).items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def _read(path: Path, device: torch.device) -> EncodedSupport:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    on_device = {key: value.to(device) for key, value in tensors.items()}
    return EncodedSupport(
        volume=EncodedVolume(
            features=Features(on_device["fine"], on_device["middle"], on_device["coarse"]),
            descriptors=tensors["descriptors"].numpy(),
            z_mm=tensors["z_mm"].numpy(),
        ),
        memory=Memory(on_device["spatial"], on_device["pointer"]),
        masks=tensors["masks"].numpy(),
    )
