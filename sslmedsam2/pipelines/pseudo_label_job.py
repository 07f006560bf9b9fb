"""``pseudo-label`` as a job: its units are volumes, its set-up loads SAM2.

Supports and queries are both segmented here; a support as if it had no mask, which calibrates the
estimates. The strategy, that is the encoded supports, is built when the first unit asks for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from sslmedsam2.errors import ModelError
from sslmedsam2.fewshot.build import build_strategy
from sslmedsam2.fewshot.checkpoint import Sam2File, load_sam2
from sslmedsam2.fewshot.reliability import Calibration
from sslmedsam2.fewshot.settings import FewShotSettings
from sslmedsam2.fewshot.strategy import Strategy, Support
from sslmedsam2.imaging.atomic import output_error
from sslmedsam2.inference.device import Device, choose_device
from sslmedsam2.pipelines.pseudo_label_calibration import LeftOut, leave_out
from sslmedsam2.pipelines.pseudo_label_inputs import SupportFiles
from sslmedsam2.pipelines.pseudo_label_records import Making, PseudoLabelRecord
from sslmedsam2.pipelines.pseudo_label_work import (
    Labeller,
    LoadedQuery,
    QueryTarget,
    SegmentedQuery,
    load,
)
from sslmedsam2.running.job import Claim


@dataclass(frozen=True)
class EncodeUnit:
    """Nothing but building the strategy."""


@dataclass(frozen=True)
class SupportUnit:
    """A support, by its place among them, to be labelled by the others."""

    index: int


@dataclass(frozen=True)
class QueryUnit:
    """A query, with the calibration that its estimate rests on."""

    target: QueryTarget
    calibration: Calibration


LabelUnit = EncodeUnit | SupportUnit | QueryUnit
LabelResult = LeftOut | PseudoLabelRecord | None
"""Of an `EncodeUnit`, and of a support that could not be labelled, None."""


@dataclass(frozen=True)
class LabelJob:
    """Label volumes by a SAM2 and a few supports.

    Attributes
    ----------
    shared_dir
        The output folder.
    """

    settings: FewShotSettings
    sam2: Sam2File
    supports: SupportFiles
    making: Making
    device: Device
    shared_dir: Path
    claim: Claim = "share"

    @property
    def wants_gpu(self) -> bool:
        """Whether a GPU is used where there is one."""
        return self.device != "cpu"

    def name_of(self, unit: LabelUnit) -> str:
        """Return what messages call a volume."""
        if isinstance(unit, QueryUnit):
            return unit.target.name
        return "the supports" if isinstance(unit, EncodeUnit) else f"support {unit.index + 1}"

    def files_of(self, unit: LabelUnit) -> Sequence[Path]:
        """Return the volume's files, and those of all supports."""
        own = (unit.target.series.path,) if isinstance(unit, QueryUnit) else ()
        return (*own, *self.supports.paths)

    def set_up(self) -> LabelStages:
        """Load SAM2.

        Raises
        ------
        ModelError
            It is damaged, or another one here than where the run was started.
        UsageError
            The device is not there.
        OutputError
            The output folder cannot be written.
        """
        return LabelStages(self)


class LabelStages:
    """A loaded SAM2, and the strategy once it is needed."""

    def __init__(self, job: LabelJob) -> None:
        """Load SAM2."""
        self._job = job
        self.about = choose_device(job.device)
        self._sam2 = load_sam2(job.sam2.path, device=torch.device(self.about))
        if self._sam2.sha256 != job.sam2.sha256:
            raise ModelError(
                job.sam2.path,
                reason="it is another SAM2 here than where the run was started",
                remedy="Put the checkpoint into a folder that all machines share",
            )
        self._built: Strategy | None = None
        self._scratch = ExitStack()

    def load(self, unit: LabelUnit) -> tuple[LabelUnit, Support | LoadedQuery | None]:
        """Read the volume."""
        if isinstance(unit, QueryUnit):
            return unit, load(unit.target)
        return unit, self._job.supports[unit.index] if isinstance(unit, SupportUnit) else None

    def compute(
        self, loaded: tuple[LabelUnit, Support | LoadedQuery | None]
    ) -> tuple[LabelUnit, LeftOut | SegmentedQuery | None]:
        """Run SAM2."""
        unit, volume = loaded
        strategy = self._strategy()
        if isinstance(unit, QueryUnit) and isinstance(volume, LoadedQuery):
            return unit, self._labeller(unit).segment(volume)
        return unit, leave_out(strategy, volume) if isinstance(volume, Support) else None

    def finish(self, computed: tuple[LabelUnit, LeftOut | SegmentedQuery | None]) -> LabelResult:
        """Write what comes of a query."""
        unit, found = computed
        if isinstance(unit, QueryUnit) and isinstance(found, SegmentedQuery):
            return self._labeller(unit).finish(found)
        assert not isinstance(found, SegmentedQuery)
        return found

    def close(self) -> None:
        """Let go of the encoded supports and what they took on the disk."""
        self._built = None
        self._scratch.close()

    def _strategy(self) -> Strategy:
        if self._built is None:
            job = self._job
            scratch_dir = self._scratch_folder()
            self._built = build_strategy(
                job.settings, self._sam2, job.supports, scratch_dir=scratch_dir
            )
        return self._built

    def _labeller(self, unit: QueryUnit) -> Labeller:
        job = self._job
        return Labeller(
            self._strategy(),
            unit.calibration,
            supports=job.supports,
            making=job.making,
            device=self.about,
        )

    def _scratch_folder(self) -> Path:
        """Make a folder on the output's disk that is gone in the end."""
        output_dir = self._job.shared_dir
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(
                dir=output_dir, prefix=".scratch-", ignore_cleanup_errors=True
            )
        except OSError as error:
            raise output_error(output_dir, error) from error
        return Path(self._scratch.enter_context(folder))
