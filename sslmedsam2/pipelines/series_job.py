"""``predict`` as a job: its units are series, its set-up loads the networks."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sslmedsam2.errors import ModelError
from sslmedsam2.inference.model_folder import read_model_spec
from sslmedsam2.inference.segmenter import CanonicalSegmenter, EngineOptions
from sslmedsam2.pipelines.series_work import Loaded, Segmented, SeriesTarget, finish, load, segment
from sslmedsam2.reporting.run_report import SeriesResult
from sslmedsam2.running.job import Claim
from sslmedsam2.weights.locate import ModelLocation, model_for_sequence
from sslmedsam2.weights.manifest import ANY_SEQUENCE, hash_model


@dataclass(frozen=True)
class EngineAbout:
    """What the networks run on."""

    device: str
    backend: str


@dataclass(frozen=True)
class SeriesJob:
    """Segment series and write what comes of it.

    Attributes
    ----------
    sequences
        Those that will come, each of which has a model.
    shared_dir
        The output folder.
    """

    models: tuple[ModelLocation, ...]
    engine: EngineOptions
    sequences: frozenset[str | None]
    shared_dir: Path
    claim: Claim = "share"
    _process: int = field(default_factory=os.getpid)

    @property
    def wants_gpu(self) -> bool:
        """Whether a GPU is used where there is one."""
        return self.engine.device != "cpu"

    def name_of(self, target: SeriesTarget) -> str:
        """Return the series as the report names it."""
        return target.input_name

    def files_of(self, target: SeriesTarget) -> Sequence[Path]:
        """Return the files of a series."""
        if target.dicom is None:
            return (target.series.path,)
        return tuple(dict.fromkeys(frame.path for frame in target.dicom.volume.frames))

    def set_up(self) -> SeriesStages:
        """Load the networks.

        Raises
        ------
        ModelError
            One cannot be loaded, or is another one here than where the job was made.
        UsageError
            The device is not there.
        """
        if os.getpid() != self._process:
            for model in self.models:
                _check_same(model)
        return SeriesStages(self.models, self.engine, sequences=self.sequences)


class SeriesStages:
    """One loaded segmenter for each model that is needed, and what it does to a series.

    All are loaded before anything is written, so that a model that cannot be loaded costs no
    half-finished run.
    """

    def __init__(
        self,
        models: Sequence[ModelLocation],
        options: EngineOptions,
        *,
        sequences: Collection[str | None],
    ) -> None:
        """Load what serves the sequences."""
        chosen = {name: model_for_sequence(models, name or ANY_SEQUENCE) for name in sequences}
        loaded: dict[Path, CanonicalSegmenter] = {}
        for model in chosen.values() or models[:1]:
            if model.path not in loaded:
                spec = read_model_spec(model.path, folds=model.folds)
                loaded[model.path] = CanonicalSegmenter(spec, options)
        self._by_sequence = {name: loaded[model.path] for name, model in chosen.items()}
        first = next(iter(loaded.values()))
        self.about = EngineAbout(first.device, first.backend)

    def load(self, target: SeriesTarget) -> Loaded:
        """Read a series."""
        return load(target)

    def compute(self, loaded: Loaded) -> Segmented:
        """Run the network that serves the series."""
        return segment(loaded, self._by_sequence[loaded.target.series.sequence])

    def finish(self, work: Segmented) -> SeriesResult:
        """Write what comes of it."""
        return finish(work)

    def close(self) -> None:
        """Let go of the networks."""
        self._by_sequence.clear()


def _check_same(model: ModelLocation) -> None:
    if hash_model(model.path, model.folds) != model.files:
        raise ModelError(
            model.path,
            reason="it is another model here than where the run was started",
            remedy="Put the model into a folder that all machines share",
        )
