"""Which slice of a support shows what a slice of the query shows.

Slices follow each other in the body, so one offset along the body's axis is sought for a pair of
volumes rather than a best match for each slice: single slices of two abdomens are easily mistaken,
whole stacks are not.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sslmedsam2.fewshot.encoded import EncodedVolume

_LEAST_OVERLAP: Final = 0.6
"""Share of the shorter stack that must have a partner."""


def slice_similarity(
    query: EncodedVolume, support: EncodedVolume, *, centre: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the cosine of descriptors, ``(n_query, n_support)``, seen from ``centre``."""
    return _unit(query.descriptors - centre) @ _unit(support.descriptors - centre).T


def align(
    query: EncodedVolume, support: EncodedVolume, *, centre: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], float]:
    """Return the partner of each query slice, ``(n_query,)``, and the mean similarity of partners.

    Slices beyond the support's ends get its end slices, which show what lies there best.
    """
    similarity = slice_similarity(query, support, centre=centre)
    step_mm = min(_step(query), _step(support)) / 2
    reach_mm = max(query.z_mm[-1], support.z_mm[-1])
    least = _LEAST_OVERLAP * min(query.n_slices, support.n_slices)
    best_score, best_partners = -np.inf, np.zeros(query.n_slices, np.int64)
    for offset_mm in np.arange(-reach_mm, reach_mm + step_mm, step_mm):
        partners = np.rint((query.z_mm + offset_mm) / _step(support)).astype(np.int64)
        inside = (partners >= 0) & (partners < support.n_slices)
        if inside.sum() < least:
            continue
        score = float(similarity[np.flatnonzero(inside), partners[inside]].mean())
        if score > best_score:
            best_score, best_partners = score, partners
    return best_partners.clip(0, support.n_slices - 1), best_score


def _step(volume: EncodedVolume) -> float:
    return float(volume.z_mm[1] - volume.z_mm[0]) if volume.n_slices > 1 else 1.0


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
