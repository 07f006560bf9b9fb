"""A CUDA device for a torch without CUDA, so that code for a GPU runs, numbers included, on a CPU.

``install()`` compiles ``fakecuda.cpp`` once, keeps the result in the Python environment, and gives
torch a device ``cuda`` whose kernels are the CPU's. It changes the whole process and cannot be
undone, so its tests run by themselves: ``pytest tests/fakecuda``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

_SOURCE = Path(__file__).with_name("fakecuda.cpp")
_MODULE = "fakecuda_native"
_COMPILERS = ("g++", "clang++")

native: Any = None
"""The compiled part, once the device is installed."""


class Transfers(NamedTuple):
    """Copies between host and device: how many, and how many bytes went each way."""

    copies: int
    bytes_in: int
    bytes_out: int


def why_not() -> str | None:
    """Return why there can be no fake device here, or None."""
    if torch.version.cuda is not None:
        return "this torch has CUDA itself"
    if not any(shutil.which(name) for name in _COMPILERS):
        return f"no compiler ({' or '.join(_COMPILERS)}) for the fake CUDA device"
    for folder, header in zip(_includes(), ("ATen/ATen.h", "torch/all.h", "Python.h"), strict=True):
        if not (folder / header).is_file():
            return f"no {header} for the fake CUDA device"
    return None


def install(*, devices: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
    """Give torch so many GPUs of that compute capability, with 80 GB each.

    Raises
    ------
    RuntimeError
        It cannot be compiled.
    """
    global native
    if native is None:
        native = _load(_compiled())
        _patch_storages()
    native.set_devices(devices)
    memory = 80 * 10**9
    properties = types.SimpleNamespace(
        name="Fake CUDA",
        major=capability[0],
        minor=capability[1],
        total_memory=memory,
        multi_processor_count=132,
        gcnArchName="",
        warp_size=32,
    )
    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: devices,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_initialized": lambda: True,
        "current_device": lambda: native.current_device(),
        "set_device": lambda device: native.set_device(torch.device("cuda", _index(device)).index),
        "get_device_properties": lambda _device=None: properties,
        "get_device_name": lambda _device=None: properties.name,
        "get_device_capability": lambda _device=None: capability,
        "get_arch_list": lambda: ["sm_75", "sm_90"],
        "mem_get_info": lambda _device=None: (memory - native.used(), memory),
        "memory_allocated": lambda _device=None: native.used(),
        "max_memory_allocated": lambda _device=None: native.peak(),
        "reset_peak_memory_stats": lambda _device=None: native.reset_peak(),
        "empty_cache": lambda: None,
        "synchronize": lambda _device=None: None,
        "manual_seed": lambda _seed: None,
        "manual_seed_all": lambda _seed: None,
        "is_bf16_supported": lambda including_emulation=True: (
            including_emulation or capability[0] >= 8
        ),
        "current_stream": lambda _device=None: None,
        "is_current_stream_capturing": lambda: False,
    }
    for name, function in replaced.items():
        setattr(torch.cuda, name, function)
    torch.cuda.random.manual_seed_all = torch.cuda.random.manual_seed = lambda _seed: None
    torch.Tensor.pin_memory = lambda self, *_: self


def transfers() -> Transfers:
    """Return what was copied since :func:`reset`."""
    return Transfers(*native.transfers())


def reset() -> None:
    """Begin counting anew on the first device, without limit and fault."""
    native.clear()
    native.set_device(0)
    native.set_limit(-1)
    native.set_fault("", -1)


@contextmanager
def memory_limit(free_bytes: int) -> Iterator[None]:
    """Leave that much memory free beyond what is in use."""
    native.set_limit(native.used() + free_bytes)
    try:
        yield
    finally:
        native.set_limit(-1)


@contextmanager
def broken(message: str, *, after: int = 0) -> Iterator[None]:
    """Let everything on the device fail, from operation number ``after`` on."""
    native.set_fault(message, after)
    try:
        yield
    finally:
        native.set_fault("", -1)


def copies_waited_for(monkeypatch: Any) -> list[bool]:
    """Return a list that gets, for each ``Tensor.to`` from here on, whether it waits for a copy."""
    waited: list[bool] = []
    usual = torch.Tensor.to

    def noting(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        waited.append(not kwargs.get("non_blocking", False))
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", noting)
    return waited


def _index(device: Any) -> int:
    return device if isinstance(device, int) else torch.device(device).index or 0


def _includes() -> list[Path]:
    torch_headers = Path(torch.__file__).parent / "include"
    python_headers = Path(sysconfig.get_path("include"))
    return [torch_headers, torch_headers / "torch/csrc/api/include", python_headers]


def _compiled() -> Path:
    """Compile, unless that was done from this source for this torch; return the library."""
    reason = why_not()
    if reason is not None:
        raise RuntimeError(reason)
    made_from = f"{torch.__version__} {sys.version} {_SOURCE.read_text(encoding='utf-8')}"
    name = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    folder = Path(sys.prefix) / "fakecuda"
    folder.mkdir(exist_ok=True)
    library = folder / f"{_MODULE}-{name}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.is_file():
            partial = library.with_suffix(".partial")
            _compile(partial)
            partial.replace(library)
    return library


def _compile(library: Path) -> None:
    compiler = next(name for name in _COMPILERS if shutil.which(name))
    torch_libraries = Path(torch.__file__).parent / "lib"
    command = [compiler, "-O1", "-w", "-std=c++20", "-shared", "-fPIC"]
    command += [f"-DTORCH_EXTENSION_NAME={_MODULE}", "-DTORCH_API_INCLUDE_EXTENSION_H"]
    command += [f"-I{folder}" for folder in _includes()]
    command += [str(_SOURCE), f"-L{torch_libraries}", "-lc10", "-ltorch_cpu", "-ltorch"]
    command += ["-ltorch_python", "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the fake CUDA device cannot be compiled:\n{done.stderr[-3000:]}")


def _load(library: Path) -> Any:
    spec = importlib.util.spec_from_file_location(_MODULE, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _patch_storages() -> None:
    """Copy storages as tensors: torch's own way of copying them asks for CUDA's streams."""

    def as_tensor(storage: torch.UntypedStorage) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    usual_clone: Any = torch.UntypedStorage.clone

    def clone(storage: Any) -> Any:
        if storage.device.type != "cuda":
            return usual_clone(storage)
        return as_tensor(storage).clone().untyped_storage()

    usual_to: Any = torch.UntypedStorage.to

    def to(storage: Any, *, device: Any, non_blocking: bool = False) -> Any:
        device = torch.device(device)
        if device.type != "cuda":
            return usual_to(storage, device=device, non_blocking=non_blocking)
        return as_tensor(storage).to(device).untyped_storage()

    torch.UntypedStorage.clone, torch.UntypedStorage.to = clone, to
