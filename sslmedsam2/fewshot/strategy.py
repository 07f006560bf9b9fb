"""Interface of few-shot methods, with their input and output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import torch

from sslmedsam2.errors import first_line
from sslmedsam2.fewshot.checkpoint import LoadedSam2, load_sam2
from sslmedsam2.imaging.records import check_words
from sslmedsam2.imaging.volume import ArrayZYX, CanonicalVolume, Geometry, MaskZYX

logger = logging.getLogger(__name__)

StrategyName = Literal["retrieval", "random-insertion"]
Verdict = Literal["accept", "doubtful", "reject"]


@dataclass(frozen=True)
class Query:
    """A volume to segment; ``geometry`` is that of the file, before reorientation."""

    name: str
    case: str
    image: CanonicalVolume
    geometry: Geometry


@dataclass(frozen=True)
class Support(Query):
    """A labelled volume; ``mask_zyx`` is 0 or 1 on the canonical grid of ``image``."""

    mask_zyx: MaskZYX


@dataclass(frozen=True)
class SupportScore:
    """Contribution of one support to the result of a query.

    Attributes
    ----------
    weight
        Share of the support in the result; the shares sum to 1.
    similarity
        Correlation of the aligned slices' descriptors along the body.
    agreement
        Dice of its own mask with the result.
    reverse_dice
        Dice between its reference mask and its segmentation with the result as prompt; None if not
        computed.
    """

    name: str
    weight: float
    similarity: float
    agreement: float
    reverse_dice: float | None


@dataclass(frozen=True)
class Evidence:
    """Signs of the quality of a pseudo label, known without a reference mask; each about 0 to 1.

    Attributes
    ----------
    reverse_dice
        Mean over supports; 0 if not computed.
    confidence
        Mean probability inside the result.
    plausibility
        1 for a liver-sized single piece away from the volume's ends; less otherwise.
    contrast_distance
        Mean difference of intensity quantiles between the unchanged query and the supports. 0 for
        the same contrast, or if not measured.
    similarity
        Mean over supports of the correlation of changes along the body. 1 if not measured.
    """

    reverse_dice: float
    confidence: float
    plausibility: float
    contrast_distance: float = 0.0
    similarity: float = 1.0


@dataclass(frozen=True)
class FewShotResult:
    """A pseudo label on the query's canonical grid.

    ``probability_zyx`` is float32 in [0, 1]; ``uncertainty_zyx`` the binary entropy of the
    probability in bits, 0 to 1; ``mask_zyx`` the largest piece of probability over a half.
    ``warnings`` begin with a stable name and a colon.
    """

    probability_zyx: ArrayZYX
    uncertainty_zyx: ArrayZYX
    mask_zyx: MaskZYX
    evidence: Evidence
    supports: tuple[SupportScore, ...]
    encoder_calls: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Strategy(Protocol):
    """A few-shot method, constructed once for a set of supports and called for each query.

    Volumes and masks are canonical ``[z, y, x]`` arrays. The result is a probability on the grid
    of the query. A strategy reads no files, keeps no state of queries and trains no network.
    """

    def segment(self, query: Query, *, leave_out_case: str | None = None) -> FewShotResult:
        """Segment one query, without the supports of ``leave_out_case``.

        The result depends only on the query and the supports, not on earlier queries. On a support
        that is left out it depends in one way: the correction learns from the other supports, each
        of which all its fellows have segmented.

        Raises
        ------
        InputError
            The query is empty: all voxels have the same value.
        """
        ...


@dataclass(frozen=True)
class FewShotSettings:
    """Settings of the few-shot method.

    Attributes
    ----------
    strategy
        ``retrieval`` is the method of this project, ``random-insertion`` the published one.
    harmonise
        Match the contrasts of query and supports if they differ.
    refine
        Correct the result by the intensities of the query.
    correct
        Correct the result by what the supports, segmented by one another, show of the errors. It
        takes two labelled patients.
    reverse
        Segment the supports with the result as prompt, as evidence of its quality.
    seed
        Of the positions of ``random-insertion``, combined with the name of each query.
    memory_limit_mb
        Encoded supports beyond this size are stored on disk. None: 2 GiB of host memory and, on a
        GPU, half of its free memory.
    """

    strategy: StrategyName = "retrieval"
    harmonise: bool = True
    refine: bool = True
    correct: bool = True
    reverse: bool = True
    seed: int = 0
    memory_limit_mb: int | None = None

    def __post_init__(self) -> None:
        """Check the words; raises UsageError."""
        check_words(self)


def build_strategy(
    settings: FewShotSettings, sam2: LoadedSam2, supports: Sequence[Support], *, scratch_dir: Path
) -> Strategy:
    """Encode the supports and return the strategy that the settings name.

    If a GPU fails, now or later, the strategy is built again on the CPU and continues there.
    ``scratch_dir`` is for supports that do not fit into memory; the caller removes it.
    """
    from sslmedsam2.fewshot.random_insertion import RandomInsertion
    from sslmedsam2.fewshot.retrieval import Retrieval

    kind = Retrieval if settings.strategy == "retrieval" else RandomInsertion

    def build(sam2: LoadedSam2, folder: Path) -> Strategy:
        return kind(settings, sam2, supports, scratch_dir=folder)

    if sam2.device.type == "cpu":
        return build(sam2, scratch_dir)
    return _WithCpuInReserve(build, sam2, scratch_dir)


class _WithCpuInReserve:
    """A strategy on a GPU, and on the CPU once the GPU has failed."""

    def __init__(
        self, build: Callable[[LoadedSam2, Path], Strategy], sam2: LoadedSam2, scratch_dir: Path
    ) -> None:
        self._build = build
        self._sam2_path = sam2.path
        self._scratch_dir = scratch_dir
        self._fault: str | None = None
        try:
            self._strategy = build(sam2, scratch_dir)
        except RuntimeError as error:
            self._leave_gpu(error)

    def segment(self, query: Query, *, leave_out_case: str | None = None) -> FewShotResult:
        """See :class:`Strategy`."""
        if self._fault is None:
            try:
                return self._strategy.segment(query, leave_out_case=leave_out_case)
            except RuntimeError as error:
                self._leave_gpu(error)
        result = self._strategy.segment(query, leave_out_case=leave_out_case)
        note = f"gpu_failed: {self._fault}; segmented on the CPU"
        return replace(result, warnings=(*result.warnings, note))

    def _leave_gpu(self, error: RuntimeError) -> None:
        if self._sam2_path is None:
            raise error
        self._fault = first_line(error)
        logger.warning("the GPU failed (%s): SAM2 continues on the CPU", self._fault)
        sam2 = load_sam2(self._sam2_path, device=torch.device("cpu"))
        # A separate folder: files written for the GPU may be incomplete.
        self._strategy = self._build(sam2, self._scratch_dir / "cpu")
