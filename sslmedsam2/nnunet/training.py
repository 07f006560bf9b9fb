"""Train folds in a work directory: start, resume, several GPUs.

Layout of the work directory::

    preprocessed/Dataset001_Liver/...      nnU-Net's preprocessed data, plans, splits
    results/Dataset001_Liver/<trainer>__<plans>__<configuration>/fold_<k>/checkpoint_*.pth
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.multiprocessing
from torch import distributed

from sslmedsam2.errors import ModelError, SslMedSam2Error, UsageError, first_line
from sslmedsam2.execution.host import keep_freed_memory, processor_count
from sslmedsam2.execution.interrupt import StopRequest
from sslmedsam2.imaging.atomic import locked, remove_partials
from sslmedsam2.imaging.records import read_record
from sslmedsam2.nnunet.cpu import can_compile
from sslmedsam2.nnunet.dataset import read_plans
from sslmedsam2.nnunet.deterministic import deterministic_algorithms
from sslmedsam2.nnunet.plans import CONFIGURATION, DATASET_NAME, PLANS_NAME
from sslmedsam2.nnunet.trainer import LiverTrainer, TrainingSettings
from sslmedsam2.weights.checkpoint import as_tensors, read_checkpoint
from sslmedsam2.weights.model_files import checkpoint_file

logger = logging.getLogger(__name__)

Fold = int | str
"""A fold's number, or ``"all"`` for training on every case."""

_LOOK_AROUND_S: Final = 1.0
_FROM_THE_BEGINNING: Final = (
    "move the file away and run the same command again: then this fold is trained from its"
    " beginning"
)


@dataclass(frozen=True)
class FoldTraining:
    """The training of one fold; see `train_fold`."""

    work_dir: Path
    fold: Fold
    settings: TrainingSettings
    device: str
    warm_start: Path | None = None
    gpus: int = 1


def train_on_several_gpus(training: FoldTraining, stop: StopRequest) -> None:
    """Train a fold to its end, or until ``stop`` is true at the end of an epoch.

    Raises SslMedSam2Error: one process failed; the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        stopped = torch.multiprocessing.get_context("spawn").Event()
        rendezvous, log_level = Path(folder) / "processes", logging.getLogger().getEffectiveLevel()
        processes: Any = torch.multiprocessing.spawn(
            run_rank,
            args=(training, rendezvous, log_level, stopped),
            nprocs=training.gpus,
            join=False,
        )
        try:
            while not processes.join(timeout=_LOOK_AROUND_S):
                if stop:
                    stopped.set()
        except (
            torch.multiprocessing.ProcessRaisedException,
            torch.multiprocessing.ProcessExitedException,
        ) as error:
            raise SslMedSam2Error(
                f"fold {training.fold} on {training.gpus} GPUs",
                reason=str(error).strip().splitlines()[-1],
                remedy="Look at the lines above, and run the same command again to continue",
            ) from error
        finally:
            for process in processes.processes:
                process.terminate()


def run_rank(
    rank: int, training: FoldTraining, rendezvous_file: Path, log_level: int, stopped: Any = None
) -> None:
    """Run one of the processes that share a fold; ``rank`` is also the number of its GPU.

    The processes find each other by ``rendezvous_file``, which must not exist yet. The parent sets
    ``stopped``, an event of ``multiprocessing``, to end them.
    """
    logging.basicConfig(level=log_level, format="%(levelname)s %(message)s")
    _leave_ctrl_c_to_parent()
    on_gpu = training.device != "cpu"
    if on_gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=rendezvous_file.as_uri(),
        rank=rank,
        world_size=training.gpus,
        device_id=torch.device("cuda", rank) if on_gpu else None,
    )
    try:
        _run_fold(training, StopRequest(stopped.is_set) if stopped else StopRequest())
    finally:
        distributed.destroy_process_group()


def _leave_ctrl_c_to_parent() -> None:
    """Ignore SIGINT, which a terminal sends to all processes, unless the parent has ended."""
    parent = os.getppid()

    def on_signal(_number: int, _frame: object) -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)


def check_gpus(gpus: int, *, device: str, batch_size: int) -> None:
    """Raise :class:`UsageError` if this number of GPUs cannot share a training."""
    if gpus == 1:
        return
    there = torch.cuda.device_count() if device == "cuda" else 0
    if device.startswith("cuda:"):
        reason, remedy = f"--device {device} names a single one", "Use --device cuda"
    elif there < gpus:
        reason, remedy = f"{there} can be used", "Ask for fewer, or make more visible"
    elif batch_size < gpus:
        reason = f"the batch of the preset is {batch_size}, too small to be shared"
        remedy = "Ask for fewer, or take a larger --preset"
    else:
        return
    raise UsageError(f"--gpus {gpus}", reason=reason, remedy=remedy)


_WORTH_MEASURING = 500
"""Measuring and compiling take up to two minutes; bfloat16 takes a third to a half of a second off
an iteration."""
_SHARED_MEMORY = Path("/dev/shm")
_WORKERS_NEED_BYTES = 2 * 2**30
"""For a dozen of nnU-Net's workers with a few batches of the larger presets each."""
_MOST_WORKERS = 12
"""As many as nnU-Net starts for a GPU, if the processors suffice."""


def worth_measuring(iterations: int) -> bool:
    """Return whether a training is long enough to measure the fastest arithmetic first."""
    return iterations >= _WORTH_MEASURING


def preprocessed_dir(work_dir: Path) -> Path:
    """Return where nnU-Net's preprocessed data lie."""
    return work_dir / "preprocessed"


def trained_model_dir(work_dir: Path) -> Path:
    """Return the folder with ``plans.json``, ``dataset.json`` and the folds."""
    run = f"{LiverTrainer.__name__}__{PLANS_NAME}__{CONFIGURATION}"
    return work_dir / "results" / DATASET_NAME / run


def final_checkpoint(work_dir: Path, fold: Fold) -> Path:
    """Return the path of the checkpoint of a completely trained fold."""
    return trained_model_dir(work_dir) / checkpoint_file(str(fold))


def train_fold(
    work_dir: Path,
    *,
    fold: Fold,
    settings: TrainingSettings,
    device: str,
    warm_start: Path | None = None,
    gpus: int = 1,
    stop: StopRequest | None = None,
) -> Path | None:
    """Train one fold, or continue its training, and return its final checkpoint.

    Returns None if it was stopped. It stops at the end of the epoch in which ``stop`` becomes true,
    and the next call continues from there.

    Parameters
    ----------
    warm_start
        A checkpoint of the same plans to start from; ignored if the fold itself can be resumed.
    gpus
        Number of GPUs that share the fold.

    Raises ModelError: ``warm_start`` cannot be read or does not fit the network, or a checkpoint of
    the fold is damaged; UsageError: another process trains this fold.
    """
    final = final_checkpoint(work_dir, fold)
    stop = StopRequest() if stop is None else stop
    if final.is_file():
        _refuse_damaged(final)
        logger.info("fold %s is trained already", fold)
        return final
    training = FoldTraining(work_dir, fold, settings, device, warm_start, gpus)
    with locked(final.parent, "training.lock", what="training this fold"):
        if stop:
            return None
        # A killed training may leave a partial checkpoint, of a gigabyte for a large network.
        remove_partials(final.parent)
        run = _run_fold if gpus == 1 else train_on_several_gpus
        run(training, stop)
    return final if final.is_file() else None


def _refuse_damaged(checkpoint: Path) -> None:
    """Refuse a damaged checkpoint of a fold; only here can the fold be trained once more."""
    try:
        read_checkpoint(checkpoint)
    except ModelError as error:
        raise ModelError(
            checkpoint,
            reason=error.reason,
            remedy=f"Restore the file, or {_FROM_THE_BEGINNING}",
        ) from error


def _load_checkpoint(trainer: Any, latest: Path) -> None:
    try:
        trainer.load_checkpoint(str(latest))
    except ValueError as error:
        # torch raises this if the optimiser's state is that of other weights.
        raise SslMedSam2Error(
            f"fold {trainer.fold}",
            reason=f"{latest} is of an earlier version, which trained otherwise",
            remedy=f"Go on with that version, or {_FROM_THE_BEGINNING}",
        ) from error


def _run_fold(training: FoldTraining, stop: StopRequest) -> None:
    """Train one fold in this process, alone or as one of several."""
    work_dir, fold, device = training.work_dir, training.fold, training.device
    set_environment(work_dir, device=device, settings=training.settings)
    if device == "cpu":
        keep_freed_memory()
    with (
        deterministic_algorithms() if training.settings.deterministic else _quickest_convolutions()
    ):
        trainer = _make_trainer(work_dir, fold=fold, device=device)
        trainer.use(training.settings)
        trainer.stop = stop
        trainer.initialize()
        latest = final_checkpoint(work_dir, fold).with_name("checkpoint_latest.pth")
        if latest.is_file():
            _refuse_damaged(latest)
            _load_checkpoint(trainer, latest)
            logger.info("fold %s continues at epoch %d", fold, trainer.current_epoch)
        elif training.warm_start is not None:
            _load_weights(trainer, training.warm_start)
        try:
            trainer.run_training()
        except torch.cuda.OutOfMemoryError as error:
            raise SslMedSam2Error(
                f"fold {fold}",
                reason=f"the memory of the GPU is too small for this network ({first_line(error)})",
                remedy="Choose a smaller --preset, or --device cpu",
            ) from error


def set_environment(work_dir: Path, *, device: str, settings: TrainingSettings) -> None:
    """Set the environment variables from which nnU-Net takes its folders and settings."""
    os.environ["nnUNet_preprocessed"] = str(preprocessed_dir(work_dir))
    os.environ["nnUNet_results"] = str(work_dir / "results")
    if device == "cpu" or settings.deterministic or _shared_memory_is_small():
        # Worker processes need shared memory, compete for the cores of a CPU, and deliver patches
        # in an order that is not seeded.
        os.environ["nnUNet_n_proc_DA"] = "0"
    else:
        # nnU-Net counts all processors of the machine, not those that this process may use.
        os.environ.setdefault("nnUNet_n_proc_DA", str(_n_workers()))
    if device == "cpu" or settings.deterministic or not can_compile(device):
        os.environ["nnUNet_compile"] = "f"


def _n_workers() -> int:
    """Return the number of processes that prepare patches for each GPU.

    One processor is left for this process.
    """
    sharing = distributed.get_world_size() if distributed.is_initialized() else 1
    return max(1, min(_MOST_WORKERS, processor_count() // sharing - 1))


@contextmanager
def _quickest_convolutions() -> Iterator[None]:
    """Let cuDNN choose its fastest algorithms by measurement, as nnU-Net's command does."""
    former = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = former


def _shared_memory_is_small() -> bool:
    """Return whether worker processes would run out of it, as in a container with 64 MB."""
    if not _SHARED_MEMORY.is_dir() or shutil.disk_usage(_SHARED_MEMORY).free >= _WORKERS_NEED_BYTES:
        return False
    logger.warning(
        "%s is small: patches are prepared one after the other; --shm-size 8g makes it quicker",
        _SHARED_MEMORY,
    )
    return True


def _make_trainer(work_dir: Path, *, fold: Fold, device: str) -> LiverTrainer:
    """Construct the trainer directly: nnU-Net's search for its class imports all variants."""
    folder = preprocessed_dir(work_dir) / DATASET_NAME
    plans = {**read_plans(folder / f"{PLANS_NAME}.json"), "continue_training": False}
    meta = read_record(folder / "dataset.json", dict[str, Any])
    trainer = LiverTrainer(plans, CONFIGURATION, fold, meta, device=torch.device(device))
    if device.startswith("cuda:"):
        # nnU-Net takes the first GPU, whichever it is given.
        trainer.device = torch.device(device)
        torch.cuda.set_device(trainer.device)
    return trainer


def _load_weights(trainer: LiverTrainer, checkpoint: Path) -> None:
    content = read_checkpoint(checkpoint)
    try:
        trainer.start_from(as_tensors(content["network_weights"]))
    except RuntimeError as error:
        raise ModelError(
            checkpoint,
            reason="its weights do not fit the network of this training",
            remedy="Give the --preset that the checkpoint was trained with",
        ) from error
