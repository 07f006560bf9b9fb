"""Read what ``torch.save`` wrote as numpy arrays: without torch, and running no code of the file.

The file is a zip archive of one pickle and, uncompressed, the bytes of each storage that tensors
look into. The pickle may name only the builders below; they make arrays, numbers and containers.
"""

from __future__ import annotations

import mmap
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_BFLOAT16: Final = "BFloat16Storage"
_DTYPES: Final = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    _BFLOAT16: np.uint16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LOCAL_HEADER_BYTES: Final = 30
_LENGTHS_AT: Final = 26
"""Where a zip entry's own header holds the lengths of the name and the extra field behind it."""


def load_archive(buffer: mmap.mmap) -> Any:
    """Return the object that was saved; each tensor is an array that looks into ``buffer``.

    bfloat16, which numpy does not know, becomes float32. Devices and sizes become text and tuples.

    Raises pickle.UnpicklingError: the file names something that is not allowed; Exception: almost
    any, where the file is damaged or no such archive.
    """
    archive = _Archive(buffer)
    return _Unpickler(archive).load()


class _Archive:
    """The uncompressed entries of a zip archive, by their names below its one folder."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self._buffer = buffer
        with zipfile.ZipFile(buffer) as file:  # type: ignore[call-overload]
            self._entries = {info.filename.partition("/")[2]: info for info in file.infolist()}
        order = self.bytes_of("byteorder") if "byteorder" in self._entries else b"little"
        if order.decode() != sys.byteorder:
            raise ValueError(f"its numbers are stored {order.decode()}-endian")

    def bytes_of(self, name: str) -> bytes:
        return self.array(name, np.dtype(np.uint8), self._entries[name].file_size).tobytes()

    def array(self, name: str, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        info = self._entries[name]
        if info.compress_type != zipfile.ZIP_STORED or count * dtype.itemsize > info.file_size:
            raise ValueError(f"its entry {name} is compressed or too short")
        at = info.header_offset
        lengths = struct.unpack_from("<HH", self._buffer, at + _LENGTHS_AT)
        return np.frombuffer(self._buffer, dtype, count, at + _LOCAL_HEADER_BYTES + sum(lengths))


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: _Archive) -> None:
        super().__init__(BytesIO(archive.bytes_of("data.pkl")))
        self._archive = archive
        self._storages: dict[str, npt.NDArray[Any]] = {}

    def persistent_load(self, identity: Any) -> npt.NDArray[Any]:
        """Return a storage; tensors of one storage get the same array."""
        _, kind, key, _, count = identity
        if key not in self._storages:
            stored = self._archive.array(f"data/{key}", np.dtype(_DTYPES[kind]), count)
            if kind == _BFLOAT16:
                stored = (stored.astype(np.uint32) << 16).view(np.float32)
            self._storages[key] = stored
        return self._storages[key]

    def find_class(self, module: str, name: str) -> Any:
        """Return the harmless replacement of a class in the pickle."""
        if module == "torch" and name in _DTYPES:
            return name
        builder = _BUILDERS.get(f"{module}.{name}")
        if builder is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed")
        return builder


def _tensor(
    storage: npt.NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> npt.NDArray[Any]:
    """Return the view of a storage that is a tensor; ``offset`` and ``stride`` count elements."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= storage.size):
        raise ValueError("a tensor reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides)


class _NumberType:
    """A numpy dtype of numbers in a pickle."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _number(kind: _NumberType, content: bytes) -> Any:
    return np.frombuffer(content, kind.dtype)[0]


_BUILDERS: Final[dict[str, Callable[..., Any]]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": tuple,
    "torch.device": lambda *parts: ":".join(map(str, parts)),
    # numpy 1 names the builder of a number by the module's old path.
    "numpy._core.multiarray.scalar": _number,
    "numpy.core.multiarray.scalar": _number,
    "numpy.dtype": _NumberType,
    # The second protocol stores bytes as text.
    "_codecs.encode": lambda text, _encoding: text.encode("latin1"),
}
