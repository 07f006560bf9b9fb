"""The Python side of ``scripts/gpu_kit.sh``, which says what it is for."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import runpy
import shutil
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

MOST_MB = 60
TRIAL_EPOCHS = 3
SAM2_TRIAL_STEPS = 20
IMPORTED_AND_NOT_USED = ("SimpleITK", "cc3d")
"""nnU-Net imports them for work that a training on preprocessed volumes never does; their wheels
have 50 and 5 MB."""
SECONDS_FOR_THE_END = 20.0
"""For the last epoch and the writing of the results."""
KEPT_MANTISSA = np.uint16(0xFFF8)
"""Seven bits, as bfloat16 has: rounding far below the noise of a scan, in half the space."""

logger = logging.getLogger("gpu_kit")


def main() -> None:
    """Pack, check or run, as the first argument says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--kit", type=Path, required=True)
    packing.add_argument("--work-dir", type=Path)
    packing.add_argument("--checkpoint", type=Path, help="[default: the newest of fold all]")
    commands.add_parser("check", add_help=False)
    running = commands.add_parser("run")
    running.add_argument("--kit", type=Path, required=True)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--minutes", type=float, default=6.0)
    running.add_argument("--sam2-minutes", type=float, default=0.0)
    running.add_argument("--batch", type=int, default=8)
    running.add_argument("--iterations-per-epoch", type=int, default=50)
    running.add_argument("--device", default="cuda")
    running.add_argument("--contrast-probability", type=float, default=0.5)
    running.add_argument("--learning-rate", type=float, default=8e-4)
    options, others = parser.parse_known_args()
    if others and options.command != "check":
        parser.error(f"unknown: {' '.join(others)}")
    if options.command == "pack":
        pack(options)
        return
    for name in IMPORTED_AND_NOT_USED:
        sys.modules.setdefault(name, types.ModuleType(name))
    if options.command == "check":
        script = Path(__file__).parents[1] / "benchmarks/check_gpu.py"
        sys.argv = [script.name, *others]
        runpy.run_path(str(script), run_name="__main__")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.minutes:
            train_network(options, Path(folder))
        if options.sam2_minutes:
            train_sam2(options, Path(folder))


def pack(options: argparse.Namespace) -> None:
    """Write volumes and checkpoint into the kit; end with an error where it is too large."""
    if options.work_dir is not None:
        _pack_training(options)
    size = sum(path.stat().st_size for path in options.kit.rglob("*") if path.is_file()) / 1e6
    print(f"{options.kit}: {size:.1f} MB")
    if size > MOST_MB:
        sys.exit(f"error: more than {MOST_MB} MB. Pack a training on fewer volumes")


def _pack_training(options: argparse.Namespace) -> None:
    from sslmedsam2.nnunet.plans import DATASET_NAME
    from sslmedsam2.nnunet.training import preprocessed_dir, trained_model_dir
    from sslmedsam2.weights.checkpoint import freeze_checkpoint

    source = preprocessed_dir(options.work_dir) / DATASET_NAME
    target = options.kit / "data"
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".b2nd":
            _pack_volume(path, copy)
        elif path.is_file() and path.suffix in (".json", ".pkl"):
            shutil.copy2(path, copy)
    shutil.make_archive(str(target), "xztar", target)
    shutil.rmtree(target)
    checkpoint = options.checkpoint
    if checkpoint is None:
        checkpoint = trained_model_dir(options.work_dir) / "fold_all" / "checkpoint_latest.pth"
    freeze_checkpoint(checkpoint, options.kit / "start.pth", half=True)


def _pack_volume(path: Path, copy: Path) -> None:
    import blosc2

    array = blosc2.open(str(path))[:]
    if array.dtype == np.float32:
        bits = array.astype(np.float16).view(np.uint16)
        array = (np.minimum(bits, np.uint16(0xFFF7)) + np.uint16(4) & KEPT_MANTISSA).view(
            np.float16
        )
    elif array.max(initial=0) <= np.iinfo(np.int8).max:
        array = array.astype(np.int8)
    blosc2.asarray(
        np.ascontiguousarray(array),
        urlpath=str(copy),
        mode="w",
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 9},
    )


def train_network(options: argparse.Namespace, folder: Path) -> None:
    """Measure an epoch, then train as many as the minutes hold, from the kit's checkpoint."""
    from sslmedsam2.execution.interrupt import StopRequest
    from sslmedsam2.nnunet.trainer import TrainingSettings
    from sslmedsam2.nnunet.training import train_fold
    from sslmedsam2.weights.checkpoint import freeze_checkpoint

    end = time.monotonic() + 60 * options.minutes - SECONDS_FOR_THE_END
    common: dict[str, Any] = {
        "fold": "all",
        "device": options.device,
        "warm_start": options.kit / "start.pth",
    }

    def settings(epochs: int) -> TrainingSettings:
        return TrainingSettings(
            epochs=epochs,
            iterations_per_epoch=options.iterations_per_epoch,
            contrast_probability=options.contrast_probability,
            learning_rate=options.learning_rate,
        )

    began = time.monotonic()
    trial = train_fold(
        _work_dir(options, folder / "trial"), settings=settings(TRIAL_EPOCHS), **common
    )
    assert trial is not None
    seconds = _seconds_of_last_epoch(trial)
    # To unpack, compile and start the loaders once more.
    preparation = time.monotonic() - began - TRIAL_EPOCHS * seconds
    epochs = max(1, int((end - time.monotonic() - preparation) / seconds))
    logger.info("%.1f s an epoch of %d: %d epochs", seconds, options.iterations_per_epoch, epochs)
    work_dir = _work_dir(options, folder / "training")
    train_fold(
        work_dir,
        settings=settings(epochs),
        stop=StopRequest(lambda: time.monotonic() > end),
        **common,
    )
    written = _fold_folder(work_dir).glob("checkpoint_*.pth")
    newest = max(written, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        sys.exit(f"error: {options.minutes:g} minutes are too few for one epoch. Raise --minutes")
    freeze_checkpoint(newest, options.out / "liver.pth", half=True)
    _write_curve(newest, options.out / "curve.csv")
    timing = {
        "batch": options.batch,
        "seconds_an_iteration": round(seconds / options.iterations_per_epoch, 4),
        "iterations": epochs * options.iterations_per_epoch,
        "device": _device_name(options.device),
    }
    (options.out / "timing.json").write_text(json.dumps(timing, indent=1) + "\n", encoding="utf-8")


def _work_dir(options: argparse.Namespace, work_dir: Path) -> Path:
    """Fill a work directory with the kit's volumes and the batch that is asked for."""
    from sslmedsam2.nnunet.plans import CONFIGURATION, DATASET_NAME, PLANS_NAME
    from sslmedsam2.nnunet.training import preprocessed_dir

    folder = preprocessed_dir(work_dir) / DATASET_NAME
    shutil.unpack_archive(options.kit / "data.tar.xz", folder)
    path = folder / f"{PLANS_NAME}.json"
    plans = json.loads(path.read_text(encoding="utf-8"))
    plans["configurations"][CONFIGURATION]["batch_size"] = options.batch
    path.write_text(json.dumps(plans, indent=1), encoding="utf-8")
    return work_dir


def _fold_folder(work_dir: Path) -> Path:
    from sslmedsam2.nnunet.training import trained_model_dir

    return trained_model_dir(work_dir) / "fold_all"


def _log_of(checkpoint: Path) -> dict[str, list[float]]:
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    log: dict[str, list[float]] = content["logging"]
    return log


def _seconds_of_last_epoch(checkpoint: Path) -> float:
    log = _log_of(checkpoint)
    return log["epoch_end_timestamps"][-1] - log["epoch_start_timestamps"][-1]


def _write_curve(checkpoint: Path, path: Path) -> None:
    log = _log_of(checkpoint)
    columns = ("train_losses", "val_losses", "mean_fg_dice", "lrs", "epoch_end_timestamps")
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("epoch", *columns))
        rows = zip(*(log[column] for column in columns), strict=False)
        writer.writerows((epoch, *row) for epoch, row in enumerate(rows, 1))


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def train_sam2(options: argparse.Namespace, folder: Path) -> None:
    """Measure a step, then train the compact SAM2 for as many as the minutes hold."""
    from sslmedsam2.train.pretrain_sam2 import PretrainOptions, pretrain_sam2

    end = time.monotonic() + 60 * options.sam2_minutes - SECONDS_FOR_THE_END

    def seconds_of(steps: int, output_path: Path) -> float:
        start = time.monotonic()
        pretrain_sam2(
            PretrainOptions(
                work_dir=folder / f"sam2_{steps}",
                output_path=output_path,
                steps=steps,
                device=options.device,
            )
        )
        return time.monotonic() - start

    # The first step of a process, which is slow, is not measured.
    seconds_of(1, folder / "first.safetensors")
    seconds = seconds_of(SAM2_TRIAL_STEPS, folder / "trial.safetensors") / SAM2_TRIAL_STEPS
    steps = max(1, int((end - time.monotonic()) / seconds))
    logger.info("%.2f s a step of the compact SAM2: %d steps", seconds, steps)
    seconds_of(steps, options.out / "sam2.safetensors")


if __name__ == "__main__":
    main()
