"""Running ``retrain`` within seconds: small abdomens, the SAM2 that ships, a tiny network.

As a program it runs ``retrain`` on a folder that `write_data` has filled, and kills itself just
before a given call of a given function::

    python retrain_samples.py ROOT MODULE FUNCTION NUMBER_OF_THE_CALL
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tiny_scans import SMALL_AFFINE_RAS, small_abdomen, write_scan
from tiny_training import PRESET

from sslmedsam2.retrain.state import RetrainOptions
from sslmedsam2.retrain.stopping import StoppingRule

LABELLED = ("1001-A-S1", "1002-A-S1", "1003-B1-S2")
UNLABELLED = ("0011-B1", "0012-B1", "0013-B1")
NOISE = "0014-B1"
"""A case whose image holds nothing but noise, so that its pseudo label is rejected."""


def write_labelled(folder: Path, *, sequence: str = "T2", seed: int) -> None:
    """Write a small abdomen with its mask."""
    image, mask = small_abdomen(seed)
    write_scan(folder / f"{sequence}.nii.gz", image, affine_ras=SMALL_AFFINE_RAS)
    write_scan(
        folder / f"mask_{sequence}.nii.gz", mask, dtype=np.uint8, affine_ras=SMALL_AFFINE_RAS
    )


def write_unlabelled(folder: Path, *, sequence: str = "T2", seed: int) -> Path:
    """Write a small abdomen without its mask."""
    path = folder / f"{sequence}.nii.gz"
    return write_scan(path, small_abdomen(seed)[0], affine_ras=SMALL_AFFINE_RAS)


def write_data(root: Path) -> Path:
    """Write ``labelled`` and ``unlabelled``: the first labelled case has an unlabelled scan too."""
    for seed, case in enumerate(LABELLED, start=1):
        write_labelled(root / "labelled" / case, seed=seed)
    for seed, case in enumerate(UNLABELLED, start=11):
        write_unlabelled(root / "unlabelled" / case, seed=seed)
    write_unlabelled(root / "unlabelled" / LABELLED[0], sequence="GED4", seed=21)
    noise = np.random.default_rng(0).normal(100, 30, small_abdomen(1)[0].shape)
    write_scan(root / "unlabelled" / NOISE / "T2.nii.gz", noise, affine_ras=SMALL_AFFINE_RAS)
    return root


def options(root: Path, **changes: Any) -> RetrainOptions:
    """Return the options of a run of two rounds in ``root/work``."""
    chosen: dict[str, Any] = {
        "labelled_dir": root / "labelled",
        "unlabelled_dir": root / "unlabelled",
        "work_dir": root / "work",
        "weights_dir": root / "weights",
        "rule": StoppingRule(most_rounds=2, fixed=True),
        "folds": 2,
        "epochs": 2,
        "iterations_per_epoch": 2,
        "device": "cpu",
        "preset": PRESET,
        "name": "tiny",
        "training_data": "computed abdomens",
        "licence": "Apache-2.0",
        # A network that was trained for seconds is worse than the few-shot branch.
        "force": True,
        **changes,
    }
    return RetrainOptions(**chosen)


def content(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def kill_before(module: str, function: str, call: int) -> None:
    """Let this process kill itself before that call, counted from 1, of ``function``.

    ``function`` may be a method, written ``Class.method``.
    """
    owner: Any = importlib.import_module(module)
    *outer, name = function.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def doomed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, doomed)


def main() -> None:
    """Run ``retrain`` as told on the command line."""
    import torch

    from sslmedsam2.retrain.pipeline import retrain

    root, module, function, call = sys.argv[1:]
    # As many as the tests in whose results this one's are compared.
    torch.set_num_threads(1)
    kill_before(module, function, int(call))
    retrain(options(Path(root)))


if __name__ == "__main__":
    main()
