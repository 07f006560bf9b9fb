"""Loss, pseudo Dice and learning rate for TensorBoard, where that is installed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FOLDER_NAME = "tensorboard"


class Curves:
    """Scalars of one training, an event file a process."""

    def __init__(self, folder: Path, *, first_epoch: int) -> None:
        """Begin at an epoch; what an earlier process wrote from there on no longer counts."""
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.debug("TensorBoard is not installed: no curves for it")
            return
        self._writer = SummaryWriter(str(folder / FOLDER_NAME), purge_step=first_epoch)

    def add(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of one epoch to the disk."""
        if self._writer is None:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), epoch)
        self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        if self._writer is not None:
            self._writer.close()
