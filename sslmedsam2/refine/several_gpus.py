"""One fold trained by several GPUs of one machine: nnU-Net's distributed training.

A process a GPU, which draw different patches and share their gradients after every step; together
they draw the plans' batch. Every process runs :func:`sslmedsam2.refine.training.run_fold`.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sslmedsam2.errors import SslMedSam2Error, UsageError
from sslmedsam2.refine.trainer import TrainingSettings
from sslmedsam2.refine.training import Fold, run_fold


@dataclass(frozen=True)
class SharedTraining:
    """What every process is told.

    Attributes
    ----------
    meeting_file
        Where they find each other; must not exist yet.
    """

    work_dir: Path
    fold: Fold
    settings: TrainingSettings
    device: str
    warm_start: Path | None
    gpus: int
    meeting_file: Path
    log_level: int


def train_on_several_gpus(
    work_dir: Path,
    *,
    fold: Fold,
    settings: TrainingSettings,
    device: str,
    warm_start: Path | None,
    gpus: int,
) -> None:
    """Train a fold to its end.

    Raises
    ------
    SslMedSam2Error
        One process failed; the others are ended.
    """
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        training = SharedTraining(
            work_dir=work_dir,
            fold=fold,
            settings=settings,
            device=device,
            warm_start=warm_start,
            gpus=gpus,
            meeting_file=Path(folder) / "processes",
            log_level=logging.getLogger().getEffectiveLevel(),
        )
        try:
            torch.multiprocessing.spawn(take_part, args=(training,), nprocs=gpus)
        except (
            torch.multiprocessing.ProcessRaisedException,
            torch.multiprocessing.ProcessExitedException,
        ) as error:
            raise SslMedSam2Error(
                f"fold {fold} on {gpus} GPUs",
                reason=str(error).strip().splitlines()[-1],
                remedy="Look at the lines above, and run the same command again to go on",
            ) from error


def take_part(rank: int, training: SharedTraining) -> None:
    """Be one of the processes, with the GPU of that number."""
    import torch
    from torch import distributed

    logging.basicConfig(level=training.log_level, format="%(levelname)s %(message)s")
    distributed.init_process_group(
        "nccl" if training.device == "cuda" else "gloo",
        init_method=training.meeting_file.as_uri(),
        rank=rank,
        world_size=training.gpus,
    )
    try:
        if training.device == "cuda":
            torch.cuda.set_device(rank)
        run_fold(
            training.work_dir,
            fold=training.fold,
            settings=training.settings,
            device=training.device,
            warm_start=training.warm_start,
        )
    finally:
        distributed.destroy_process_group()


def check_gpus(gpus: int, *, device: str, batch_size: int) -> None:
    """Raise :class:`UsageError` if so many GPUs cannot share a training."""
    import torch

    if gpus == 1:
        return
    there = torch.cuda.device_count() if device == "cuda" else 0
    if there < gpus:
        reason, remedy = f"{there} can be used", "Ask for fewer, or make more visible"
    elif batch_size < gpus:
        reason = f"the batch of the preset is {batch_size}, too small to be shared"
        remedy = "Ask for fewer, or take a larger --preset"
    else:
        return
    raise UsageError(f"--gpus {gpus}", reason=reason, remedy=remedy)
