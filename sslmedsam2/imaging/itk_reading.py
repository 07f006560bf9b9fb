"""MetaImage (.mha, .mhd) and NRRD files, and images in memory, by SimpleITK.

SimpleITK is asked for the header first, so that what cannot be used is refused before its voxels
are read. MetaImage needs two checks more: SimpleITK reports a missing data file as a missing
file of the header's name, and takes a damaged compressed stream without an error, filling
the rest of the volume with whatever the memory held.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk  # noqa: N813

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import (
    UNITS_MM,
    check_spacing,
    geometry_from_steps,
    is_plausible_size,
)
from sslmedsam2.imaging.stored import (
    StoredImage,
    check_voxel_type,
    corrupt,
    repair,
    spatial_shape_zyx,
    truncated,
)
from sslmedsam2.imaging.volume import ArrayZYX, Geometry, Source

_METAIMAGE_EXTENSIONS = (".mha", ".mhd")
NRRD_EXTENSIONS = (".nrrd", ".nhdr")
_MAX_HEADER_LINES = 1000
_MAX_LINE_BYTES = 4096
_PART_BYTES = 2**20
_AUTODETECT_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS

_Header: TypeAlias = "sitk.ImageFileReader | sitk.Image"
"""Both have the same methods for shape and position."""


def read_itk(path: Path, *, extension: str) -> StoredImage:
    """Read a MetaImage or NRRD file.

    SimpleITK holds the stored voxels while the float32 copy is made.

    Raises
    ------
    InputError
        Of kind ``unreadable_header``, ``unreadable_data``, ``missing_data_file``,
        ``truncated_data``, ``corrupt_data``, or a kind of ``stored.py`` or ``geometry.py``.
    """
    reader = _open(path)
    geometry, repairs = _geometry(path, reader, unit=_nrrd_unit(path) or "mm")
    native_shape = _native_shape(reader)
    dtype = _voxel_type(path, reader.GetPixelID(), n_components=reader.GetNumberOfComponents())
    if extension in _METAIMAGE_EXTENSIONS:
        _check_metaimage_data(path, dtype.itemsize * int(np.prod(native_shape, dtype=np.int64)))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            path,
            kind="unreadable_data",
            reason=f"the voxels cannot be read ({_last_line(error)})",
            remedy="Copy or export the file again",
        ) from error
    source = Source(path=path, native_shape=native_shape, native_dtype=dtype, nifti_header=None)
    return StoredImage(_voxels(image, geometry), geometry, source, repairs)


def stored_from_itk(image: sitk.Image, *, name: Path) -> StoredImage:
    """Take a SimpleITK image over as if it had been read from a file called ``name``.

    Raises
    ------
    InputError
        Of a kind of ``stored.py`` or ``geometry.py``.
    """
    geometry, repairs = _geometry(name, image)
    n_components = image.GetNumberOfComponentsPerPixel()
    dtype = _voxel_type(name, image.GetPixelID(), n_components=n_components)
    source = Source(
        path=name, native_shape=_native_shape(image), native_dtype=dtype, nifti_header=None
    )
    return StoredImage(_voxels(image, geometry), geometry, source, repairs)


def _native_shape(image: _Header) -> tuple[int, ...]:
    return tuple(int(length) for length in image.GetSize())


def _voxels(image: sitk.Image, geometry: Geometry) -> ArrayZYX:
    view = sitk.GetArrayViewFromImage(image)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(view, dtype=np.float32).reshape(geometry.shape_zyx)


def _open(path: Path) -> sitk.ImageFileReader:
    # What SimpleITK would print to stderr is either harmless or reported by the checks here.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(
            path,
            kind="unreadable_header",
            reason=f"the header cannot be read ({_last_line(error)})",
            remedy="Check that the file is a complete image of its format and copy it again",
        ) from error
    return reader


def _voxel_type(path: Path, pixel: int, *, n_components: int) -> np.dtype:
    if n_components > 1 and "complex" not in sitk.GetPixelIDValueAsString(pixel):
        raise InputError(
            path,
            kind="multi_channel",
            reason=f"each voxel holds {n_components} values",
            remedy="Give an image with one number per voxel",
        )
    one_voxel = sitk.Image([1, 1], pixel)
    dtype = sitk.GetArrayViewFromImage(one_voxel).dtype
    check_voxel_type(path, dtype)
    return dtype


def _geometry(path: Path, header: _Header, *, unit: str = "mm") -> tuple[Geometry, tuple[str, ...]]:
    """Take the spatial part of a header that may have a fourth axis of one element."""
    shape_zyx = spatial_shape_zyx(path, _native_shape(header))
    axes = header.GetDimension()
    spacing_xyz = np.array(header.GetSpacing()[:3], dtype=np.float64)
    named, factor = UNITS_MM.get(unit, ("mm", 1.0))
    is_converted = factor != 1 and is_plausible_size(spacing_xyz * factor)
    factor = factor if is_converted else 1.0
    check_spacing(path, (spacing_xyz * factor).tolist())
    direction = np.array(header.GetDirection(), dtype=np.float64).reshape(axes, axes)[:3, :3]
    geometry, repairs = geometry_from_steps(
        path,
        shape_zyx=shape_zyx,
        steps_xyz_mm=direction * spacing_xyz * factor,
        origin_xyz_mm=np.array(header.GetOrigin()[:3], dtype=np.float64) * factor,
    )
    if is_converted:
        repairs += (repair("units", f"lengths were converted from {named} to mm"),)
    return geometry, repairs


def _nrrd_unit(path: Path) -> str | None:
    """Return the unit of length that an NRRD header names; SimpleITK does not look at it."""
    if path.suffix.lower() not in NRRD_EXTENSIONS:
        return None
    with path.open("rb") as file:
        for _ in range(_MAX_HEADER_LINES):
            line = file.readline(_MAX_LINE_BYTES).decode("latin-1").strip()
            if not line:
                return None
            key, _, value = line.partition(":")
            if key.strip().lower() == "space units":
                units = set(value.replace('"', " ").split())
                return units.pop() if len(units) == 1 else None
    return None


def _check_metaimage_data(path: Path, announced_bytes: int) -> None:
    """Find what SimpleITK would not report, or not by its name."""
    fields, header_bytes = _metaimage_fields(path)
    name = fields.get("ElementDataFile", "")
    if name.upper().startswith("LIST") or "%" in name:
        # One file per slice: SimpleITK finds the missing ones.
        return
    is_local = name.upper() == "LOCAL"
    data = path if is_local else path.parent / name
    if not data.is_file():
        raise InputError(
            path,
            kind="missing_data_file",
            reason=f"the data file {name!r} that the header names is not there",
            remedy="Put the data file beside the header",
        )
    offset = header_bytes if is_local else 0
    if fields.get("CompressedData", "").lower() == "true":
        _check_compressed(path, data=data, offset=offset, announced_bytes=announced_bytes)
    elif data.stat().st_size - offset < announced_bytes:
        raise truncated(path)


def _metaimage_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the ``key = value`` lines up to ElementDataFile, and how many bytes they take."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        for _ in range(_MAX_HEADER_LINES):
            line = file.readline(_MAX_LINE_BYTES).decode("latin-1")
            key, _, value = line.partition("=")
            fields[key.strip()] = value.strip()
            if not line or key.strip() == "ElementDataFile":
                break
        return fields, file.tell()


def _check_compressed(path: Path, *, data: Path, offset: int, announced_bytes: int) -> None:
    """Decompress once without keeping anything, for the checksum and the size."""
    inflater = zlib.decompressobj(_AUTODETECT_ZLIB_OR_GZIP)
    inflated = 0
    with data.open("rb") as file:
        file.seek(offset)
        try:
            while not inflater.eof:
                part = inflater.unconsumed_tail or file.read(_PART_BYTES)
                if not part:
                    raise truncated(path)
                inflated += len(inflater.decompress(part, _PART_BYTES))
        except zlib.error as error:
            raise corrupt(path, error) from error
    if inflated < announced_bytes:
        raise truncated(path)


def _last_line(error: RuntimeError) -> str:
    """Return the one line of a SimpleITK error that says what went wrong."""
    return str(error).strip().splitlines()[-1].strip()
