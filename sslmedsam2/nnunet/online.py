"""Learning from unlabelled patches within one training: a weak view teaches a strong one.

The average of the network's weights (the teacher, Tarvainen & Valpola 2017, arXiv:1703.01780)
predicts an unlabelled patch with augmented geometry only. The network (the student) learns that
prediction on the same patch with random contrast, noise and blur, as in FixMatch (Sohn et al. 2020,
arXiv:2001.07685). Masks of the few-shot branch count at first, then less and less.

Importing this module imports torch; import it inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from sslmedsam2.nnunet.dataset import UnlabelledCase
from sslmedsam2.nnunet.plans import IGNORE, LIVER


@dataclass(frozen=True)
class OnlineSettings:
    """Schedule and weights of unlabelled patches; times are shares of the iterations.

    Attributes
    ----------
    warm_up
        First part, on reference masks alone.
    ramp
        Next part, in which the weight of the teacher grows to 1.
    hand_over
        Time from which few-shot masks no longer count; None if they always do. After it, a network
        that is worse than the few-shot branch would only confirm itself.
    finish
        Last part, on reference masks alone.
    weight
        Weight of an unlabelled patch relative to a labelled one.
    sure_above
        A voxel counts if the probability of its target, liver or not, is at least this.
    """

    warm_up: float = 0.15
    ramp: float = 0.15
    hand_over: float | None = 1 / 3
    finish: float = 0.0
    weight: float = 0.5
    sure_above: float = 0.75

    def fewshot_share(self, progress: float) -> float:
        """Return the factor of the few-shot branch's weight at ``progress``; both are 0 to 1."""
        if self.hand_over is None:
            return 1.0
        if self.hand_over <= self.warm_up:
            return 0.0
        share = (self.hand_over - progress) / (self.hand_over - self.warm_up)
        return min(1.0, max(0.0, share))

    def teacher_share(self, progress: float) -> float:
        """Return the factor of the teacher's weight at ``progress``; both are 0 to 1."""
        return min(1.0, max(0.0, (progress - self.warm_up) / self.ramp)) if self.ramp else 1.0

    def is_on(self, progress: float) -> bool:
        """Return whether unlabelled patches count at ``progress``, 0 to 1."""
        return self.warm_up <= progress < 1 - self.finish


class TwoViewsTransform(BasicTransform):
    """Turn a patch ``(1, z, y, x)`` into two channels: unchanged, and changed by ``strong``.

    ``strong`` must not change the geometry. It gets no labels: those of an unlabelled patch may be
    wrong, and repainting by them would show the network where they place the liver.
    """

    def __init__(self, strong: BasicTransform) -> None:
        super().__init__()
        self.strong = strong

    def apply(self, data_dict: dict, **_params: object) -> dict:
        """Replace ``image`` in nnU-Net's sample dictionary."""
        weak = data_dict["image"]
        blank = torch.zeros_like(data_dict["segmentation"])
        strong = self.strong(image=weak.clone(), segmentation=blank)["image"]
        data_dict["image"] = torch.cat([weak, strong])
        return data_dict


def fewshot_weights(
    keys: Sequence[str],
    cases: Mapping[str, UnlabelledCase],
    *,
    share: float,
    network_dice: float | None,
) -> Tensor:
    """Return the weight of the few-shot branch in the target of each patch, ``(batch,)``, 0 to 1.

    ``network_dice`` is the network's on reference masks after the warm-up; None if not known.
    """

    def weight(case: UnlabelledCase) -> float:
        beaten = (
            network_dice is not None
            and case.yields_above is not None
            and network_dice >= case.yields_above
        )
        return 0.0 if beaten else share * case.fewshot_weight

    return torch.tensor([weight(cases[key]) for key in keys])


def mixed_target(teacher: Tensor, fewshot: Tensor, weight: Tensor) -> Tensor:
    """Return the probability of liver to be learned.

    Parameters
    ----------
    teacher
        Probability by the teacher, ``(batch, 1, z, y, x)``.
    fewshot
        Labels of the few-shot branch, of the same shape; where they are ignored, the target is the
        teacher's.
    weight
        Weight of the few-shot branch, ``(batch,)``.
    """
    share = weight.view(-1, 1, 1, 1, 1) * (fewshot != IGNORE)
    return teacher + share * ((fewshot == LIVER).to(teacher.dtype) - teacher)


def certainty(target: Tensor, *, sure_above: float) -> Tensor:
    """Return the weight of each voxel: 0 below ``sure_above``, up to 1 for a certain target."""
    likely = torch.maximum(target, 1 - target)
    return (2 * likely - 1) * (likely >= sure_above)


def unlabelled_loss(
    logits: Tensor, target: Tensor, *, voxel_weight: Tensor, patch_weight: Tensor
) -> Tensor:
    """Return cross-entropy plus Dice loss of a prediction against soft targets, a scalar.

    With squares in its denominator, Dice is largest at the target itself, even if that is soft.

    Parameters
    ----------
    logits
        ``(batch, 2, z, y, x)``.
    target, voxel_weight
        ``(batch, 1, z, y, x)``.
    patch_weight
        ``(batch,)``.
    """
    log_probability = logits.log_softmax(dim=1)
    background, liver = log_probability[:, :1], log_probability[:, 1:2]
    cross_entropy = -(target * liver + (1 - target) * background)
    axes = (1, 2, 3, 4)
    overlap = (voxel_weight * liver.exp() * target).sum(axes)
    sizes = (voxel_weight * (liver.exp().square() + target.square())).sum(axes)
    dice = 1 - (2 * overlap + 1) / (sizes + 1)
    return (patch_weight * ((voxel_weight * cross_entropy).mean(axes) + dice)).mean()


def deep_unlabelled_loss(
    outputs: Sequence[Tensor], target: Tensor, *, sure_above: float, patch_weight: Tensor
) -> Tensor:
    """Return the loss over all outputs of deep supervision; each coarser one has half the weight.

    All outputs contribute, because distributed training waits for a gradient of each.

    Parameters
    ----------
    outputs
        ``(batch, 2, z, y, x)`` each, the finest first.
    target
        For the finest, ``(batch, 1, z, y, x)``; the target of a coarser voxel is its mean.
    """
    total = torch.zeros((), device=target.device)
    for level, logits in enumerate(outputs):
        z, y, x = logits.shape[2:]
        coarse = adaptive_avg_pool3d(target, (z, y, x))
        loss = unlabelled_loss(
            logits,
            coarse,
            voxel_weight=certainty(coarse, sure_above=sure_above),
            patch_weight=patch_weight,
        )
        total = total + 0.5**level * loss
    return total / (2 - 0.5 ** (len(outputs) - 1))


@dataclass(frozen=True)
class UnlabelledPatches:
    """Patches of unlabelled images, ``(batch, 1, z, y, x)`` each, and the names of their cases."""

    weak: Tensor
    strong: Tensor
    fewshot: Tensor
    keys: tuple[str, ...]

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any], device: torch.device) -> UnlabelledPatches:
        """Read them from a batch of `sslmedsam2.nnunet.trainer.PatchLoader`."""
        views = batch["unlabelled_data"].to(device, non_blocking=True)
        return cls(
            weak=views[:, :1],
            strong=views[:, 1:],
            fewshot=batch["unlabelled_target"].to(device, non_blocking=True),
            keys=tuple(batch["unlabelled_keys"]),
        )
