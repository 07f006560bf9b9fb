"""Other organs as additional targets, so that a network learns to tell them from the liver.

Where labelled images come with a map of organs, the network also learns to segment the organs that
are often taken for liver or border on it. The layers for them lie beside nnU-Net's output layers
and exist in training only: they are not among the weights that a prediction uses.

Importing this module imports torch; import it inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor, nn

from sslmedsam2.nnunet.contrast import DropAuxiliaryLabelsTransform
from sslmedsam2.nnunet.plans import AUXILIARY_OFFSET, LIVER

_CLASSES: Final = {
    LIVER: 1,
    AUXILIARY_OFFSET + 2: 2,  # Both kidneys are one class, because some patches are mirrored.
    AUXILIARY_OFFSET + 3: 2,
    AUXILIARY_OFFSET + 4: 3,  # Spleen.
    AUXILIARY_OFFSET + 5: 4,  # Gallbladder.
    AUXILIARY_OFFSET + 6: 5,  # Stomach.
    AUXILIARY_OFFSET + 7: 6,  # Pancreas.
    AUXILIARY_OFFSET + 8: 7,  # Aorta.
    AUXILIARY_OFFSET + 9: 8,  # Inferior vena cava.
    AUXILIARY_OFFSET + 10: 9,  # Portal and splenic vein.
}
"""Class of each label value of the training data; 0 is all else. Smaller organs are left out."""
N_CLASSES: Final = max(_CLASSES.values()) + 1
_ORGANS = "organs"


class OutputLayer(nn.Conv3d):
    """An output layer of nnU-Net that in training also outputs the classes of organs.

    Weights without those of the organs can be loaded; the organs' are then kept as they are.
    """

    def __init__(self, usual: nn.Conv3d) -> None:
        size: Any = usual.kernel_size
        super().__init__(usual.in_channels, usual.out_channels, size, bias=usual.bias is not None)
        self.weight, self.bias = usual.weight, usual.bias
        self.organs = nn.Conv3d(usual.in_channels, N_CLASSES, size)
        self.register_load_state_dict_pre_hook(_keep_organs)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(batch, class, z, y, x)``: liver and background, in training then organs."""
        liver = super().forward(features)
        return torch.cat([liver, self.organs(features)], dim=1) if self.training else liver


def _keep_organs(module: Any, weights: dict[str, Any], prefix: str, *_args: object) -> None:
    for name, value in module.organs.state_dict().items():
        weights.setdefault(f"{prefix}{_ORGANS}.{name}", value)


def add_organs(network: Any) -> nn.Module:
    """Let a network of nnU-Net also output organs in training, in place."""
    layers = network.decoder.seg_layers
    for index, layer in enumerate(layers):
        layers[index] = OutputLayer(layer)
    return network


def without_organs(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the network that nnU-Net builds."""
    return {name: value for name, value in weights.items() if f".{_ORGANS}." not in name}


class OrganTargetsTransform(BasicTransform):
    """Turn labels into two channels: the liver, as in other patches, and the class of organ."""

    def __init__(self) -> None:
        super().__init__()
        self._drop = DropAuxiliaryLabelsTransform()

    def apply(self, data_dict: dict, **_params: object) -> dict:
        """Replace ``segmentation`` in nnU-Net's sample dictionary."""
        labels = data_dict["segmentation"]
        organs = torch.zeros_like(labels)
        for label, number in _CLASSES.items():
            organs[labels == label] = number
        data_dict = self._drop.apply(data_dict)
        data_dict["segmentation"] = torch.cat([data_dict["segmentation"], organs])
        return data_dict


def organ_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return cross-entropy minus Dice of the organs, a scalar, the mean over patches.

    Few data sets have all organs. A class that is not in the patch counts as background, because
    it may only lack a label (a marginal loss: Shi et al. 2021, arXiv:2007.03868). Patches without
    any other organ than the liver do not count.

    Parameters
    ----------
    logits
        ``(batch, N_CLASSES, z, y, x)``.
    target
        Classes, ``(batch, z, y, x)``.
    """
    losses = [_loss_of_patch(*patch) for patch in zip(logits, target, strict=True)]
    return torch.stack(losses).mean()


def _loss_of_patch(logits: Tensor, target: Tensor) -> Tensor:
    present = [number for number in range(1, N_CLASSES) if bool((target == number).any())]
    if not set(present) - {_CLASSES[LIVER]}:
        return 0 * logits.sum()
    absent = [number for number in range(N_CLASSES) if number not in present]
    rest = logits[absent].logsumexp(dim=0, keepdim=True)
    log_probability = torch.cat([rest, logits[present]]).log_softmax(dim=0)
    masks = torch.stack([target == number for number in present]).to(logits.dtype)
    masks = torch.cat([1 - masks.sum(dim=0, keepdim=True), masks])
    cross_entropy = -(masks * log_probability).sum(dim=0).mean()
    probability, axes = log_probability.exp(), (1, 2, 3)
    overlap = (masks * probability).sum(axes)
    dice = 2 * overlap / (masks.sum(axes) + probability.sum(axes))
    return cross_entropy - dice[1:].mean()
