"""Deterministic training on a GPU: torch's switches, and layers that have a deterministic gradient.

On a GPU the gradients of 3-D average pooling and of torch's cross-entropy are not deterministic.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sslmedsam2.nnunet.cpu import replace_layers


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Restrict torch to deterministic algorithms; it raises RuntimeError if it has none."""
    former = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
    # Without it the order of sums in cuBLAS is not fixed.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(former[0])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = former[1:]


class BlockMean(nn.Module):
    """Average pooling over blocks that do not overlap; their size must divide the input's."""

    def __init__(self, block_zyx: tuple[int, int, int]) -> None:
        super().__init__()
        self.block_zyx = block_zyx

    def forward(self, features: Tensor) -> Tensor:
        """Pool ``(batch, channel, z, y, x)``."""
        (dz, dy, dx), (z, y, x) = self.block_zyx, features.shape[2:]
        blocks = features.reshape(*features.shape[:2], z // dz, dz, y // dy, dy, x // dx, dx)
        return blocks.mean(dim=(3, 5, 7))


class CrossEntropy(nn.Module):
    """Mean cross-entropy over all voxels without the ``ignored_label``."""

    def __init__(self, ignored_label: int | None) -> None:
        super().__init__()
        self.ignored_label = ignored_label

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Parameters
        ----------
        logits
            ``(batch, class, ...)``.
        target
            Labels, ``(batch, ...)`` or ``(batch, 1, ...)``.
        """
        if target.ndim < logits.ndim:
            target = target[:, None]
        counted = target != self.ignored_label if self.ignored_label is not None else None
        labels = target if counted is None else target.masked_fill(~counted, 0)
        classes = torch.arange(logits.shape[1], device=logits.device)
        chosen = labels.long() == classes.view(1, -1, *[1] * (logits.ndim - 2))
        loss = -(logits.log_softmax(dim=1) * chosen).sum(dim=1, keepdim=True)
        return loss.mean() if counted is None else (loss * counted).sum() / counted.sum()


def arrange_deterministically(network: nn.Module) -> nn.Module:
    """Replace the average poolings of a network in place; its weights keep their names."""
    replace_layers(network, nn.AvgPool3d, _as_block_mean)
    return network


def _as_block_mean(pool: nn.AvgPool3d) -> BlockMean:
    if pool.kernel_size != pool.stride or pool.padding not in (0, (0, 0, 0)):
        raise ValueError(f"{pool} is no mean over blocks")
    size = pool.kernel_size
    z, y, x = (size,) * 3 if isinstance(size, int) else tuple(size)
    return BlockMean((z, y, x))
