"""MetaImage files (.mha, .mhd), read without ITK.

The header is lines of ``key = value``, of which the last names the data file. The keys below are
used, all others ignored. Of the format's options, voxels as text, one data file for each
slice and voxels of several numbers are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from sslmedsam2.imaging.geometry import geometry_from_axes
from sslmedsam2.imaging.stored import (
    NO_SPACING,
    check_one_channel,
    repair,
    spatial_shape_zyx,
    unreadable_header,
)
from sslmedsam2.imaging.text_header import (
    check_fields,
    data_file,
    header_lines,
    number_of_axes,
    numbers,
    whole_number,
    whole_numbers,
)
from sslmedsam2.imaging.volume import Geometry, Source, Volume
from sslmedsam2.imaging.voxel_data import read_voxels

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


def read_metaimage(path: Path) -> Volume:
    """Read a MetaImage with its data in the same file or in one beside it.

    Raises InputError: of kind ``unreadable_header``, ``data_file_elsewhere``,
    ``missing_data_file``, ``truncated_data``, ``corrupt_data``, or a kind of ``stored.py`` or
    ``geometry.py``.
    """
    with path.open("rb") as file:
        fields = _fields(path, file)
        header_bytes = file.tell()
    check_fields(path, fields, "NDims", "DimSize", "ElementType")
    axes = number_of_axes(path, "NDims", fields["NDims"])
    native_shape = whole_numbers(path, "DimSize", fields["DimSize"], count=axes)
    geometry, repairs = _geometry(path, fields, native_shape)
    dtype = _voxel_type(path, fields)
    data, data_offset = _place_of_data(path, fields, header_bytes=header_bytes)
    with data.open("rb") as file:
        voxels, _ = read_voxels(
            path,
            file,
            shape_zyx=geometry.shape_zyx,
            dtype=dtype,
            compression="zlib" if _is_true(fields, "CompressedData") else "",
            start=data_offset,
        )
    return Volume(voxels, geometry, Source(path, native_shape, dtype), repairs)


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


def _geometry(
    path: Path, fields: dict[str, str], native_shape: tuple[int, ...]
) -> tuple[Geometry, tuple[str, ...]]:
    axes = len(native_shape)

    def field(keys: tuple[str, ...], *, otherwise: list[float]) -> list[float]:
        key = next((key for key in keys if key in fields), None)
        return otherwise if key is None else numbers(path, key, fields[key], count=len(otherwise))

    rows = np.array(field(_DIRECTION, otherwise=np.eye(axes).ravel().tolist()))
    geometry, repairs = geometry_from_axes(
        path,
        shape_zyx=spatial_shape_zyx(path, native_shape),
        spacing_xyz=field(_SPACING, otherwise=[1.0] * axes),
        origin_xyz=field(_ORIGIN, otherwise=[0.0] * axes),
        direction=rows.reshape(axes, axes).T,
    )
    if not any(key in fields for key in _SPACING):
        repairs += (NO_SPACING,)
    if not any(key in fields for key in _DIRECTION):
        note = "the header names no direction matrix; the orientation is assumed"
        repairs += (repair("no_orientation", note),)
    return geometry, repairs


def _voxel_type(path: Path, fields: dict[str, str]) -> np.dtype:
    key = "ElementNumberOfChannels"
    check_one_channel(path, whole_number(path, key, fields.get(key, "1")))
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
    is_local = name in _LOCAL
    data = path if is_local else data_file(path, name)
    skipped = whole_number(path, "HeaderSize", fields.get("HeaderSize", "0"))
    if skipped == -1 and not _is_true(fields, "CompressedData"):
        return data, None
    if skipped < 0:
        raise unreadable_header(path, f"HeaderSize is {skipped}")
    return data, skipped or (header_bytes if is_local else 0)
