"""Curves of a training for TensorBoard."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

FOLDER_NAME = "tensorboard"


class Curves:
    """Writes the scalars of one training for TensorBoard, one event file for each process.

    A training continues without curves if they cannot be written. So the files are written here and
    not by TensorBoard's own writer, whose thread prints a traceback. Scalars that an earlier
    process wrote from ``first_epoch`` on are discarded.
    """

    def __init__(self, folder: Path, *, first_epoch: int) -> None:
        self._file: IO[bytes] | None = None
        try:
            from tensorboard.compat.proto.event_pb2 import SessionLog
        except ImportError:
            logger.debug("TensorBoard is not installed: no curves for it")
            return
        # TensorBoard orders the files of a folder by their names.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        with self._or_no_curves():
            (folder / FOLDER_NAME).mkdir(parents=True, exist_ok=True)
            self._file = (folder / FOLDER_NAME / name).open("xb")
            self._write(file_version="brain.Event:2")
            self._write(step=first_epoch, session_log=SessionLog(status=SessionLog.START))

    def add(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of one epoch to the disk."""
        if self._file is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()
        ]
        with self._or_no_curves():
            self._write(step=epoch, summary=Summary(value=values))

    def close(self) -> None:
        """Finish the event file."""
        if self._file is not None:
            with self._or_no_curves():
                self._file.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self._file is not None
        event = Event(wall_time=time.time(), **fields)
        RecordWriter(self._file).write(event.SerializeToString())
        self._file.flush()

    @contextmanager
    def _or_no_curves(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("no more curves for TensorBoard: %s", error)
            self._file = None
