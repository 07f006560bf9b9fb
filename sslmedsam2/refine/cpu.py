"""What makes training quick on a CPU: a network rearranged, and memory kept.

Measured by ``benchmarks/training_speed.py``: convolutions are quickest on channels-last memory, but
torch's instance normalisation would turn every activation back. Group normalisation with one group
a channel is the same function, and keeps the layout. On CPUs with matrix units for bfloat16 (Intel
AMX), a compiled network is two and a half times as fast in it; on others float32 is quicker.
"""

from __future__ import annotations

import ctypes
import shutil
import sys

import torch
from torch import nn

_COMPILERS = ("g++", "clang++")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's ``mallopt``."""


def arrange_for_cpu(network: nn.Module) -> nn.Module:
    """Swap instance for group normalisation and lay the weights out channels-last, in place.

    Parameters keep their names and values, so checkpoints fit both forms.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.InstanceNorm3d):
                setattr(module, name, _as_group_norm(child))
    # torch's stubs do not know this documented form.
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network


def _as_group_norm(norm: nn.InstanceNorm3d) -> nn.GroupNorm:
    twin = nn.GroupNorm(norm.num_features, norm.num_features, eps=norm.eps, affine=norm.affine)
    twin.weight, twin.bias = norm.weight, norm.bias
    return twin


def can_compile() -> bool:
    """Whether the compiler that torch.compile needs, on any device, is installed."""
    return any(shutil.which(name) for name in _COMPILERS)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next step to use again.

    A step's activations are large, and glibc would hand each back to the system, which clears it
    page by page when the next step asks for it: a quarter of an iteration. Other C libraries are
    left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
