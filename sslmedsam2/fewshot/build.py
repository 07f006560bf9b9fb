"""From settings to a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sslmedsam2.fewshot.checkpoint import LoadedSam2
from sslmedsam2.fewshot.settings import FewShotSettings
from sslmedsam2.fewshot.strategy import Strategy, Support


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
