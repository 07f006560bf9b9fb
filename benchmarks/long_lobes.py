"""Livers with a long left lobe, or a tongue below the right one, made from usual livers.

In some people the left lobe reaches over the spleen, in others a tongue of the right lobe (Riedel's
lobe) reaches below the kidney. Few scans show either, and networks cut such lobes short. This
augmentation was tried (`training_choices.py`) and is not part of the training.
"""

from __future__ import annotations

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from scipy import ndimage
from torch import Tensor

from sslmedsam2.nnunet import contrast
from sslmedsam2.nnunet.plans import AUXILIARY_OFFSET, BACKGROUND, LIVER

_SPLEEN, _STOMACH = AUXILIARY_OFFSET + 4, AUXILIARY_OFFSET + 6
_REPLACED = (BACKGROUND, _SPLEEN, _STOMACH)
_SKIN_VOXELS = 5
_POINTS = 12
"""Balls along the axis of a lobe."""


class LongLobeTransform(BasicTransform):
    """Lengthen the liver's left or lower end, with the liver's own texture.

    Patches are in the canonical orientation, so this must run before any mirroring. A patch without
    liver is not changed. ``longest`` and ``widest`` are shares of the patch.
    """

    def __init__(self, *, longest: float, widest: float) -> None:
        super().__init__()
        self.longest, self.widest = longest, widest

    def apply(self, data_dict: dict, **_params: object) -> dict:
        """Change ``image`` and ``segmentation`` in nnU-Net's sample dictionary."""
        image, labels = data_dict["image"], data_dict["segmentation"]
        liver = labels[0] == LIVER
        if not liver.any():
            return data_dict
        start, end = (
            _left_end(labels[0], self.longest)
            if contrast._chance(0.7)
            else _lower_end(liver, self.longest)
        )
        size = torch.tensor(liver.shape)
        lobe = _lobe(start, end, size, widest=self.widest) & _replaced(labels[0]) & _inside(image)
        lobe = _joined(lobe, liver)
        if not lobe.any():
            return data_dict
        texture = _texture(image[0], liver, start)
        data_dict["image"] = image + contrast._blurred(lobe[None]) * (texture - image)
        data_dict["segmentation"] = labels.masked_fill(lobe[None], LIVER)
        return data_dict


def _left_end(labels: Tensor, longest: float) -> tuple[Tensor, Tensor]:
    """Return the leftmost voxel of the liver and a point beyond it, often in the spleen."""
    points = (labels == LIVER).nonzero()
    start = points[points[:, 2].argmax()]
    spleen = (labels == _SPLEEN).nonzero()
    if len(spleen) and contrast._chance(0.7):
        return start, spleen[torch.randint(len(spleen), ())]
    size = torch.tensor(labels.shape)
    share = torch.tensor(
        [
            contrast._uniform(-0.15, 0.1),
            contrast._uniform(-0.05, 0.25),
            contrast._uniform(0.08, longest),
        ]
    )
    return start, start + share * size


def _lower_end(liver: Tensor, longest: float) -> tuple[Tensor, Tensor]:
    """Return the lowest voxel of the liver and a point below it."""
    points = liver.nonzero()
    start = points[points[:, 0].argmin()]
    share = torch.tensor(
        [
            -contrast._uniform(0.1, longest),
            contrast._uniform(-0.1, 0.05),
            contrast._uniform(-0.05, 0.05),
        ]
    )
    return start, start + share * torch.tensor(liver.shape)


def _lobe(start: Tensor, end: Tensor, size: Tensor, *, widest: float) -> Tensor:
    """Return balls along a bent line, smaller towards its end, ``(z, y, x)``."""
    bend = (start + end) / 2 + torch.tensor([0, contrast._uniform(-0.12, 0.02), 0]) * size
    radius, narrowing = contrast._uniform(0.03, widest), contrast._uniform(0.3, 1)
    thickness = contrast._uniform(1, 2)
    lobe = torch.zeros(tuple(size), dtype=torch.bool)
    z, y, x = (torch.arange(n) / n for n in size.tolist())
    for t in torch.linspace(0, 1, _POINTS).tolist():
        centre = ((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t * t * end) / size
        reach = radius * (1 - t * narrowing * 0.7)
        lobe |= (
            ((z - centre[0]) / (reach * thickness)).square()[:, None, None]
            + ((y - centre[1]) / reach).square()[:, None]
            + ((x - centre[2]) / reach).square()
        ) < 1
    return lobe


def _inside(image: Tensor) -> Tensor:
    """Return what is no air and lies well below the skin."""
    body = (contrast.to_unit_range(image) > contrast._AIR_BELOW).float()
    closed = contrast._erode(
        contrast._dilate(body, contrast._CLOSING_VOXELS), contrast._CLOSING_VOXELS + _SKIN_VOXELS
    )
    return ((body > 0) & (closed > 0))[0]


def _joined(lobe: Tensor, liver: Tensor) -> Tensor:
    """Return the part of a lobe that hangs together with the liver."""
    pieces, _ = ndimage.label((lobe | liver).numpy())
    main = np.bincount(pieces[liver.numpy()]).argmax()
    return lobe & ~liver & torch.from_numpy(pieces == main)


def _replaced(labels: Tensor) -> Tensor:
    return torch.isin(labels, torch.tensor(_REPLACED, dtype=labels.dtype))


def _texture(image: Tensor, liver: Tensor, start: Tensor) -> Tensor:
    """Return the liver moved so that its middle lies at ``start``; elsewhere its mean and noise."""
    inside = image[liver]
    middle = liver.nonzero().float().mean(0)
    shifts = (start - middle).round().long().tolist()
    moved, covered = (torch.roll(one, shifts, (0, 1, 2)) for one in (image, liver))
    plain = inside.mean() + 0.5 * inside.std(correction=0) * torch.randn_like(image)
    return torch.where(covered, moved, plain)
