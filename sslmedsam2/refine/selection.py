"""Which pseudo labels a round trains on, and which of their voxels.

A curriculum, as in ST++ (Yang et al. 2022, arXiv:2106.05095): what the few-shot branch is sure of
comes first; what it doubts waits until networks that never saw it agree on it; what it rejects
never trains. Voxels that are uncertain get nnU-Net's ignore label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from sslmedsam2.refine.labels import BACKGROUND, IGNORE, LIVER, UNSURE_LIVER

Verdict = Literal["accept", "doubtful", "reject"]


@dataclass(frozen=True)
class Candidate:
    """A pseudo label that asks to be trained on.

    Attributes
    ----------
    verdict
        Of the few-shot branch; None if it could not label the image.
    agreement
        Mean Dice between the networks of the last round, none of which had trained on this image;
        None if there was no such round, or the image had been trained on.
    trained_before
        Whether the last round trained on it.
    has_liver
        Whether its newest mask holds any.
    mended
        Whether somebody has mended the few-shot branch's mask by hand.
    """

    name: str
    verdict: Verdict | None
    agreement: float | None = None
    trained_before: bool = False
    has_liver: bool = True
    mended: bool = False


@dataclass(frozen=True)
class Choice:
    """Whether a candidate trains, and why."""

    name: str
    trains: bool
    reason: str


def choose(candidates: Sequence[Candidate], *, agreement_needed: float) -> tuple[Choice, ...]:
    """Decide for each candidate, in the same order."""
    return tuple(
        Choice(candidate.name, *_decide(candidate, agreement_needed)) for candidate in candidates
    )


def none_of(candidates: Sequence[Candidate]) -> tuple[Choice, ...]:
    """Choose none, for a round that learns from expert masks alone."""
    reason = "the first round learns from expert masks alone"
    return tuple(Choice(candidate.name, False, reason) for candidate in candidates)


def _decide(candidate: Candidate, agreement_needed: float) -> tuple[bool, str]:
    if candidate.verdict is None:
        return False, "it could not be labelled"
    if candidate.verdict == "reject" and not candidate.mended:
        return False, "rejected by the few-shot branch"
    if not candidate.has_liver:
        return False, "its mask is empty"
    if candidate.mended:
        return True, "mended by hand"
    if candidate.verdict == "accept":
        return True, "accepted by the few-shot branch"
    if candidate.trained_before:
        return True, "doubtful at first, taken in by an earlier round"
    if candidate.agreement is None:
        return False, "doubtful: waits for networks to agree on it"
    if candidate.agreement >= agreement_needed:
        return True, f"doubtful, but networks agree on it (Dice {candidate.agreement:.3f})"
    return False, f"doubtful, and networks do not agree (Dice {candidate.agreement:.3f})"


def training_labels(
    mask_zyx: npt.NDArray[np.uint8],
    uncertainty_zyx: npt.NDArray[np.float32],
    *,
    ignore_above: float,
) -> npt.NDArray[np.uint8]:
    """Return labels ``[z, y, x]`` to train on: the mask, with uncertain voxels to be ignored.

    ``uncertainty_zyx`` is the binary entropy of the foreground probability in bits, 0 to 1.
    """
    inside, unsure = mask_zyx > 0, uncertainty_zyx > ignore_above
    labels = np.where(inside, np.uint8(LIVER), np.uint8(BACKGROUND))
    labels[unsure & inside] = UNSURE_LIVER
    labels[unsure & ~inside] = IGNORE
    return labels


IGNORE_ABOVE: Final = 0.95
"""Bits. Of what it hides near the liver 43 % is wrong, against 15 % of all voxels there; a lower
threshold hides more wrong voxels but mostly right ones (``benchmarks/ignore_threshold.py``)."""
