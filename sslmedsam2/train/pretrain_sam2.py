"""``pretrain-sam2``: train the compact SAM2 from scratch on synthetic volumes."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import torch

from sslmedsam2.errors import ModelError, UsageError
from sslmedsam2.fewshot.checkpoint import COMPACT_SUFFIX, CompactArchitecture, save_compact
from sslmedsam2.fewshot.pretraining import CHECKPOINT_NAME, PretrainSettings, pretrain
from sslmedsam2.fewshot.synthetic import SyntheticTask
from sslmedsam2.imaging.atomic import output_error
from sslmedsam2.inference.device import Device, choose_device

_SIZE_STEP: Final = 32
_FREE_TO_CHANGE: Final = ("save_every_s",)
"""Settings in which a training may differ from the one it goes on from."""


@dataclass(frozen=True)
class PretrainOptions:
    """What ``pretrain-sam2`` is asked to do.

    Attributes
    ----------
    output_path
        Of the finished network; ends in ``.safetensors``.
    processes
        How many share each step. Another number gives other episodes, and so another network.
    """

    work_dir: Path
    output_path: Path
    steps: int = 3800
    image_size: int = 128
    processes: int = 1
    seed: int = 0
    device: Device = "auto"


def pretrain_sam2(options: PretrainOptions) -> Path:
    """Train, or go on with what ``work_dir`` holds, and return the path of the network.

    Raises
    ------
    UsageError
        The device is not there, an option is not valid, or ``work_dir`` holds a training with
        other settings.
    ModelError
        The checkpoint in ``work_dir`` cannot be read.
    OutputError
        The network cannot be written.
    """
    device = torch.device(choose_device(options.device))
    _check(options, device)
    settings = PretrainSettings(
        architecture=CompactArchitecture(image_size=options.image_size),
        task=SyntheticTask(image_size=options.image_size),
        steps=options.steps,
        seed=options.seed,
        processes=options.processes,
    )
    _check_same_training(options.work_dir / CHECKPOINT_NAME, settings)
    model = pretrain(settings, work_dir=options.work_dir, device=device)
    save_compact(
        model, options.output_path, architecture=settings.architecture, notes=_notes(settings)
    )
    return options.output_path


def _check(options: PretrainOptions, device: torch.device) -> None:
    if device.type == "cuda" and options.processes > 1:
        raise UsageError(
            f"--processes {options.processes}",
            reason="on a GPU they would all compute on the same card",
            remedy="Leave it out, or use --device cpu",
        )
    if options.image_size % _SIZE_STEP:
        raise UsageError(
            f"--image-size {options.image_size}",
            reason=f"it is no multiple of {_SIZE_STEP}",
            remedy="Choose 128, 192 or 256",
        )
    if options.output_path.suffix != COMPACT_SUFFIX:
        raise UsageError(
            options.output_path,
            reason=f"the name does not end in {COMPACT_SUFFIX}",
            remedy="Give it that ending: it says how the file is to be read",
        )
    _check_writable(options.output_path)


def _check_writable(path: Path) -> None:
    """Raise OutputError now rather than after hours of training."""
    probe = path.with_name(f".{path.name}.probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
    except OSError as error:
        raise output_error(path, error) from error


def _check_same_training(checkpoint: Path, settings: PretrainSettings) -> None:
    """Refuse to go on from a training that was another one."""
    import torch

    if not checkpoint.exists():
        return
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        earlier = dict(state["settings"])
    # A damaged or malicious pickle can make the unpickler fail in almost any way.
    except Exception as error:
        raise ModelError(
            checkpoint,
            reason=f"the training cannot be gone on with ({type(error).__name__})",
            remedy="Remove the file to begin anew, or choose another work directory",
        ) from error
    wanted = asdict(settings)
    changed = sorted(
        name for name in wanted if name not in _FREE_TO_CHANGE and earlier.get(name) != wanted[name]
    )
    if changed:
        raise UsageError(
            checkpoint.parent,
            reason=f"it holds a training with other settings ({', '.join(changed)})",
            remedy="Choose another work directory, or give the same options as before",
        )


def _notes(settings: PretrainSettings) -> dict[str, str]:
    recipe: dict[str, Any] = asdict(settings)
    return {
        "recipe": json.dumps(recipe),
        "seed": str(settings.seed),
        "steps": str(settings.steps),
        "training_data": "synthetic volumes only; no image or mask of a patient",
        "licence": "Apache-2.0",
        "created": datetime.now(timezone.utc).date().isoformat(),
    }
