"""Bringing a query to the supports' contrast, where the two differ.

The supports' slices are encoded once for all queries, so it is the query that is repainted: to the
supports' distribution of intensities, as it is and inverted. Which of them is right is not decided
here: the caller asks on which one the supports agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from sslmedsam2.fewshot.slices import AIR_BELOW

Pictures = npt.NDArray[np.float32]
Quantiles = npt.NDArray[np.float64]

AS_IS: Final = "as is"
MATCHED: Final = "matched"
INVERTED: Final = "inverted"

_LEVELS: Final = np.linspace(0, 1, 65)
_SAME_CONTRAST: Final = 0.06
"""Mean difference of quantiles up to which two volumes count as one contrast: between two T2
volumes of one scanner it is 0.02 to 0.05, to the same volume inverted 0.2 and more."""


def body_quantiles(pictures: Pictures) -> Quantiles:
    """Return 65 evenly spaced quantiles of the pixels that are not air; zeros if all are air."""
    inside = pictures[pictures > AIR_BELOW]
    return np.quantile(inside, _LEVELS) if inside.size else np.zeros(len(_LEVELS))


def contrast_distance(one: Quantiles, other: Quantiles) -> float:
    """Return the mean difference of quantiles: the first Wasserstein distance."""
    return float(np.abs(one - other).mean())


def appearances(pictures: Pictures, reference: Quantiles) -> Mapping[str, Pictures]:
    """Return the query's pictures in the contrasts worth trying, by name.

    A query of the supports' own contrast is left as it is.
    """
    own = body_quantiles(pictures)
    if contrast_distance(own, reference) <= _SAME_CONTRAST:
        return {AS_IS: pictures}
    inverted = np.where(pictures > AIR_BELOW, 1 - pictures, pictures)
    return {
        AS_IS: pictures,
        MATCHED: _matched(pictures, reference),
        INVERTED: _matched(inverted, reference),
    }


def _matched(pictures: Pictures, reference: Quantiles) -> Pictures:
    """Send the body's intensities where the reference has the same share of them."""
    own = body_quantiles(pictures)
    inside = pictures > AIR_BELOW
    return np.where(inside, np.interp(pictures, own, reference), pictures).astype(np.float32)
