"""Encoded volumes: slice features of SAM2, and memories of labelled slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as nnf

from sslmedsam2.fewshot.checkpoint import LoadedSam2
from sslmedsam2.fewshot.memory import Features, Memory, encode_slices, remember_prompts
from sslmedsam2.fewshot.slices import SliceStack

BATCH: Final = 16
"""How many slices go through the network at once."""

_DESCRIPTOR_CELLS: Final = 4
"""A slice's descriptor keeps where things are, on a grid of this many cells a side."""


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

    def volume(self, stack: SliceStack) -> EncodedVolume:
        """Encode each slice once."""
        with self.sam2.computing():
            features = self._features(stack.slices)
        self.calls += len(stack.slices)
        return EncodedVolume(
            features=features,
            descriptors=_descriptors(features),
            z_mm=np.arange(len(stack.slices)) * stack.spacing_zyx_mm[0],
        )

    def remember(self, volume: EncodedVolume, masks: npt.NDArray[np.float32]) -> Memory:
        """Make the memory of every slice with its mask ``(n, size, size)``."""
        with self.sam2.computing():
            parts = [
                remember_prompts(
                    self.sam2.model,
                    volume.features[start : start + BATCH],
                    self._on_device(masks[start : start + BATCH]),
                )
                for start in range(0, len(masks), BATCH)
            ]
        return Memory(
            torch.cat([part.spatial for part in parts]), torch.cat([part.pointer for part in parts])
        )

    def _features(self, slices: npt.NDArray[np.float32]) -> Features:
        parts = [
            encode_slices(self.sam2.model, self._on_device(slices[start : start + BATCH]))
            for start in range(0, len(slices), BATCH)
        ]
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
