"""Encoded volumes: slice features of SAM2, and memories of labelled slices."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
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
"""A slice's descriptor keeps where things are, on a grid of this many cells a side."""


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
    pooled = nnf.adaptive_avg_pool2d(features.coarse.float(), _DESCRIPTOR_CELLS)
    return pooled.flatten(1).cpu().numpy()
