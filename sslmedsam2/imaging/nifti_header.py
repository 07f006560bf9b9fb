"""NIfTI-1 and NIfTI-2 headers, checked before any voxel is read.

A header is a structured array of no axes, in the byte order of its file: nothing in it is repaired,
because a mask must repeat it bit for bit. Layouts: https://nifti.nimh.nih.gov/nifti-1 and nifti-2.
nibabel is not used here, as its import takes longer than reading a scan.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.formats import NIFTI_IMAGE, foreign_content, image_content
from sslmedsam2.imaging.geometry import (
    LPS_FROM_RAS,
    UNITS_MM,
    check_spacing,
    geometry_from_steps,
    is_plausible_size,
    same_grid,
)
from sslmedsam2.imaging.stored import (
    check_voxel_type,
    image_error,
    repair,
    spatial_shape_zyx,
    unreadable_header,
)
from sslmedsam2.imaging.volume import Geometry, Source

MAX_HEADER_BYTES = 540

NiftiStruct = npt.NDArray[np.void]

_VERSION_1: Final[list[Any]] = [
    ("sizeof_hdr", "i4"),
    ("unused_1", "V35"),
    ("dim_info", "u1"),
    ("dim", "i2", (8,)),
    *((name, "f4") for name in ("intent_p1", "intent_p2", "intent_p3")),
    *((name, "i2") for name in ("intent_code", "datatype", "bitpix", "slice_start")),
    ("pixdim", "f4", (8,)),
    *((name, "f4") for name in ("vox_offset", "scl_slope", "scl_inter")),
    ("slice_end", "i2"),
    *((name, "u1") for name in ("slice_code", "xyzt_units")),
    *((name, "f4") for name in ("cal_max", "cal_min", "slice_duration", "toffset")),
    ("unused_2", "V8"),
    ("descrip", "S80"),
    ("aux_file", "S24"),
    *((name, "i2") for name in ("qform_code", "sform_code")),
    *((f"quatern_{part}", "f4") for part in "bcd"),
    *((f"qoffset_{axis}", "f4") for axis in "xyz"),
    *((f"srow_{axis}", "f4", (4,)) for axis in "xyz"),
    ("intent_name", "S16"),
    ("magic", "S4"),
]
_VERSION_2: Final[list[Any]] = [
    ("sizeof_hdr", "i4"),
    ("magic", "S4"),
    ("unused_1", "V4"),
    *((name, "i2") for name in ("datatype", "bitpix")),
    ("dim", "i8", (8,)),
    *((name, "f8") for name in ("intent_p1", "intent_p2", "intent_p3")),
    ("pixdim", "f8", (8,)),
    ("vox_offset", "i8"),
    *((name, "f8") for name in ("scl_slope", "scl_inter", "cal_max", "cal_min")),
    *((name, "f8") for name in ("slice_duration", "toffset")),
    *((name, "i8") for name in ("slice_start", "slice_end")),
    ("descrip", "S80"),
    ("aux_file", "S24"),
    *((name, "i4") for name in ("qform_code", "sform_code")),
    *((f"quatern_{part}", "f8") for part in "bcd"),
    *((f"qoffset_{axis}", "f8") for axis in "xyz"),
    *((f"srow_{axis}", "f8", (4,)) for axis in "xyz"),
    *((name, "i4") for name in ("slice_code", "xyzt_units", "intent_code")),
    ("intent_name", "S16"),
    ("dim_info", "u1"),
    ("unused_2", "V15"),
]
_LAYOUTS: Final = {348: np.dtype(_VERSION_1), 540: np.dtype(_VERSION_2)}

_VOXEL_TYPES: Final = {
    **{0: "V", 1: "V", 255: "V", 1536: "V", 2048: "V"},
    **{2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 256: "i1", 512: "u2", 768: "u4"},
    **{1024: "i8", 1280: "u8", 1792: "c16", 128: "u1,u1,u1", 2304: "u1,u1,u1,u1"},
}
"""By the code in ``datatype``. The floats of 128 bits are no type of common processors."""
_CODES: Final = {np.dtype(name): code for code, name in _VOXEL_TYPES.items() if name != "V"}

_BYTE_ORDERS: Final[tuple[Literal["<", ">"], ...]] = ("<", ">")
_SINGLE_FILE_MAGIC = b"n+"
_PAIR_MAGIC = b"ni"
# No file system position beyond this is meant; a damaged float may hold any number.
_MAX_DATA_OFFSET = 2**40
_UNIT_NAMES = {1: "m", 3: "um"}
_QUATERNION_TOLERANCE = 1e-3
_QUATERNION_ROUNDING = 3 * float(np.finfo(np.float32).eps)

Affine = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NiftiHeader:
    """The parts of a header that reading and writing need.

    A voxel's value is ``stored * slope + intercept``.
    """

    source: Source
    slope: float
    intercept: float
    data_offset: int
    geometry: Geometry
    repairs: tuple[str, ...]


def parse_nifti_header(path: Path, start: bytes) -> NiftiHeader:
    """Parse and check the header at the start of an uncompressed NIfTI stream.

    Raises InputError: of kind ``unreadable_header``, ``nifti_pair``, one of the kinds of voxel
    type, shape and geometry (see ``stored.py`` and ``geometry.py``).
    """
    header = nifti_struct(path, start)
    shape = _native_shape(path, header)
    placing, unit_repairs = _in_mm(header)
    shape_zyx = spatial_shape_zyx(path, shape)
    dtype = voxel_type(path, header)
    geometry, geometry_repairs = _geometry(path, placing, shape_zyx)
    slope, intercept, scaling_repairs = _scaling(header)
    return NiftiHeader(
        source=Source(path, shape, dtype, header.tobytes()),
        slope=slope,
        intercept=intercept,
        data_offset=_data_offset(path, header),
        geometry=geometry,
        repairs=geometry_repairs + unit_repairs + scaling_repairs,
    )


def nifti_struct(path: Path, start: bytes) -> NiftiStruct:
    """Return the header in the bytes at the start of a stream; raises InputError."""
    for endianness in _BYTE_ORDERS:
        size = struct.unpack(f"{endianness}i", start[:4])[0] if len(start) >= 4 else 0
        if size in _LAYOUTS and len(start) >= size:
            layout = _LAYOUTS[size].newbyteorder(endianness)
            header = np.frombuffer(start, layout, count=1).reshape(()).copy()
            magic = header["magic"].item()
            if magic.startswith(_SINGLE_FILE_MAGIC):
                return header
            if magic.startswith(_PAIR_MAGIC):
                reason = "the header belongs to a .hdr/.img pair, the voxels are elsewhere"
                raise image_error(path, "nifti_pair", reason)
    if image_content(start) == NIFTI_IMAGE:
        raise unreadable_header(path, "the NIfTI header is damaged")
    held = foreign_content(start)
    raise unreadable_header(path, f"the file does not begin with a NIfTI header{held}")


def _native_shape(path: Path, header: NiftiStruct) -> tuple[int, ...]:
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        raise unreadable_header(path, f"the header announces {axes} axes")
    lengths = [int(length) for length in header["dim"][1 : axes + 1]]
    # A length of 0 beyond the third axis means that the axis is not used.
    return tuple(lengths[:3] + [1 if length == 0 else length for length in lengths[3:]])


def _in_mm(header: NiftiStruct) -> tuple[NiftiStruct, tuple[str, ...]]:
    """Return the header with its lengths in mm; without a named unit, mm is meant.

    A unit that would make the voxels larger or smaller than any scan's is a wrong unit.
    """
    unit, factor = UNITS_MM.get(_UNIT_NAMES.get(int(header["xyzt_units"]) % 8, "mm"), ("mm", 1.0))
    sizes = np.abs(np.array(header["pixdim"][1:4], dtype=np.float64)) * factor
    if factor == 1 or not is_plausible_size(sizes):
        return header, ()
    placing = header.copy()
    for field in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
        placing[field] = placing[field] * factor
    placing["pixdim"][1:4] = placing["pixdim"][1:4] * factor
    return placing, (repair("units", f"lengths were converted from {unit} to mm"),)


def voxel_type(path: Path, header: NiftiStruct) -> np.dtype:
    """Return the type of the voxels, in the byte order of the file; raises InputError."""
    code = int(header["datatype"])
    if code not in _VOXEL_TYPES:
        raise unreadable_header(path, f"the header names the unknown voxel type {code}")
    dtype = np.dtype(_VOXEL_TYPES[code])
    if not header.dtype["datatype"].isnative:
        dtype = dtype.newbyteorder()
    check_voxel_type(path, dtype)
    return dtype


def set_voxel_type(header: NiftiStruct, dtype: np.dtype) -> None:
    """Write a type of one real number into a header."""
    header["datatype"] = _CODES[dtype.newbyteorder("=")]
    header["bitpix"] = dtype.itemsize * 8


def _data_offset(path: Path, header: NiftiStruct) -> int:
    offset = float(header["vox_offset"])
    if not header.itemsize <= offset <= _MAX_DATA_OFFSET:
        raise unreadable_header(path, f"the header says that the voxels begin at byte {offset:g}")
    return int(offset)


def _scaling(header: NiftiStruct) -> tuple[float, float, tuple[str, ...]]:
    """Return slope and intercept; a slope of 0 or NaN means, by the standard, no scaling."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0, ()
    if np.isfinite(slope) and np.isfinite(intercept):
        return slope, intercept, ()
    note = f"slope {slope:g} and intercept {intercept:g} are not finite; voxels are left unscaled"
    return 1.0, 0.0, (repair("bad_scaling", note),)


def _geometry(
    path: Path, header: NiftiStruct, shape_zyx: tuple[int, int, int]
) -> tuple[Geometry, tuple[str, ...]]:
    """Choose among sform, qform and plain voxel sizes.

    The sform comes first, then the qform, each only where its code says that it is set; a form
    that cannot be used gives way to the other. Without either, nibabel's convention holds: x grows
    to the patient's left, y to anterior, z to superior.
    """
    forms = []
    first_error: InputError | None = None
    for name, code, affine_of in (("sform", "sform_code", sform), ("qform", "qform_code", qform)):
        if header[code] <= 0:
            continue
        try:
            forms.append((name, _from_ras(path, affine_of(path, header), shape_zyx)))
        except InputError as error:
            first_error = first_error or error
    if not forms:
        if first_error is not None:
            raise first_error
        geometry, repairs = _from_ras(path, _voxel_size_affine(path, header), shape_zyx)
        note = "neither sform nor qform is set; orientation and position are assumed"
        return geometry, (*repairs, repair("no_orientation", note))
    name, (geometry, repairs) = forms[0]
    if first_error is not None:
        repairs += (repair("unusable_form", f"only the {name} is used: {first_error.reason}"),)
    if len(forms) == 2 and not same_grid(geometry, forms[1][1][0]):
        note = "sform and qform place the voxels differently; the sform is used"
        repairs += (repair("forms_disagree", note),)
    return geometry, repairs


def _from_ras(
    path: Path, affine: Affine, shape_zyx: tuple[int, int, int]
) -> tuple[Geometry, tuple[str, ...]]:
    lps = LPS_FROM_RAS * affine
    return geometry_from_steps(
        path, shape_zyx=shape_zyx, steps_xyz_mm=lps[:, :3], origin_xyz_mm=lps[:, 3]
    )


def sform(_path: Path, header: NiftiStruct) -> Affine:
    """Return the sform's 3 x 4 RAS affine."""
    rows = [header["srow_x"], header["srow_y"], header["srow_z"]]
    return np.array(rows, dtype=np.float64)


def qform(path: Path, header: NiftiStruct) -> Affine:
    """Return the qform's 3 x 4 RAS affine (method 2 of the NIfTI standard); raises InputError."""
    rotation = _rotation(_quaternion(path, header))
    steps = _voxel_sizes(path, header)
    # By the standard, a qfac (pixdim[0]) of 0 counts as 1; only -1 flips the third axis.
    if header["pixdim"][0] < 0:
        steps[2] = -steps[2]
    offset = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return np.column_stack([rotation * steps, offset])


def _quaternion(path: Path, header: NiftiStruct) -> npt.NDArray[np.float64]:
    """Return the unit quaternion whose imaginary part the header stores."""
    imaginary = np.array([float(header[f"quatern_{part}"]) for part in "bcd"])
    real_squared = 1.0 - float(imaginary @ imaginary)
    if not real_squared >= -_QUATERNION_TOLERANCE:
        reason = "the quaternion of the qform is not finite or longer than 1"
        raise image_error(path, "bad_quaternion", reason)
    # Close to a half turn the real part is lost in float32's rounding: it counts as 0 there.
    real = np.sqrt(real_squared) if real_squared > _QUATERNION_ROUNDING else 0.0
    quaternion = np.array([real, *imaginary])
    return quaternion / np.linalg.norm(quaternion)


def _rotation(quaternion: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the rotation matrix of a quaternion of about length 1."""
    w, x, y, z = (float(part) for part in quaternion)
    twice = 2.0 / (w * w + x * x + y * y + z * z)
    tx, ty, tz = x * twice, y * twice, z * twice
    return np.array(
        [
            [1.0 - (y * ty + z * tz), x * ty - w * tz, x * tz + w * ty],
            [x * ty + w * tz, 1.0 - (x * tx + z * tz), y * tz - w * tx],
            [x * tz - w * ty, y * tz + w * tx, 1.0 - (x * tx + y * ty)],
        ]
    )


def _voxel_size_affine(path: Path, header: NiftiStruct) -> Affine:
    """Return the 3 x 4 RAS affine that nibabel assumes: centred, x to the patient's left."""
    steps = _voxel_sizes(path, header) * [-1.0, 1.0, 1.0]
    centre = (np.array(header["dim"][1:4], dtype=np.float64) - 1) / 2
    return np.column_stack([np.diag(steps), -centre * steps])


def _voxel_sizes(path: Path, header: NiftiStruct) -> npt.NDArray[np.float64]:
    sizes = np.array(header["pixdim"][1:4], dtype=np.float64)
    check_spacing(path, sizes.tolist())
    return sizes
