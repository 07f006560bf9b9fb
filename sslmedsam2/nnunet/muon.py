"""The optimiser: Muon for convolutions, AdamW for all other weights.

Importing this module imports torch; import it inside functions.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

_MOMENTUM: Final = 0.95
_POLYNOMIAL: Final = (3.4445, -4.775, 2.0315)
_STEPS: Final = 5
_SIZE_OF_ADAMW: Final = 0.2
"""Usual root mean square of an update of AdamW, as a share of the learning rate."""


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for convolutions; AdamW for norms, biases and output layers.

    The update of a convolution is its momentum, taken as a matrix of output channels by all other
    axes, with all singular values brought near 1. Updates are scaled to the size of AdamW's, so
    that one learning rate and weight decay serve both (Liu et al. 2025, arXiv:2502.16982).
    ``torch.optim.Muon`` does the same for weights that are matrices, and refuses convolutions.

    Parameters
    ----------
    network
        A network of nnU-Net, whose output layers are ``decoder.seg_layers``.
    """

    def __init__(self, network: nn.Module, *, lr: float, weight_decay: float) -> None:
        kernels: list[Tensor] = []
        others: list[Tensor] = []
        for name, weight in network.named_parameters():
            is_kernel = weight.ndim > 1 and "seg_layers" not in name
            (kernels if is_kernel else others).append(weight)
        super().__init__([{"params": others}], lr=lr, weight_decay=weight_decay)
        self.add_param_group({"params": kernels, "orthogonal": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> Any:  # type: ignore[override]
        """Update all weights that have a gradient; gradients of convolutions are dropped."""
        for group in self.param_groups:
            if not group.get("orthogonal"):
                continue
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_of_kernel(weight, weight.grad, group["lr"], group["weight_decay"])
                    weight.grad = None  # AdamW passes it over.
        return super().step(closure)

    def _step_of_kernel(
        self, weight: Tensor, gradient: Tensor, lr: float, weight_decay: float
    ) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())  # AdamW reads it from every state that it restores.
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - _MOMENTUM)
        ahead = gradient.lerp(momentum, _MOMENTUM)  # Nesterov's momentum.
        update = orthogonal(ahead.reshape(len(weight), -1))
        size = _SIZE_OF_ADAMW * max(update.shape) ** 0.5
        weight.mul_(1 - lr * weight_decay)
        weight.add_(update.reshape(weight.shape), alpha=-lr * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix with all singular values brought near 1 (about 0.7 to 1.2).

    This is the iteration of Jordan et al., ``X <- (a + b X X^T + c (X X^T)^2) X``. Its factors are
    gathered on the side of ``X X^T``, which is small: a convolution has up to 27 times as many
    columns as rows.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonal(matrix.T).T
    matrix = matrix / matrix.norm().clamp_min(1e-7)
    a, b, c = _POLYNOMIAL
    gram = matrix @ matrix.T
    identity = torch.eye(len(matrix), device=matrix.device, dtype=matrix.dtype)
    product = identity
    for _ in range(_STEPS):
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor @ product
        gram = factor @ gram @ factor
    return product @ matrix
