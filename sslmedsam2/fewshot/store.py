"""Encoded supports: in memory as far as they fit, otherwise on disk.

Each is encoded once for a data set and stored under a key of its content, so that memory stays
bounded for any number of labelled volumes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from sslmedsam2.fewshot.encoded import EncodedSupport, EncodedVolume
from sslmedsam2.fewshot.memory import Features, Memory

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
