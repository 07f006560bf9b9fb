"""A round's folds as units of a job, whether they are trained or scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sslmedsam2.inference.device import choose_device
from sslmedsam2.pipelines.retraining.options import RetrainOptions
from sslmedsam2.pipelines.retraining.work_dir import RoundDir
from sslmedsam2.refine.dataset import TrainingImage
from sslmedsam2.refine.training import preprocessed_dir
from sslmedsam2.running.job import Claim

Result = TypeVar("Result")


@dataclass(frozen=True)
class FoldUnit:
    """A fold, and the images with expert masks that it never sees."""

    fold: int
    held_out: tuple[TrainingImage, ...] = ()


FoldWork = Callable[[RoundDir, RetrainOptions, FoldUnit], Result]


@dataclass(frozen=True)
class FoldJob(Generic[Result]):
    """Do ``work``, a function of a module, to each fold of a round."""

    step: RoundDir
    options: RetrainOptions
    work: FoldWork[Result]
    claim: Claim = "whole"

    @property
    def wants_gpu(self) -> bool:
        """Whether a GPU is used where there is one."""
        return self.options.device != "cpu"

    @property
    def shared_dir(self) -> Path:
        """The round's part of the work directory."""
        return self.step.path

    def name_of(self, unit: FoldUnit) -> str:
        """Return the fold's name."""
        return f"fold {unit.fold} of round {self.step.number}"

    def files_of(self, unit: FoldUnit) -> Sequence[Path]:
        """Return the data set, and the images that are read besides."""
        return (preprocessed_dir(self.step.path), *(image.image_path for image in unit.held_out))

    def set_up(self) -> _FoldStages[Result]:
        """Choose the device; raises UsageError."""
        return _FoldStages(self)


class _FoldStages(Generic[Result]):
    """All of a fold's work is the network's; it reads and writes as it goes."""

    def __init__(self, job: FoldJob[Result]) -> None:
        self._job = job
        self.about = choose_device(job.options.device)

    def load(self, unit: FoldUnit) -> FoldUnit:
        return unit

    def compute(self, unit: FoldUnit) -> Result:
        return self._job.work(self._job.step, self._job.options, unit)

    def finish(self, result: Result) -> Result:
        return result

    def close(self) -> None:
        """Nothing is held."""
