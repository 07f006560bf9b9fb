"""``doctor``: is everything there that a run needs, and does it work?

Each question is asked by itself, so that whatever is broken, the answers to all others stand.
Libraries are imported where they are asked about: one that cannot be loaded is a finding.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from sslmedsam2.errors import SslMedSam2Error
from sslmedsam2.inference.device import Device
from sslmedsam2.pipelines import doctor_surroundings as surroundings
from sslmedsam2.pipelines.doctor_findings import Diagnosis, Finding, State
from sslmedsam2.pipelines.host import read_limits

_KERNEL_DRIVER: Final = Path("/proc/driver/nvidia/version")
_PHANTOM_SEED: Final = 11
_PHANTOM_SHAPE_ZYX: Final = (24, 64, 80)
_PHANTOM_SPACING_ZYX_MM: Final = (8.0, 4.0, 4.0)
_USUAL_DICE: Final = 0.7
"""The shipped network reaches 0.92 on this phantom; one of other data may do less."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DoctorOptions:
    """What ``doctor`` is asked to look at.

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


def examine(options: DoctorOptions) -> Diagnosis:
    """Ask everything; nothing is raised and nothing is left behind."""
    limits = read_limits()
    questions: dict[str, Callable[[], Finding]] = {
        "program": surroundings.ask_program,
        "torch": _ask_torch,
        "device": lambda: _ask_device(options.device),
        "sam2": lambda: _ask_sam2(load=options.inference),
        "weights": lambda: _ask_weights(options.model_dir),
        "processors": lambda: surroundings.ask_processors(limits),
        "memory": lambda: surroundings.ask_memory(limits),
        "processes": lambda: surroundings.ask_processes(limits),
        "shared_memory": surroundings.ask_shared_memory,
        "temporary": surroundings.ask_temporary_folder,
        "input": lambda: surroundings.ask_input(options.input_path),
        "output": lambda: surroundings.ask_output(options.output_dir),
    }
    if options.inference:
        questions["inference"] = lambda: _ask_inference(options)
    return Diagnosis(tuple(_answer(name, ask) for name, ask in questions.items()))


def _answer(name: str, ask: Callable[[], Finding]) -> Finding:
    try:
        return ask()
    except SslMedSam2Error as error:
        return Finding(name, State.PROBLEM, f"{error.subject}: {error.reason}", error.remedy)
    except Exception as error:  # A doctor must survive whatever is broken.
        logger.debug("%s", name, exc_info=error)
        detail = " ".join(str(error).split())[:200]
        remedy = "Run again with --verbose and report the traceback"
        return Finding(name, State.PROBLEM, f"{type(error).__name__}: {detail}", remedy)


def _ask_torch() -> Finding:
    import torch

    cuda = torch.version.cuda
    text = f"torch {torch.__version__} ({f'CUDA {cuda}' if cuda else 'CPU only'})"
    return Finding(
        "torch",
        State.OK,
        f"{text}, openvino {version('openvino')}, nnunetv2 {version('nnunetv2')}",
        details={
            "torch": torch.__version__,
            "cuda": cuda,
            "openvino": version("openvino"),
            "nnunetv2": version("nnunetv2"),
        },
    )


def _ask_device(wanted: Device) -> Finding:
    import torch

    driver = _driver()
    details = {"cuda_available": torch.cuda.is_available(), "driver": driver}
    if wanted == "cpu" or not torch.cuda.is_available():
        missing = wanted == "cuda"
        unused = wanted == "auto" and driver is not None
        return Finding(
            "device",
            State.PROBLEM if missing else State.NOTE if unused else State.OK,
            f"CPU{'' if wanted == 'cpu' else '; ' + _why_no_gpu(driver)}",
            "Start the container with --gpus all, or use --device cpu" if missing else None,
            details | {"device": "cpu"},
        )
    gpu = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    return Finding(
        "device",
        State.OK,
        f"{gpu.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free,"
        f" compute capability {gpu.major}.{gpu.minor}, driver {driver or 'unknown'}",
        details=details
        | {
            "device": "cuda",
            "name": gpu.name,
            "count": torch.cuda.device_count(),
            "free_bytes": free,
            "total_bytes": total,
            "compute_capability": f"{gpu.major}.{gpu.minor}",
        },
    )


def _why_no_gpu(driver: str | None) -> str:
    import torch

    if torch.version.cuda is None:
        return "this build of torch knows no GPU"
    if driver is None:
        return "no NVIDIA driver is visible"
    return f"driver {driver} shows no GPU that CUDA {torch.version.cuda} can use"


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, or None where none is visible."""
    try:
        words = _KERNEL_DRIVER.read_text(encoding="utf-8").splitlines()[0].split()
        return next(word for word in words if word[0].isdigit())
    except (OSError, IndexError, StopIteration):
        pass
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def _ask_sam2(*, load: bool) -> Finding:
    from sslmedsam2.pipelines.pseudo_label_inputs import COMPACT_NAME, COMPACT_PATH
    from sslmedsam2.weights.catalogue import OFFICIAL, find_official

    if load:
        import torch

        from sslmedsam2.fewshot.checkpoint import load_sam2

        load_sam2(COMPACT_PATH, device=torch.device("cpu"))
    names = [COMPACT_NAME] if COMPACT_PATH.is_file() else []
    for name in OFFICIAL:
        try:
            find_official(name)
        except SslMedSam2Error as error:
            # Most users never fetch one; a damaged file is told of when it is asked for.
            logger.debug("%s", error)
        else:
            names.append(name)
    return Finding(
        "sam2",
        State.OK if names else State.NOTE,
        f"sam2 {version('sam2')}, weights: {', '.join(names) or 'none'}",
        None if names else "For pseudo-label, give a checkpoint to --sam2",
        {"sam2": version("sam2"), "weights": names},
    )


def _ask_weights(model_dir: Path | None) -> Finding:
    from sslmedsam2.weights.locate import locate_models

    models = locate_models(model_dir)
    verified = all(model.verified for model in models)
    named = ", ".join(
        f"{model.name} ({model.files[-1].sha256[:12]}, {len(model.files)} files"
        f" {'verified' if model.verified else 'unverified'})"
        for model in models
    )
    return Finding(
        "weights",
        State.OK if verified else State.NOTE,
        f"{named} in {models[0].path.parent}",
        None if verified else "No manifest vouches for these files: see weights verify",
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
    )


def _ask_inference(options: DoctorOptions) -> Finding:
    """Segment a phantom of one window, small enough for a moment on a CPU."""
    from sslmedsam2.imaging.volume import CanonicalVolume, Reorientation
    from sslmedsam2.inference.model_folder import read_model_spec
    from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
    from sslmedsam2.phantom.anatomy import make_anatomy
    from sslmedsam2.phantom.rendering import axial_grid, render_sequence
    from sslmedsam2.weights.locate import locate_models

    model = locate_models(options.model_dir)[0]
    spec = read_model_spec(model.path, folds=model.folds)
    segmenter = CanonicalSegmenter(spec, EngineOptions(options.device))
    # Along the axes of the canonical orientation already.
    grid = axial_grid(shape_zyx=_PHANTOM_SHAPE_ZYX, spacing_zyx_mm=_PHANTOM_SPACING_ZYX_MM)
    anatomy = make_anatomy(_PHANTOM_SEED)
    image, liver = render_sequence(anatomy, "T2", grid=grid, seed=_PHANTOM_SEED)
    start = time.perf_counter()
    found = segmenter.segment(
        CanonicalVolume(image, grid.spacing_zyx_mm, Reorientation((0, 1, 2), ()))
    )
    seconds = time.perf_counter() - start
    dice = 2 * int((found.mask_zyx & liver).sum()) / int(found.mask_zyx.sum() + liver.sum())
    return Finding(
        "inference",
        State.OK if dice >= _USUAL_DICE else State.NOTE,
        f"a phantom's liver in {seconds:.1f} s on {segmenter.device} ({segmenter.backend}),"
        f" Dice {dice:.2f}",
        None if dice >= _USUAL_DICE else "Low for a phantom: try the model on scans with masks",
        {
            "seconds": round(seconds, 2),
            "device": segmenter.device,
            "backend": segmenter.backend,
            "dice": round(dice, 4),
        },
    )
