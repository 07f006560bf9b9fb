"""Settings of the few-shot strategies: what is written beside the results."""

from __future__ import annotations

from dataclasses import dataclass

from sslmedsam2.fewshot.strategy import StrategyName


@dataclass(frozen=True)
class FewShotSettings:
    """How pseudo labels are made.

    Attributes
    ----------
    strategy
        ``retrieval`` is this project's; ``random-insertion`` the published procedure.
    harmonise
        Bring supports to the query's contrast where it differs.
    refine
        Correct the result by the query's own intensities.
    reverse
        Let the result segment the supports back, to weigh them and to judge the result.
    seed
        Of the positions of ``random-insertion``; mixed with each query's name.
    memory_limit_mb
        How much of the encoded supports is kept in memory; the rest waits on disk.
    """

    strategy: StrategyName = "retrieval"
    harmonise: bool = True
    refine: bool = True
    reverse: bool = True
    seed: int = 0
    memory_limit_mb: int = 2048
