"""Faster training on a CPU: rearranged layers, and the fastest number format and memory layout.

Measured by ``benchmarks/training_speed.py``: convolutions are fastest on channels-last memory, but
torch's instance normalisation converts every activation back. Group normalisation with one group
per channel is the same function and keeps the layout. Whether float32 or bfloat16 is faster, and
whether compiling helps, differs between CPUs, so it is measured when a training begins.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from sslmedsam2.imaging.records import read_record_or_none, write_record

logger = logging.getLogger(__name__)

_COMPILERS: Final = {"cpu": ("g++", "clang++"), "cuda": ("gcc", "clang")}
"""Compilers that torch.compile needs: on a CPU for its kernels, on a GPU to launch Triton's."""
_ARITHMETIC_FILE = "cpu_arithmetic.json"
_TIMED_STEPS = 3
Layer = TypeVar("Layer", bound=nn.Module)


@dataclass(frozen=True)
class CpuArithmetic:
    """Number format and memory layout of a training on a CPU.

    ``seconds`` holds the measured time of one forward and backward pass of a patch, by candidate.
    """

    bfloat16: bool
    compiled: bool
    channels_last: bool
    seconds: dict[str, float]
    cpu: str

    @property
    def layout(self) -> torch.memory_format:
        """Memory layout of activations and weights."""
        return torch.channels_last_3d if self.channels_last else torch.contiguous_format


USUAL_ARITHMETIC: Final = CpuArithmetic(
    bfloat16=False, compiled=False, channels_last=True, seconds={}, cpu=""
)
"""For a training that is too short for a measurement."""

_MEASURED: Final[dict[tuple[object, ...], CpuArithmetic]] = {}
"""Of this process, by patch and network: the folds of a round need one measurement."""


def arithmetic_of_fold(folder: Path, network: nn.Module, *, patch: Tensor) -> CpuArithmetic:
    """Return the fastest arithmetic on this CPU, and store it in ``folder``.

    A training that continues uses the stored one, so that it ends with the same weights. On another
    kind of CPU it is measured again. A process measures a network once, also for several folds.

    Parameters
    ----------
    patch
        ``(batch, channel, z, y, x)``, an input of the network.
    """
    path = folder / _ARITHMETIC_FILE
    cpu = _cpu_name()
    noted = read_record_or_none(path, CpuArithmetic)
    if noted is not None and noted.cpu == cpu:
        return noted
    key = (tuple(patch.shape), *(tuple(weight.shape) for weight in network.parameters()))
    if key not in _MEASURED:
        _MEASURED[key] = _measure_arithmetic(network, patch=patch, cpu=cpu)
        logger.info("seconds a step on this CPU: %s", _MEASURED[key].seconds)
    chosen = _MEASURED[key]
    write_record(path, chosen)
    return chosen


def _cpu_name() -> str:
    facts = torch.cpu.get_capabilities()
    return " ".join(sorted(f"{name}={value}" for name, value in facts.items() if value))


def _may_know_bfloat16() -> bool:
    """Return whether bfloat16 is worth measuring: without wide vectors a step takes too long."""
    facts = torch.cpu.get_capabilities()
    return any(value and ("avx512" in name or "bf16" in name) for name, value in facts.items())


def _measure_arithmetic(network: nn.Module, *, patch: Tensor, cpu: str) -> CpuArithmetic:
    """Time all layouts and number formats, then the compiled network.

    It is compiled for channels-last memory only. There convolutions are fastest, but torch's own
    normalisation is so slow backwards that channels-first may win uncompiled; compiling replaces
    it.
    """
    seconds: dict[str, float] = {}
    candidates: dict[str, tuple[bool, bool, bool]] = {}

    def measure(call: Any, bfloat16: bool, compiled: bool, channels_last: bool) -> None:
        name = (
            f"{'bfloat16' if bfloat16 else 'float32'} {'compiled' if compiled else 'eager'} "
            f"channels-{'last' if channels_last else 'first'}"
        )
        candidates[name] = (bfloat16, compiled, channels_last)
        layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        network.to(memory_format=layout)  # type: ignore[call-overload]
        there = patch.contiguous(memory_format=layout)
        seconds[name] = round(_seconds_a_step(call, there, bfloat16=bfloat16), 4)

    formats = (False, True) if _may_know_bfloat16() else (False,)
    for channels_last in (True, False):
        for bfloat16 in formats:
            measure(network, bfloat16, False, channels_last)
    if can_compile():
        eager = dict(seconds)
        for bfloat16 in formats:
            # A format that is emulated is not worth half a minute of compiling.
            of_format = min(s for n, s in eager.items() if candidates[n][0] == bfloat16)
            if of_format < 2 * min(eager.values()):
                measure(torch.compile(network), bfloat16, True, True)
    best = min(seconds, key=seconds.__getitem__)
    return CpuArithmetic(*candidates[best], seconds=seconds, cpu=cpu)


def _seconds_a_step(
    call: Callable[[Tensor], list[Tensor]], patch: Tensor, *, bfloat16: bool
) -> float:
    """Return the shortest of a few forward and backward passes, after one for warm-up."""
    taken = []
    for _ in range(1 + _TIMED_STEPS):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            outputs = call(patch)
        sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
        taken.append(time.perf_counter() - start)
    for parameter in getattr(call, "parameters", list)():
        parameter.grad = None
    return min(taken[1:])


def replace_layers(
    network: nn.Module, kind: type[Layer], made_of: Callable[[Layer], nn.Module]
) -> None:
    """Replace all layers of a class, in place."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, kind):
                setattr(module, name, made_of(child))


def arrange_for_cpu(network: nn.Module) -> nn.Module:
    """Swap instance for group normalisation and lay the weights out channels-last, in place.

    Parameters keep their names and values, so checkpoints fit both forms.
    """
    replace_layers(network, nn.InstanceNorm3d, _as_group_norm)
    # torch's stubs do not know this documented form.
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network


def _as_group_norm(norm: nn.InstanceNorm3d) -> nn.GroupNorm:
    grouped = nn.GroupNorm(norm.num_features, norm.num_features, eps=norm.eps, affine=norm.affine)
    grouped.weight, grouped.bias = norm.weight, norm.bias
    return grouped


def can_compile(device: str = "cpu") -> bool:
    """Return whether torch.compile can be used on ``cpu`` or a GPU.

    It needs a compiler and Python's headers, and on a GPU Triton. If so, torch is also set to
    continue without compiling should it fail.
    """
    kind = "cpu" if device == "cpu" else "cuda"
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    missing = not headers.is_file() or not any(map(shutil.which, _COMPILERS[kind]))
    if missing or (kind == "cuda" and importlib.util.find_spec("triton") is None):
        return False
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True
    return True
