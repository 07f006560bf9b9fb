"""What no strategy can work with: a clear word instead of a failure further on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import InputError
from sslmedsam2.fewshot.slices import SliceStack


def check_pictures(stack: SliceStack, *, name: str) -> None:
    """Refuse a query that shows nothing (``empty_image``)."""
    if not stack.pictures.any():
        raise InputError(
            name,
            kind="empty_image",
            reason="all its voxels have the same value",
            remedy="Check the export of this volume",
        )


def check_masks(masks: npt.NDArray[np.float32], *, name: str) -> None:
    """Refuse a support without a pixel of mask (``empty_mask``)."""
    if not masks.any():
        raise InputError(
            name,
            kind="empty_mask",
            reason="its mask holds no liver, or less than a pixel of the network's pictures",
            remedy="Remove the case from the labelled folder, or mend its mask",
        )
