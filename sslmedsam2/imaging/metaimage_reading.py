"""MetaImage files (.mha, .mhd), read without ITK.

The header is lines of ``key = value``, of which the last names the data file. The keys below are
used, all others passed over. Of what the format allows, voxels as text, one data file for each
slice and voxels of several numbers are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sslmedsam2.imaging.geometry import geometry_from_axes
from sslmedsam2.imaging.stored import (
    StoredImage,
    multi_channel,
    spatial_shape_zyx,
    unreadable_header,
)
from sslmedsam2.imaging.text_header import (
    MAX_AXES,
    data_file,
    header_lines,
    numbers,
    whole_number,
    whole_numbers,
)
from sslmedsam2.imaging.volume import Geometry, Source
from sslmedsam2.imaging.voxel_data import (
    LARGEST_DEFLATE_RATIO,
    ZlibStream,
    read_voxels,
    refuse_impossible_size,
)

# As ITK has it, MET_LONG has 4 bytes.
_VOXEL_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# Different names of one field, the one that counts first.
_ORIGIN = ("ImagePosition", "Offset", "Position", "Origin")
_DIRECTION = ("TransformMatrix", "Rotation", "Orientation")
_SPACING = ("ElementSpacing", "ElementSize")
_BIG_ENDIAN = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_DATA_FILE = "ElementDataFile"
_LOCAL = ("LOCAL", "Local", "local")


@dataclass(frozen=True)
class _Header:
    """``data_offset`` is None where the voxels are the last bytes of ``data``."""

    native_shape: tuple[int, ...]
    dtype: np.dtype
    geometry: Geometry
    repairs: tuple[str, ...]
    data: Path
    data_offset: int | None
    is_compressed: bool


def read_metaimage(path: Path) -> StoredImage:
    """Read a MetaImage with its data in the same file or in one beside it.

    Raises
    ------
    InputError
        Of kind ``unreadable_header``, ``data_file_elsewhere``, ``missing_data_file``,
        ``truncated_data``, ``corrupt_data``, or a kind of ``stored.py`` or ``geometry.py``.
    """
    with path.open("rb") as file:
        fields = _fields(path, file)
        header = _parse(path, fields, header_bytes=file.tell())
    size = header.dtype.itemsize * math.prod(header.native_shape)
    stored = header.data.stat().st_size
    offset = stored - size if header.data_offset is None else header.data_offset
    refuse_impossible_size(
        path,
        announced=size,
        stored=stored - max(offset, 0),
        ratio=LARGEST_DEFLATE_RATIO if header.is_compressed else 1,
    )
    with header.data.open("rb") as file:
        file.seek(offset)
        stream = cast(BinaryIO, ZlibStream(file)) if header.is_compressed else file
        shape_zyx = header.geometry.shape_zyx
        voxels, _ = read_voxels(path, stream, shape_zyx=shape_zyx, dtype=header.dtype)
    source = Source(path, header.native_shape, header.dtype, nifti_header=None)
    return StoredImage(voxels, header.geometry, source, header.repairs)


def _fields(path: Path, file: BinaryIO) -> dict[str, str]:
    """Return the fields up to the one that ends the header."""
    fields: dict[str, str] = {}
    for line in header_lines(path, file):
        separators = [place for place in (line.find("="), line.find(":")) if place >= 0]
        if separators:
            place = min(separators)
            fields[line[:place].strip()] = line[place + 1 :].strip()
        if _DATA_FILE in fields:
            return fields
    raise unreadable_header(path, f"the header names no {_DATA_FILE}")


def _parse(path: Path, fields: dict[str, str], *, header_bytes: int) -> _Header:
    for key in ("NDims", "DimSize", "ElementType"):
        if key not in fields:
            raise unreadable_header(path, f"the header names no {key}")
    axes = whole_number(path, "NDims", fields["NDims"])
    if not 1 <= axes <= MAX_AXES:
        raise unreadable_header(path, f"the header announces {axes} axes")
    native_shape = whole_numbers(path, "DimSize", fields["DimSize"], count=axes)

    def field(keys: tuple[str, ...], *, count: int, otherwise: list[float]) -> list[float]:
        key = next((key for key in keys if key in fields), None)
        return otherwise if key is None else numbers(path, key, fields[key], count=count)

    identity = np.eye(axes).ravel().tolist()
    rows = np.array(field(_DIRECTION, count=axes * axes, otherwise=identity))
    geometry, repairs = geometry_from_axes(
        path,
        shape_zyx=spatial_shape_zyx(path, native_shape),
        spacing_xyz=field(_SPACING, count=axes, otherwise=[1.0] * axes),
        origin_xyz=field(_ORIGIN, count=axes, otherwise=[0.0] * axes),
        direction=rows.reshape(axes, axes).T,
    )
    dtype = _voxel_type(path, fields)
    data, data_offset = _place_of_data(path, fields, header_bytes=header_bytes)
    return _Header(
        native_shape=native_shape,
        dtype=dtype,
        geometry=geometry,
        repairs=repairs,
        data=data,
        data_offset=data_offset,
        is_compressed=_is_true(fields, "CompressedData"),
    )


def _voxel_type(path: Path, fields: dict[str, str]) -> np.dtype:
    channels = whole_number(
        path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1")
    )
    if channels != 1:
        raise multi_channel(path, channels)
    name = fields["ElementType"]
    if name not in _VOXEL_TYPES:
        raise unreadable_header(path, f"the header names the voxel type {name[:40]!r}")
    if not _is_true(fields, "BinaryData", otherwise=True):
        raise unreadable_header(path, "its voxels are written as text, which is not read")
    key = next((key for key in _BIG_ENDIAN if key in fields), "")
    return np.dtype(_VOXEL_TYPES[name]).newbyteorder(">" if _is_true(fields, key) else "<")


def _is_true(fields: dict[str, str], key: str, *, otherwise: bool = False) -> bool:
    return fields[key].startswith(("T", "t", "1")) if key in fields else otherwise


def _place_of_data(
    path: Path, fields: dict[str, str], *, header_bytes: int
) -> tuple[Path, int | None]:
    """Return the file that holds the voxels, and where they begin; None if at its end."""
    name = fields[_DATA_FILE]
    if not name:
        raise unreadable_header(path, "the header names no data file")
    if name.startswith("LIST") or "%" in name:
        raise unreadable_header(path, "its voxels lie in several files, which is not read")
    is_local = name in _LOCAL
    data = path if is_local else data_file(path, name)
    skipped = whole_number(path, "HeaderSize", fields.get("HeaderSize", "0"))
    if skipped == -1 and not _is_true(fields, "CompressedData"):
        return data, None
    if skipped < 0:
        raise unreadable_header(path, f"HeaderSize is {skipped}")
    return data, skipped or (header_bytes if is_local else 0)
