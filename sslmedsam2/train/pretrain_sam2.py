"""``pretrain-sam2``: train the compact SAM2 on synthetic volumes and organs of labelled scans."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.errors import InputError, ModelError, SslMedSam2Error, UsageError, first_line
from sslmedsam2.fewshot.checkpoint import (
    COMPACT_SUFFIX,
    CompactArchitecture,
    load_sam2,
    save_compact,
)
from sslmedsam2.fewshot.organ_episodes import OrganVolume, cut_organs
from sslmedsam2.fewshot.pretraining import (
    CHECKPOINT_NAME,
    PretrainInputs,
    PretrainSettings,
    pretrain,
)
from sslmedsam2.fewshot.synthetic import SyntheticTask
from sslmedsam2.imaging.atomic import check_writable, locked, output_error
from sslmedsam2.imaging.labelled import read_labelled
from sslmedsam2.imaging.orientation import apply_reorientation, to_canonical
from sslmedsam2.imaging.records import sha256_file, utc_date
from sslmedsam2.inference.device import Device, choose_device

logger = logging.getLogger(__name__)

_SIZE_STEP: Final = 32
_LEAST_SCANS: Final = 2
_FREE_TO_CHANGE: Final = ("save_every_s",)
"""Settings that may change when a training continues."""


@dataclass(frozen=True)
class PretrainOptions:
    """What ``pretrain-sam2`` is asked to do.

    Attributes
    ----------
    output_path
        Of the finished network; ends in ``.safetensors``.
    processes
        How many share each step. Another number gives other episodes, and so another network.
    organs_dir
        Labelled scans with maps of organs (``organs_*``); None for synthetic volumes only.
    organ_share
        Share of the steps that use them.
    start_path
        A compact SAM2 to start from; None for random weights.
    """

    work_dir: Path
    output_path: Path
    steps: int = 3800
    image_size: int = 128
    processes: int = 1
    seed: int = 0
    device: Device = "auto"
    organs_dir: Path | None = None
    organ_share: float = 0.5
    start_path: Path | None = None


def pretrain_sam2(options: PretrainOptions) -> Path:
    """Train, or continue the training in ``work_dir``, and return the path of the network.

    Raises
    ------
    UsageError
        The device is not there, an option is not valid, or ``work_dir`` holds a training with
        other settings or of another process.
    ModelError
        The checkpoint in ``work_dir`` or the network to start from cannot be read.
    InputError
        A labelled scan cannot be read, or fewer than two scans have a map of organs.
    OutputError
        The network cannot be written.
    SslMedSam2Error
        The memory of the GPU is too small.
    """
    device = torch.device(choose_device(options.device))
    _check(options, device)
    inputs = PretrainInputs(
        volumes=_read_organs(options.organs_dir, size=options.image_size),
        start=_read_start(options),
    )
    settings = PretrainSettings(
        architecture=CompactArchitecture(image_size=options.image_size),
        task=SyntheticTask(image_size=options.image_size),
        steps=options.steps,
        seed=options.seed,
        processes=options.processes,
        organ_share=options.organ_share if inputs.volumes else 0.0,
        start_sha256=sha256_file(options.start_path) if options.start_path else None,
        scans_sha256=_hash(inputs.volumes) if inputs.volumes else None,
    )
    try:
        with locked(options.work_dir, what="training there"):
            _check_same_training(options.work_dir / CHECKPOINT_NAME, settings)
            model = pretrain(settings, inputs, work_dir=options.work_dir, device=device)
    except torch.cuda.OutOfMemoryError as error:
        raise SslMedSam2Error(
            options.output_path,
            reason=f"the memory of the GPU is too small for this training ({first_line(error)})",
            remedy="End what else runs on the GPU, or use --device cpu",
        ) from error
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


def _read_organs(folder: Path | None, *, size: int) -> tuple[OrganVolume, ...]:
    if folder is None:
        return ()
    volumes = []
    for image in find_labelled_series(folder):
        if image.organs is None:
            logger.warning("%s is left out: it has no map of organs", image.path)
            continue
        read = read_labelled(image)
        assert read.organs_zyx is not None
        canonical = to_canonical(read.volume)
        organs = apply_reorientation(read.organs_zyx, canonical.reorientation)
        volume = cut_organs(canonical, organs, size=size)
        if volume.extents:
            volumes.append(volume)
        else:
            logger.warning("%s is left out: its map holds no organ but the liver", image.path)
    if len(volumes) < _LEAST_SCANS:
        raise InputError(
            folder,
            kind="no_organs",
            reason=f"{len(volumes)} of its scans have a map of organs other than the liver, "
            f"{_LEAST_SCANS} are needed",
            remedy="Put organs_<image> beside the images: 1 liver, 2 and above other organs",
        )
    return tuple(volumes)


def _read_start(options: PretrainOptions) -> dict[str, torch.Tensor] | None:
    if options.start_path is None:
        return None
    started = load_sam2(options.start_path, device=torch.device("cpu"))
    if started.image_size != options.image_size:
        raise UsageError(
            options.start_path,
            reason=f"its slices are of {started.image_size} pixels, not {options.image_size}",
            remedy=f"Add --image-size {started.image_size}",
        )
    return dict(started.model.state_dict())


def _hash(volumes: tuple[OrganVolume, ...]) -> str:
    digest = hashlib.sha256()
    for volume in volumes:
        digest.update(volume.images.numpy().tobytes())
        digest.update(volume.organs.numpy().tobytes())
    return digest.hexdigest()


def _check_writable(path: Path) -> None:
    """Raise OutputError now rather than after hours of training."""
    check_writable(path.parent)
    if path.is_dir():
        raise output_error(path, IsADirectoryError(errno.EISDIR, ""))


def _check_same_training(checkpoint: Path, settings: PretrainSettings) -> None:
    """Refuse to continue a training with other settings."""
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
        **_data_notes(settings),
        "created": utc_date(),
    }


def _data_notes(settings: PretrainSettings) -> dict[str, str]:
    if settings.scans_sha256 is None:
        return {
            "training_data": "synthetic volumes only; no image or mask of a patient",
            "licence": "Apache-2.0",
        }
    return {
        "training_data": "synthetic volumes, and organs other than the liver in labelled scans "
        f"({settings.organ_share:.0%} of the steps)",
        "licence": "the terms of the labelled scans",
    }
