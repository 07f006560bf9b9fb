"""``doctor``: check device, libraries, weights, limits and folders, and segment a phantom.

Each check is independent: if one fails, the others still give their result. Libraries are imported
inside their check, so that one that cannot be loaded is a finding.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from sslmedsam2 import __version__
from sslmedsam2.errors import ExitCode, SslMedSam2Error
from sslmedsam2.execution.host import Limits, processor_count, read_limits
from sslmedsam2.inference.device import Device, driver_version, gpu_fault

logger = logging.getLogger(__name__)


class State(str, Enum):
    """How a finding bears on a run."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes
    ----------
    text
        The answer in words, one line.
    remedy
        An action for the user, if one is needed.
    details
        The same in numbers and names, ready for JSON.
    """

    state: State
    text: str
    remedy: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found, by the short and stable names of the checks, in their order."""

    findings: Mapping[str, Finding]

    @property
    def problems(self) -> tuple[str, ...]:
        """The names of the checks without which a run cannot start, or will fail."""
        return tuple(k for k, found in self.findings.items() if found.state is State.PROBLEM)

    @property
    def exit_code(self) -> ExitCode:
        """4 if the model is to blame, 1 for any other problem, else 0."""
        if not self.problems:
            return ExitCode.OK
        return ExitCode.MODEL_INVALID if "weights" in self.problems else ExitCode.SOME_CASES_FAILED


_NEEDED_MEMORY_GB: Final = 1.5
"""The largest scans of the challenge take 1.0 GB; see benchmarks/RESULTS.md."""

_NEEDED_PROCESSES: Final = 40
_NEEDED_TEMPORARY_MB: Final = 16
_SHARED_MEMORY: Final = Path("/dev/shm")
_TRAINING_NEEDS_GB: Final = 2.0
"""Of shared memory on a GPU, for the processes that prepare patches; see nnunet/training.py."""

_PHANTOM_SEED: Final = 11
_PHANTOM_SHAPE_ZYX: Final = (24, 64, 72)
_PHANTOM_SPACING_ZYX_MM: Final = (8.0, 4.0, 4.0)
_USUAL_DICE: Final = 0.7
"""The shipped network reaches 0.96 on this phantom; one of other data may do less."""


@dataclass(frozen=True)
class DoctorOptions:
    """Options of ``doctor``.

    Attributes
    ----------
    model_dir
        None to search the usual places, see :mod:`sslmedsam2.weights.locate`.
    device
        ``cuda`` makes it a problem that there is no GPU; with ``auto`` that is a note.
    inference
        Load the networks and segment a small phantom.
    """

    input_path: Path
    output_dir: Path
    model_dir: Path | None = None
    device: Device = "auto"
    inference: bool = True


def run_checks(options: DoctorOptions) -> Diagnosis:
    """Run all checks; raises nothing and leaves no file."""
    limits = read_limits()
    checks: dict[str, Callable[[], Finding]] = {
        "program": check_program,
        "torch": _check_torch,
        "device": lambda: _check_device(options.device),
        "sam2": lambda: _check_sam2(load=options.inference),
        "weights": lambda: _check_weights(options.model_dir),
        "processors": lambda: check_processors(limits),
        "memory": lambda: check_memory(limits),
        "processes": lambda: check_processes(limits),
        "shared_memory": lambda: check_shared_memory(on_gpu=_uses_gpu(options.device)),
        "temporary": check_temporary_folder,
        "input": lambda: check_input(options.input_path),
        "output": lambda: check_output(options.output_dir),
    }
    if options.inference:
        checks["inference"] = lambda: _check_inference(options)
    return Diagnosis({name: _finding(name, check) for name, check in checks.items()})


def _finding(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except SslMedSam2Error as error:
        return Finding(State.PROBLEM, f"{error.subject}: {error.reason}", error.remedy)
    except Exception as error:  # One failed check must not stop the others.
        logger.debug("%s", name, exc_info=error)
        detail = " ".join(str(error).split())[:200]
        remedy = "Run again with --verbose and report the traceback"
        return Finding(State.PROBLEM, f"{type(error).__name__}: {detail}", remedy)


def _judged(
    is_good: bool,
    text: str,
    remedy: str,
    details: Mapping[str, Any],
    *,
    otherwise: State = State.PROBLEM,
) -> Finding:
    """Return a finding whose remedy stands only where something should be done."""
    if is_good:
        return Finding(State.OK, text, details=details)
    return Finding(otherwise, text, remedy, details)


def _check_torch() -> Finding:
    import torch

    cuda = torch.version.cuda
    text = f"torch {torch.__version__} ({f'CUDA {cuda}' if cuda else 'CPU only'})"
    return Finding(
        State.OK,
        f"{text}, openvino {version('openvino')}, nnunetv2 {version('nnunetv2')}",
        details={
            "torch": torch.__version__,
            "cuda": cuda,
            "openvino": version("openvino"),
            "nnunetv2": version("nnunetv2"),
        },
    )


def _check_device(wanted: Device) -> Finding:
    driver = driver_version()
    details: dict[str, Any] = {"driver": driver, "device": "cpu"}
    if wanted == "cpu":
        # The GPU is left alone: a context would take memory beside the run that is watched.
        return Finding(State.OK, "CPU", details=details)
    device = "cuda" if wanted == "auto" else wanted
    fault = gpu_fault(device)
    details["cuda_available"] = fault is None
    if fault is not None:
        state = State.NOTE if wanted == "auto" else State.PROBLEM
        if wanted == "auto" and fault.absent and driver is None:
            return Finding(State.OK, f"CPU; {fault.reason}", details=details)
        return Finding(state, f"CPU; {fault.reason}", fault.remedy, details)
    import torch

    gpu = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return Finding(
        State.OK,
        f"{gpu.name}, {_gb(free):.1f} of {_gb(total):.1f} GB free,"
        f" compute capability {gpu.major}.{gpu.minor}, driver {driver or 'unknown'}",
        details=details
        | {
            "device": device,
            "name": gpu.name,
            "count": torch.cuda.device_count(),
            "free_bytes": free,
            "total_bytes": total,
            "compute_capability": f"{gpu.major}.{gpu.minor}",
        },
    )


def _check_sam2(*, load: bool) -> Finding:
    from sslmedsam2.pseudo_label.supports import COMPACT_NAME, COMPACT_PATH
    from sslmedsam2.weights.catalogue import OFFICIAL, find_official

    if find_spec("sam2") is None:
        return Finding(State.NOTE, "not installed", "For pseudo-label: pip install sam2")
    if load:
        import torch

        from sslmedsam2.fewshot.checkpoint import load_sam2

        load_sam2(COMPACT_PATH, device=torch.device("cpu"))
    names = [COMPACT_NAME] if COMPACT_PATH.is_file() else []
    for name in OFFICIAL:
        try:
            find_official(name)
        except SslMedSam2Error as error:
            # Most users never fetch one; a damaged file is reported when it is used.
            logger.debug("%s", error)
        else:
            names.append(name)
    return _judged(
        bool(names),
        f"sam2 {version('sam2')}, weights: {', '.join(names) or 'none'}",
        "For pseudo-label, give a checkpoint to --sam2",
        {"sam2": version("sam2"), "weights": names},
        otherwise=State.NOTE,
    )


def _check_weights(model_dir: Path | None) -> Finding:
    from sslmedsam2.weights.locate import locate_models
    from sslmedsam2.weights.model_files import checkpoint_file

    models = locate_models(model_dir)
    verified = all(model.verified for model in models)
    named = ", ".join(
        f"{model.name} ({model.sha256[checkpoint_file(model.folds[0], model.path)][:12]},"
        f" {len(model.files)} files {'verified' if model.verified else 'unverified'})"
        for model in models
    )
    return _judged(
        verified,
        f"{named} in {models[0].path.parent}",
        "No manifest vouches for these files: see weights verify",
        {
            "models": [
                {
                    "name": model.name,
                    "path": str(model.path),
                    "sequences": list(model.sequences),
                    "verified": model.verified,
                    "sha256": {file.path: file.sha256 for file in model.files},
                }
                for model in models
            ]
        },
        otherwise=State.NOTE,
    )


def _check_inference(options: DoctorOptions) -> Finding:
    """Segment a phantom of one window, small enough for a moment on a CPU."""
    from sslmedsam2.imaging.volume import CanonicalVolume, mask_dice
    from sslmedsam2.inference.model_folder import read_model_spec
    from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
    from sslmedsam2.phantom.anatomy import make_anatomy
    from sslmedsam2.phantom.rendering import axial_grid, render_sequence
    from sslmedsam2.weights.locate import locate_models

    model = locate_models(options.model_dir, hash_weights=False)[0]
    spec = read_model_spec(model.path, folds=model.folds, sha256=model.sha256)
    segmenter = CanonicalSegmenter(spec, EngineOptions(options.device))
    # Along the axes of the canonical orientation already.
    grid = axial_grid(shape_zyx=_PHANTOM_SHAPE_ZYX, spacing_zyx_mm=_PHANTOM_SPACING_ZYX_MM)
    anatomy = make_anatomy(_PHANTOM_SEED)
    image, liver = render_sequence(anatomy, "T2", grid=grid, seed=_PHANTOM_SEED)
    start = time.perf_counter()
    found = segmenter.segment(CanonicalVolume(image, grid.spacing_zyx_mm))
    seconds = time.perf_counter() - start
    dice = mask_dice(found.mask_zyx > 0, liver > 0)
    return _judged(
        dice >= _USUAL_DICE,
        f"a phantom's liver in {seconds:.1f} s on {segmenter.device} ({segmenter.backend}),"
        f" Dice {dice:.2f}",
        "Low for a phantom: try the model on scans with masks",
        {
            "seconds": round(seconds, 2),
            "device": segmenter.device,
            "backend": segmenter.backend,
            "dice": round(dice, 4),
        },
        otherwise=State.NOTE,
    )


def check_program() -> Finding:
    """Which version runs, on which Python, as which user."""
    user = f"{os.getuid()}:{os.getgid()}" if hasattr(os, "getuid") else "unknown"
    text = (
        f"sslmedsam2 {__version__}, Python {platform.python_version()},"
        f" {platform.system()} {platform.machine()}, user {user}"
    )
    details = {"version": __version__, "python": sys.version.split()[0], "user": user}
    return Finding(State.OK, text, details=details)


def check_processors(limits: Limits) -> Finding:
    """On how many processors the run computes."""
    used, present = processor_count(), os.cpu_count() or 1
    quota = "" if limits.processors is None else f", a limit of {limits.processors:g}"
    return Finding(
        State.OK,
        f"{used} of {present}{quota}",
        details={"used": used, "present": present, "limit": limits.processors},
    )


def check_memory(limits: Limits) -> Finding:
    """How much memory is left, to the container or else on the machine."""
    available = _available_on_machine()
    if limits.memory_bytes is not None:
        # What the kernel counts as used includes file caches that it gives up on demand, so a
        # container is judged by its limit.
        available = min(available, limits.memory_bytes)
    limit = "no limit" if limits.memory_bytes is None else f"limit {_gb(limits.memory_bytes):.1f}"
    return _judged(
        _gb(available) >= _NEEDED_MEMORY_GB,
        f"{_gb(available):.1f} GB available, {limit}",
        f"Give it {_NEEDED_MEMORY_GB} GB: --memory 2g",
        {
            "available_bytes": available,
            "limit_bytes": limits.memory_bytes,
            "used_bytes": limits.memory_used_bytes,
        },
    )


def check_processes(limits: Limits) -> Finding:
    """How many processes and threads the container may have."""
    details = {"limit": limits.processes, "used": limits.processes_used}
    if limits.processes is None:
        return Finding(State.OK, "no limit", details=details)
    return _judged(
        limits.processes - (limits.processes_used or 0) >= _NEEDED_PROCESSES,
        f"{limits.processes_used} of {limits.processes}",
        "Allow more: --pids-limit 128",
        details,
    )


def check_shared_memory(folder: Path = _SHARED_MEMORY, *, on_gpu: bool = False) -> Finding:
    """How large ``/dev/shm`` is: training on a GPU loads its patches through it."""
    if not folder.is_dir():
        return Finding(State.OK, f"no {folder}; none is needed")
    size = shutil.disk_usage(folder).total
    details = {"bytes": size}
    if not on_gpu:
        text = f"{size / 1e6:.0f} MB in {folder}; none is needed on a CPU"
        return Finding(State.OK, text, details=details)
    return _judged(
        _gb(size) >= _TRAINING_NEEDS_GB,
        f"{size / 1e6:.0f} MB in {folder}; predict needs none, training {_TRAINING_NEEDS_GB:g} GB",
        "For training, which is several times slower without: --shm-size 8g",
        details,
        otherwise=State.NOTE,
    )


def _uses_gpu(wanted: Device) -> bool:
    return wanted != "cpu" and gpu_fault("cuda" if wanted == "auto" else wanted) is None


def check_temporary_folder() -> Finding:
    """Whether libraries have a folder for their caches."""
    remedy = "Mount one: --tmpfs /tmp"
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Finding(State.PROBLEM, "no writable folder for caches", remedy)
    free = shutil.disk_usage(folder).free
    return _judged(
        free >= _NEEDED_TEMPORARY_MB * 1_000_000,
        f"{folder}, {free / 1e6:.0f} MB free",
        remedy,
        {"path": str(folder), "free_bytes": free},
    )


def check_input(path: Path) -> Finding:
    """Whether the input can be listed; a missing one is only a note."""
    details = {"path": str(path)}
    try:
        entries = sum(1 for _ in path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return Finding(State.NOTE, f"there is no folder {path}", None, details)
    except OSError as error:
        return Finding(
            State.PROBLEM,
            f"{path} cannot be listed ({error.strerror})",
            "Make it readable for the user that runs the program",
            details,
        )
    return Finding(State.OK, f"{path}, {entries} entries", None, details)


def check_output(folder: Path) -> Finding:
    """Whether the output folder can be written; a missing one is only a note."""
    details = {"path": str(folder)}
    if not folder.exists():
        return Finding(State.NOTE, f"there is no folder {folder}", None, details)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-"):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(
            State.PROBLEM,
            f"{folder} cannot be written ({error.strerror})",
            'Make it writable for this user, or start with --user "$(id -u):$(id -g)"',
            details,
        )
    text = f"{folder} is writable, {_gb(free):.0f} GB free"
    return Finding(State.OK, text, None, details | {"free_bytes": free})


def _available_on_machine() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise OSError("/proc/meminfo does not say how much memory is available")


def _gb(n_bytes: float) -> float:
    return n_bytes / 1e9
