"""Decode compressed pixels in a process of its own, so that a crash of a decoder ends no run.

JPEG, JPEG-LS, JPEG 2000 and RLE are decoded by libraries in C (Pillow, CharLS, GDCM) or by pydicom,
none of which is safe with every hostile file. The process is started with the first compressed
image, serves all others, and is replaced when it dies or takes too long. Where the system has such
limits, its memory is limited and it can write no file. It answers with numbers, not with objects.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.stored import MAX_VOXELS

SECONDS_FOR_A_FILE = 120.0
"""A decoder that takes longer is stopped."""

MEMORY_BYTES = 4 * 2**30
"""Address space of the process that decodes."""

_LONGEST_MESSAGE = 2**16
_DTYPE = re.compile(r"[<>|][iuf][1248]")


class DecodingError(Exception):
    """The decoder refused a file, ended or took too long; other files can still be decoded."""


@dataclass(frozen=True)
class DecodedPixels:
    """The pixels of a file.

    Attributes
    ----------
    frames
        ``[frame, row, column]``.
    is_rescaled
        Whether RescaleSlope and RescaleIntercept are applied already.
    """

    frames: npt.NDArray[Any]
    is_rescaled: bool


class _Decoder:
    """The process, and the lock of the threads that use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, path: Path) -> DecodedPixels:
        """Decode the compressed pixels of a DICOM file; raises `DecodingError`."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = _start()
            process = self._process
            timer = threading.Timer(SECONDS_FOR_A_FILE, process.kill)
            timer.start()
            try:
                return _ask(process, path)
            except (OSError, ValueError, EOFError, TypeError, KeyError) as error:
                self.stop()
                raise DecodingError("the decoder failed or took too long") from error
            finally:
                timer.cancel()

    def stop(self) -> None:
        """End the process; the next file starts another one."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError, ValueError):
                self._process.communicate()
            self._process = None


_DECODER = _Decoder()
atexit.register(_DECODER.stop)
decode = _DECODER.decode


def _start() -> subprocess.Popen[bytes]:
    package_root = str(Path(__file__).parents[2])
    search = filter(None, [package_root, os.environ.get("PYTHONPATH")])
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search), "OMP_NUM_THREADS": "1"},
        # Ctrl-C is for this process only. The other ends when its input is closed.
        start_new_session=True,
    )


def _ask(process: subprocess.Popen[bytes], path: Path) -> DecodedPixels:
    stream = cast(BinaryIO, process.stdout)
    _send(cast(BinaryIO, process.stdin), str(path.absolute()))
    answer = _receive(stream)
    if "error" in answer:
        raise DecodingError(str(answer["error"]))
    shape = tuple(int(length) for length in answer["shape"])
    is_sound = len(shape) == 3 and min(shape) > 0 and math.prod(shape) <= MAX_VOXELS
    if not is_sound or not _DTYPE.fullmatch(answer["dtype"]):
        raise ValueError(answer)
    frames = np.empty(shape, np.dtype(answer["dtype"]))
    if cast(Any, stream).readinto(frames.reshape(-1).view(np.uint8).data) != frames.nbytes:
        raise EOFError
    return DecodedPixels(frames, bool(answer["is_rescaled"]))


def _send(stream: BinaryIO, message: object) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _receive(stream: BinaryIO) -> Any:
    line = stream.readline(_LONGEST_MESSAGE)
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)


# What follows runs in the other process.


def _serve() -> None:
    """Answer until the input ends."""
    import pydicom

    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    _limit_resources()
    with contextlib.suppress(EOFError):
        while True:
            path = Path(_receive(sys.stdin.buffer))
            try:
                pixels = _decoded(path)
            except Exception as error:
                _send(answers, {"error": type(error).__name__})
                continue
            frames = np.ascontiguousarray(pixels.frames)
            shape, dtype = frames.shape, frames.dtype.str
            _send(answers, {"shape": shape, "dtype": dtype, "is_rescaled": pixels.is_rescaled})
            answers.write(frames.data)
            answers.flush()


def _limit_resources() -> None:
    # Not on Windows.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _decoded(path: Path) -> DecodedPixels:
    from pydicom.uid import RLELossless

    from sslmedsam2.dicom.headers import open_dataset

    dataset = open_dataset(path)
    try:
        stored = dataset.pixel_array
    except (NotImplementedError, RuntimeError):
        # No plug-in for this compression. ITK brings its own decoders, and rescales by itself. It
        # takes damaged RLE for zeros, and one slice only.
        is_multi = (dataset.get("NumberOfFrames") or 1) > 1
        if (
            is_multi
            or "PerFrameFunctionalGroupsSequence" in dataset
            or dataset.file_meta.TransferSyntaxUID == RLELossless
        ):
            raise
        import SimpleITK as sitk  # noqa: N813

        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
        return DecodedPixels(sitk.GetArrayFromImage(image).astype(np.float32), is_rescaled=True)
    return DecodedPixels(stored[None] if stored.ndim == 2 else stored, is_rescaled=False)


if __name__ == "__main__":
    _serve()
