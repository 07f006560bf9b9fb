"""NRRD files (.nrrd, .nhdr), read without ITK.

The header is lines of ``field: value`` and ``key:=value``, up to an empty line; a detached header
names a data file. Of the format's options, voxels as text and several data files are refused.
Orientation is taken as ITK does: RAS and LAS spaces are turned to LPS.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.formats import foreign_content
from sslmedsam2.imaging.geometry import geometry_from_axes
from sslmedsam2.imaging.stored import (
    NO_SPACING,
    check_one_channel,
    check_voxel_type,
    refuse_too_many,
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
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, Source, Volume
from sslmedsam2.imaging.voxel_data import Compression, read_voxels

_MAGIC = re.compile(r"NRRD000[1-6]")
_KEY_VALUE = ":="
# Without the spaces that some of them have: both "data file" and "datafile" are written.
_FIELDS = frozenset(
    re.findall(
        r"\w+",
        """type dimension sizes endian encoding content number blocksize min max oldmin oldmax
        datafile lineskip byteskip sampleunits space spacedimension spaceunits spaceorigin
        spacedirections measurementframe spacings thicknesses axismins axismaxs centers centerings
        labels units kinds""",
    )
)
_VOXEL_TYPES = {
    name: kind
    for kind, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,"
        "int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
_ENCODINGS: dict[str, Compression] = {
    "raw": "",
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bzip2",
    "bzip2": "bzip2",
}
# Signs that turn a position to LPS; those of a space without a name are taken as they are.
_LPS_SIGNS = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
    "scanner-xyz": (1, 1, 1),
    "3d-right-handed": (1, 1, 1),
    "3d-left-handed": (1, 1, 1),
}
_SPATIAL_KINDS = ("???", "none", "domain", "space", "time")
_VECTOR = re.compile(r"\(([^()]*)\)|none")
_MAX_SKIPPED = 2**24
_PART_BYTES = 2**16
_READ_BYTES = 352


@dataclass(frozen=True)
class NrrdHeader:
    """A checked NRRD header.

    Attributes
    ----------
    path
        The file of the header.
    sizes
        Of all axes, the fastest first.
    channel_axis
        The axis that holds the values of one voxel, or None.
    dtype
        Of the stored voxels, in their byte order.
    fields
        As written, their names in lower case and without spaces.
    texts
        The ``key:=value`` lines.
    header_bytes
        Length of the header, where the voxels of a file without a data file begin.
    """

    path: Path
    sizes: tuple[int, ...]
    channel_axis: int | None
    dtype: np.dtype
    fields: dict[str, str]
    texts: dict[str, str]
    header_bytes: int

    @property
    def native_shape(self) -> tuple[int, ...]:
        """The sizes without the channel axis."""
        return tuple(n for axis, n in enumerate(self.sizes) if axis != self.channel_axis)

    @property
    def channels(self) -> int:
        """How many values a voxel has."""
        return 1 if self.channel_axis is None else self.sizes[self.channel_axis]


def read_nrrd(path: Path) -> Volume:
    """Read an NRRD image with its data in the same file or in one beside it.

    Raises InputError: as :func:`parse_nrrd_header` and :func:`read_nrrd_channels`.
    """
    header = parse_nrrd_header(path)
    shape_zyx = spatial_shape_zyx(path, header.native_shape)
    geometry, repairs = nrrd_geometry(header, shape_zyx=shape_zyx)
    check_one_channel(path, header.channels)
    voxels = read_nrrd_channels(header).reshape(geometry.shape_zyx)
    return Volume(voxels, geometry, Source(path, header.native_shape, header.dtype), repairs)


def parse_nrrd_header(path: Path) -> NrrdHeader:
    """Read and check a header.

    Raises InputError: of kind ``unreadable_header``, or a kind of voxel type (``stored.py``).
    """
    with path.open("rb") as file:
        fields, texts = _lines(path, file)
        header_bytes = file.tell()
    check_fields(path, fields, "type", "dimension", "sizes", "encoding")
    axes = number_of_axes(path, "dimension", fields["dimension"])
    kinds = fields.get("kinds", " ".join(["none"] * axes)).lower().split()
    channel_axes = [axis for axis, kind in enumerate(kinds) if kind not in _SPATIAL_KINDS]
    if len(kinds) != axes or len(channel_axes) > 1:
        raise unreadable_header(path, f"its {axes} axes are of the kinds {' '.join(kinds)[:80]!r}")
    if "complex" in kinds:
        check_voxel_type(path, np.dtype(np.complex64))
    sizes = whole_numbers(path, "sizes", fields["sizes"], count=axes)
    if channel_axes and sizes[channel_axes[0]] < 1:
        raise unreadable_header(path, f"each voxel holds {sizes[channel_axes[0]]} values")
    return NrrdHeader(
        path=path,
        sizes=sizes,
        channel_axis=channel_axes[0] if channel_axes else None,
        dtype=_voxel_type(path, fields),
        fields=fields,
        texts=texts,
        header_bytes=header_bytes,
    )


def _lines(path: Path, file: BinaryIO) -> tuple[dict[str, str], dict[str, str]]:
    """Return the fields, and the ``key:=value`` lines, up to the empty line or the file's end."""
    held = foreign_content(file.read(_READ_BYTES))
    file.seek(0)
    lines = header_lines(path, file)
    if not _MAGIC.fullmatch(next(lines, "")):
        raise unreadable_header(path, f"the file does not begin with NRRD0001 to NRRD0006{held}")
    fields: dict[str, str] = {}
    texts: dict[str, str] = {}
    for line in itertools.takewhile(bool, lines):
        name, found, value = line.partition(": ")
        name = name.lower().replace(" ", "")
        if line.startswith("#"):
            continue
        if found and name in _FIELDS:
            if name in fields:
                raise unreadable_header(path, f"the header has the field {name!r} twice")
            fields[name] = value.strip()
        elif _KEY_VALUE in line:
            key, _, text = line.partition(_KEY_VALUE)
            texts[key] = text.replace(r"\n", "\n").replace(r"\\", "\\")
        else:
            raise unreadable_header(path, f"the header has the unknown line {line[:40]!r}")
    return fields, texts


def _voxel_type(path: Path, fields: dict[str, str]) -> np.dtype:
    name = " ".join(fields["type"].lower().split())
    if name not in _VOXEL_TYPES:
        raise unreadable_header(path, f"the header names the voxel type {name[:40]!r}")
    dtype = np.dtype(_VOXEL_TYPES[name])
    endian = fields.get("endian", "little" if dtype.itemsize == 1 else "").lower()
    if endian not in ("little", "big"):
        raise unreadable_header(path, "the header does not name the byte order of the voxels")
    return dtype.newbyteorder("<" if endian == "little" else ">")


def nrrd_geometry(
    header: NrrdHeader, *, shape_zyx: tuple[int, int, int]
) -> tuple[Geometry, tuple[str, ...]]:
    """Return the geometry, and notes on repairs and assumptions.

    Raises InputError: of kind ``unreadable_header`` or a kind of ``geometry.py``.
    """
    path, fields = header.path, header.fields
    axes = len(header.native_shape)
    spacing, direction, origin = np.ones(axes), np.eye(axes), np.zeros(axes)
    if "space" in fields or "spacedimension" in fields:
        vectors, origin = _in_space(header, axes)
        # Scaled in the order of ITK, for the same last bit.
        if vectors is not None:
            spacing = np.sqrt(np.array([sum(v * v for v in vector) for vector in vectors]))
            with np.errstate(divide="ignore", invalid="ignore"):
                direction = (np.array(vectors) * (1.0 / spacing)[:, None]).T
    elif "axismins" in fields:
        raise unreadable_header(path, "its axes have a minimum but lie in no space")
    elif "spacings" in fields:
        spacing = np.array(_of_space(header, "spacings"))
    units = set(fields.get("spaceunits", "").replace('"', " ").split())
    geometry, repairs = geometry_from_axes(
        path,
        shape_zyx=shape_zyx,
        spacing_xyz=spacing.tolist(),
        origin_xyz=origin.tolist(),
        direction=direction,
        unit=units.pop() if len(units) == 1 else "mm",
    )
    if not {"spacedirections", "spacings"} & fields.keys():
        repairs += (NO_SPACING,)
    # ITK writes three axes in a named space, four in one without a name.
    has_nameless_space = fields.get("spacedimension") == "3"
    if "spacedirections" not in fields or has_nameless_space:
        note = "the header names no space or no space directions; the orientation is assumed"
        repairs += (repair("no_orientation", note),)
    return geometry, repairs


def _in_space(
    header: NrrdHeader, axes: int
) -> tuple[list[list[float]] | None, npt.NDArray[np.float64]]:
    """Return the LPS step along each spatial axis, if there are any, and the LPS origin."""
    path, fields = header.path, header.fields
    space = fields.get("space", "").lower()
    if space in _LPS_SIGNS:
        count = 3
    elif space or "spacedimension" not in fields:
        raise unreadable_header(path, f"the header names the space {space[:40]!r}")
    else:
        count = whole_number(path, "space dimension", fields["spacedimension"])
    if count != axes:
        raise unreadable_header(path, f"{axes} axes lie in a space of {count} dimensions")
    if "spacings" in fields and not all(map(math.isnan, _of_space(header, "spacings"))):
        raise unreadable_header(path, "its axes have both a space and spacings")
    signs = _LPS_SIGNS.get(space, (1,) * axes)
    origins = _vectors(path, "spaceorigin", fields, count=axes)
    position = origins[0] if origins else None
    # Adding 0 makes -0 a 0, as ITK has it.
    origin = np.zeros(axes) if position is None else np.array(position) * signs + 0.0
    vectors = _vectors(path, "spacedirections", fields, count=axes)
    if vectors is None:
        return None, origin
    if len(vectors) != len(header.sizes):
        raise unreadable_header(path, f"it has {len(vectors)} space directions")
    steps = []
    for axis, vector in enumerate(vectors):
        if axis == header.channel_axis:
            continue
        if vector is None:
            raise unreadable_header(path, f"axis {axis} has no space direction")
        steps.append([v * sign for v, sign in zip(vector, signs, strict=True)])
    return steps, origin


def _of_space(header: NrrdHeader, name: str) -> list[float]:
    """Return a field's numbers without that of the channel axis."""
    found = numbers(header.path, name, header.fields[name], count=len(header.sizes))
    return [number for axis, number in enumerate(found) if axis != header.channel_axis]


def _vectors(
    path: Path, name: str, fields: dict[str, str], *, count: int
) -> list[list[float] | None] | None:
    """Parse vectors in parentheses, each None where it is ``none``; None without the field."""
    if name not in fields:
        return None
    text = fields[name]
    if _VECTOR.sub("", text).strip():
        raise unreadable_header(path, f"{name} is {text[:60]!r} where vectors should be")
    return [
        None if found[1] is None else numbers(path, name, found[1].replace(",", " "), count=count)
        for found in _VECTOR.finditer(text)
    ]


def read_nrrd_channels(header: NrrdHeader) -> ArrayZYX:
    """Read the voxels as ``[..., z, y, x, channel]``; one channel is an axis of length 1.

    Raises InputError: of kind ``unreadable_header``, ``too_large``, ``data_file_elsewhere``,
    ``missing_data_file``, ``truncated_data`` or ``corrupt_data``.
    """
    path, fields = header.path, header.fields
    refuse_too_many(path, header.sizes)
    encoding = fields["encoding"].lower()
    if encoding not in _ENCODINGS:
        reason = f"its voxels have the encoding {encoding[:40]!r}, which is not read"
        raise unreadable_header(path, reason)
    compression = _ENCODINGS[encoding]
    lines = whole_number(path, "line skip", fields.get("lineskip", "0"))
    skipped = whole_number(path, "byte skip", fields.get("byteskip", "0"))
    # A byte skip of -1 means that the voxels are at the end of the file.
    lowest = 0 if compression else -1
    if not 0 <= lines <= _MAX_SKIPPED or not lowest <= skipped <= _MAX_SKIPPED:
        raise unreadable_header(path, f"it skips {lines} lines and {skipped} bytes")
    name = fields.get("datafile")
    data = path if name is None else data_file(path, name)
    with data.open("rb") as file:
        file.seek(header.header_bytes if name is None else 0)
        for _ in range(lines):
            while (part := file.readline(_PART_BYTES)) and not part.endswith(b"\n"):
                pass
        voxels, _ = read_voxels(
            path,
            file,
            shape_zyx=tuple(reversed(header.sizes)),
            dtype=header.dtype,
            compression=compression,
            start=None if skipped == -1 else file.tell(),
            skip=max(skipped, 0),
        )
    if header.channel_axis is None:
        return voxels[..., None]
    return np.moveaxis(voxels, -1 - header.channel_axis, -1)
