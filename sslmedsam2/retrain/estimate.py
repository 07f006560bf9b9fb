"""How long a retraining takes: ``plan-cluster``, and what ``retrain`` logs when it begins.

An estimate from measured costs of single units; ``docs/cluster.md`` shows the formulas. The queue
of a batch system and copying of data are not included.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.contract.studies import find_queries
from sslmedsam2.errors import InputError, UsageError
from sslmedsam2.execution.units import Executor, duration
from sslmedsam2.imaging.records import read_record
from sslmedsam2.nnunet.plans import CompactPreset, Grid
from sslmedsam2.retrain.state import RetrainOptions

logger = logging.getLogger(__name__)

_MEASURED_SLICES: Final = 40
"""Slices of the volumes that `UnitCosts` was measured on."""
_MATRIX_UNITS_ITERATION_S: Final = 0.19
_ONLINE_COST: Final = 7 / 3
"""Cost of an iteration with unlabelled patches, relative to one without: seven passes through the
network instead of three, a backward pass counted twice."""
_FOLD_START_S: Final = 15.0
"""Time to import nnU-Net, read the data set and find the fastest arithmetic."""
_RELABELLED_BY_ONE: Final = 0.5
"""Share of the unlabelled volumes that trained: one fold relabels these, all folds the rest."""
_SUPPORTS_MEASURED: Final = 5
_PASS_S: Final = 0.04
"""Seconds that a pass of `measured_speedup` takes on the measured worker."""
_LONGEST_MEASUREMENT_S: Final = 10.0


@dataclass(frozen=True)
class UnitCosts:
    """Measured costs of one unit on one worker.

    The defaults are those of ``benchmarks/results/``: a worker with two processor cores, no GPU,
    volumes of about 256 x 256 x 40 voxels, the included networks. Training was measured on a CPU
    without matrix units; with them an iteration took 0.19 s. Disk space is not measured.

    Attributes
    ----------
    predict_s
        To segment a volume by one network, reading and writing included.
    label_s
        To label a volume by five supports; more supports take proportionally longer.
    encode_s
        To encode one support, on each worker.
    iteration_s
        Of training.
    predict_mb, label_mb
        Largest resident size of a process.
    volume_mb
        On disk, of a volume's pseudo label, its share of a round's data set, and its new mask.
    checkpoint_mb
        On disk, of a fold: the last and the latest state.
    """

    predict_s: float = 2.1
    label_s: float = 1.2
    encode_s: float = 0.35
    iteration_s: float = 0.6
    predict_mb: float = 633
    label_mb: float = 1039
    volume_mb: float = 30
    checkpoint_mb: float = 40


def measured_speedup() -> float:
    """Return the present speed of this process relative to the measured worker.

    It is measured by passes of a small network in at most ten seconds, so that other work on the
    machine counts.
    """
    import torch

    layers = [torch.nn.Conv3d(8, 8, 3, padding=1), torch.nn.InstanceNorm3d(8), torch.nn.LeakyReLU()]
    network, patch = torch.nn.Sequential(*layers, *layers), torch.ones(1, 8, 16, 32, 32)
    seconds: list[float] = []
    while len(seconds) < 6 and sum(seconds) < _LONGEST_MEASUREMENT_S:
        start = time.perf_counter()
        network(patch).sum().backward()
        seconds.append(time.perf_counter() - start)
    # The first pass includes set-up.
    return _PASS_S / statistics.median(seconds[1:] or seconds)


@dataclass(frozen=True)
class Stage:
    """Independent units of equal cost; ``times`` is 1 or the number of rounds."""

    name: str
    units: int
    unit_s: float
    times: int

    @property
    def work_s(self) -> float:
        """Seconds of one worker, each time."""
        return self.units * self.unit_s

    def wall_s(self, workers: int) -> float:
        """Return the seconds until the last unit is done, each time."""
        return math.ceil(self.units / workers) * self.unit_s


@dataclass(frozen=True)
class ClusterPlan:
    """An estimate for a whole retraining."""

    stages: tuple[Stage, ...]
    memory_mb: float
    disk_gb: float
    setup_s: float

    @property
    def worker_hours(self) -> float:
        """Total computing time in hours, without the set-up of workers."""
        return sum(stage.times * stage.work_s for stage in self.stages) / 3600

    def wall_hours(self, workers: int) -> float:
        """Return the hours from start to end."""
        waits = sum(stage.times * stage.wall_s(workers) for stage in self.stages)
        return (self.setup_s + waits) / 3600


def plan_cluster(
    labelled: int,
    unlabelled: int,
    *,
    folds: int = 3,
    epochs: int = 30,
    iterations_per_epoch: int = 50,
    rounds: int = 3,
    speedup: float = 1.0,
    costs: UnitCosts | None = None,
) -> ClusterPlan:
    """Estimate a retraining; ``speedup`` is the speed of a worker relative to the measured one."""
    costs = costs or UnitCosts()
    label_s = costs.label_s * max(labelled, 1) / _SUPPORTS_MEASURED
    by_folds = _RELABELLED_BY_ONE + (1 - _RELABELLED_BY_ONE) * folds
    stages = (
        ("calibrate by a support", labelled, label_s, 1),
        ("label a volume", unlabelled, label_s, 1),
        ("train a fold", folds, epochs * iterations_per_epoch * costs.iteration_s, rounds),
        ("score a fold", folds, labelled / folds * costs.predict_s, rounds),
        ("relabel a volume", unlabelled, by_folds * costs.predict_s, rounds),
    )
    volumes = labelled + unlabelled
    return ClusterPlan(
        stages=tuple(
            Stage(name, n, seconds / speedup, times) for name, n, seconds, times in stages
        ),
        memory_mb=max(costs.predict_mb, costs.label_mb),
        disk_gb=rounds * (volumes * costs.volume_mb + folds * costs.checkpoint_mb) / 1000,
        setup_s=labelled * costs.encode_s / speedup,
    )


def count_volumes(labelled: str, unlabelled: str) -> tuple[int, int]:
    """Count what two folders hold; each may also be a number.

    Raises NoInputError, InputError: a folder is empty or ambiguous.
    """
    found = () if labelled.isdecimal() else find_labelled_series(Path(labelled))
    n_labelled = int(labelled) if labelled.isdecimal() else len(found)
    if unlabelled.isdecimal():
        return n_labelled, int(unlabelled)
    return n_labelled, len(find_queries(Path(unlabelled), labelled=found, sequences=None).series)


def read_costs(path: Path) -> UnitCosts:
    """Read costs measured elsewhere; costs that the file leaves out keep their defaults.

    Raises UsageError: it cannot be read, or holds something else.
    """
    try:
        return read_record(path, UnitCosts)
    except InputError as error:
        known = sorted(item.name for item in fields(UnitCosts))
        raise UsageError(path, reason=error.reason, remedy=f"Write some of {known}") from error


def log_estimate(
    grids: Sequence[Grid],
    n_labelled: int,
    *,
    options: RetrainOptions,
    device: str,
    executor: Executor,
) -> None:
    """Log estimated times of labelling, calibration included, and of a round.

    They follow from costs measured on two CPU cores and the present speed of this machine. On a GPU
    and for other networks than the compact one, only the number of iterations is logged.
    """
    folds, iterations = options.folds, options.epochs * options.iterations_per_epoch
    if options.preset != CompactPreset() or device != "cpu":
        logger.info(
            "estimate: %d iterations a round, number of rounds at most %d",
            folds * iterations,
            options.rule.most_rounds,
        )
        return
    slices = float(np.mean([grid.shape_zyx[0] for grid in grids])) / _MEASURED_SLICES
    usual = UnitCosts()
    speedup = executor.call(measured_speedup)
    plan = plan_cluster(
        n_labelled,
        len(grids) - n_labelled,
        folds=folds,
        epochs=options.epochs,
        iterations_per_epoch=options.iterations_per_epoch,
        rounds=1,
        speedup=speedup,
        costs=replace(
            usual,
            label_s=usual.label_s * slices,
            encode_s=usual.encode_s * slices,
            predict_s=usual.predict_s * slices,
            iteration_s=_iteration_s() * (_ONLINE_COST if options.method == "online" else 1),
        ),
    )
    labelling = plan.setup_s + sum(stage.work_s for stage in plan.stages[:2])
    a_round = folds * _FOLD_START_S / speedup + sum(stage.work_s for stage in plan.stages[2:])
    logger.info(
        "estimate, at the present pace of the CPU: %s to label %d scan(s) and to calibrate on %d, "
        "then %s for each round; number of rounds at most %d",
        duration(labelling),
        len(grids) - n_labelled,
        n_labelled,
        duration(a_round),
        options.rule.most_rounds,
    )


def _iteration_s() -> float:
    """Return the measured seconds of an iteration on a CPU with matrix units, or without."""
    try:
        has_matrix_units = "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        has_matrix_units = False
    return _MATRIX_UNITS_ITERATION_S if has_matrix_units else UnitCosts().iteration_s
