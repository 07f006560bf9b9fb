"""The interface of few-shot methods, and their input and output data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from sslmedsam2.fewshot.checkpoint import LoadedSam2
from sslmedsam2.imaging.volume import ArrayZYX, CanonicalVolume, Geometry, MaskZYX

StrategyName = Literal["retrieval", "random-insertion"]
Verdict = Literal["accept", "doubtful", "reject"]


@dataclass(frozen=True)
class Support:
    """A labelled volume.

    ``mask_zyx`` is 0 or 1 on the canonical grid of ``image``; ``geometry`` is the file's own and
    places it in the patient.
    """

    name: str
    case: str
    image: CanonicalVolume
    geometry: Geometry
    mask_zyx: MaskZYX


@dataclass(frozen=True)
class Query:
    """A volume to be segmented; ``geometry`` is the file's own."""

    name: str
    case: str
    image: CanonicalVolume
    geometry: Geometry


@dataclass(frozen=True)
class SupportScore:
    """How one support relates to a query and its result.

    Attributes
    ----------
    weight
        Share of the support in the result; the shares sum to 1.
    similarity
        Mean cosine of the aligned slices' descriptors.
    agreement
        Dice of its own mask with the result.
    reverse_dice
        Dice of its reference mask with what the result, used as a prompt, finds in it; None where
        that was not tried.
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
        Mean over supports; 0 where it was not tried.
    agreement
        Mean Dice of single supports' masks with the result.
    object_score
        Mean probability that the object is there, over slices of the result.
    confidence
        Mean probability inside the result.
    plausibility
        1 for a liver-sized single piece away from the volume's ends; less otherwise.
    contrast_distance
        Between the query as it came and the supports: the mean difference of their intensity
        quantiles. 0 for the same contrast; also where it was not measured.
    """

    reverse_dice: float
    agreement: float
    object_score: float
    confidence: float
    plausibility: float
    contrast_distance: float = 0.0


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
    """A few-shot method: built once for a set of supports, then called for each query.

    Volumes and masks are canonical ``[z, y, x]`` arrays. The result is a probability on the grid
    of the query. A strategy reads no files, keeps no state between queries and trains nothing.
    """

    def segment(self, query: Query, *, leave_out_case: str | None = None) -> FewShotResult:
        """Segment one query, as if the supports of one case were not there.

        The result depends on the query and the supports alone, never on earlier queries.

        Raises
        ------
        InputError
            The query holds nothing to segment.
        """
        ...


@dataclass(frozen=True)
class FewShotSettings:
    """How pseudo labels are made.

    Attributes
    ----------
    strategy
        ``retrieval`` is this project's method; ``random-insertion`` the published one.
    harmonise
        Match the contrasts of query and supports where they differ.
    refine
        Correct the result by the query's own intensities.
    reverse
        Segment the supports with the result as prompt, as evidence of its quality.
    seed
        Of the positions of ``random-insertion``; mixed with each query's name.
    memory_limit_mb
        Encoded supports beyond this size are kept on disk.
    """

    strategy: StrategyName = "retrieval"
    harmonise: bool = True
    refine: bool = True
    reverse: bool = True
    seed: int = 0
    memory_limit_mb: int = 2048


def build_strategy(
    settings: FewShotSettings, sam2: LoadedSam2, supports: Sequence[Support], *, scratch_dir: Path
) -> Strategy:
    """Encode the supports and return the strategy that the settings name.

    ``scratch_dir`` takes what does not fit into memory; the caller removes it.
    """
    from sslmedsam2.fewshot.random_insertion import RandomInsertion
    from sslmedsam2.fewshot.retrieval import Retrieval

    kind = Retrieval if settings.strategy == "retrieval" else RandomInsertion
    return kind(settings, sam2, supports, scratch_dir=scratch_dir)
