"""Files that a user might hand over by mistake, each with what the project must make of it.

``BAD_INPUTS`` is the table: for each entry ``write(folder, stem)`` makes the file and returns its
path; ``kind`` is the ``InputError.kind`` it must be refused with; for a file that must be read all
the same, ``repair`` is the name that opens the repair's note instead.
"""

from __future__ import annotations

import bz2
import gzip
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

Writer = Callable[[Path, str], Path]

SHAPE_XYZ = (12, 10, 6)
AFFINE_RAS = np.array(
    [[-1.5, 0, 0, 90], [0, 1.5, 0, -80], [0, 0, 4.0, -60], [0, 0, 0, 1]], dtype=np.float64
)


@dataclass(frozen=True)
class BadInput:
    write: Writer
    kind: str | None = None
    repair: str | None = None


def noise(shape: tuple[int, ...] = SHAPE_XYZ) -> np.ndarray:
    """Return int16 voxels, x first, that no check finds fault with."""
    return np.random.default_rng(7).integers(0, 900, size=shape, dtype=np.int16)


def nifti_bytes(
    voxels: np.ndarray | None = None,
    *,
    affine_ras: np.ndarray = AFFINE_RAS,
    header_class: type[nib.Nifti1Header] = nib.Nifti1Header,
    endianness: str = "<",
    **fields: object,
) -> bytes:
    """Return a NIfTI file with header fields set as told, however wrong; no field is checked."""
    voxels = noise() if voxels is None else voxels
    header = header_class(endianness=endianness)
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header.set_qform(affine_ras, code=1)
    header.set_sform(affine_ras, code=1)
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"] = 1
    for name, value in fields.items():
        field, _, index = name.partition("__")
        if index:
            header[field][int(index)] = value
        else:
            header[field] = value
    stored = voxels.astype(voxels.dtype.newbyteorder(endianness))
    return header.binaryblock + bytes(4) + stored.tobytes(order="F")


def _file(extension: str, content: Callable[[], bytes]) -> Writer:
    def write(folder: Path, stem: str) -> Path:
        path = folder / f"{stem}{extension}"
        path.write_bytes(content())
        return path

    return write


def _nifti_gz(voxels: np.ndarray | None = None, **options: object) -> Writer:
    return _file(".nii.gz", lambda: gzip.compress(nifti_bytes(voxels, **options), mtime=0))


def _nifti(voxels: np.ndarray | None = None, **options: object) -> Writer:
    return _file(".nii", lambda: nifti_bytes(voxels, **options))


def _affine(**entries: float) -> np.ndarray:
    """Return the affine with some entries changed: ``_affine(_01=0.5)`` is row 0, column 1."""
    affine = AFFINE_RAS.copy()
    for name, value in entries.items():
        affine[int(name[1]), int(name[2])] = value
    return affine


def _sform(affine: np.ndarray, *, qform_code: int = 0) -> dict[str, object]:
    """Return header fields that set the sform to any matrix."""
    rows = {f"srow_{axis}": affine[index] for index, axis in enumerate("xyz")}
    return {**rows, "qform_code": qform_code}


def _qform_only(**fields: object) -> dict[str, object]:
    return {"sform_code": 0, **fields}


def _itk_bytes(
    folder: Path, extension: str, *, voxels: np.ndarray | None = None, compressed: bool = False
) -> bytes:
    voxels = noise() if voxels is None else voxels
    image = sitk.GetImageFromArray(voxels.T)
    image.SetSpacing([1.5, 1.5, 4.0][: voxels.ndim])
    scratch = folder / f".scratch{extension}"
    sitk.WriteImage(image, str(scratch), useCompression=compressed)
    content = scratch.read_bytes()
    scratch.unlink()
    return content


def _itk(
    extension: str,
    edit: Callable[[bytes], bytes] = lambda content: content,
    *,
    voxels: np.ndarray | None = None,
    compressed: bool = False,
) -> Writer:
    """Write a sound MetaImage or NRRD file, then edit its bytes."""

    def write(folder: Path, stem: str) -> Path:
        path = folder / f"{stem}{extension}"
        content = _itk_bytes(folder, extension, voxels=voxels, compressed=compressed)
        edited = edit(content)
        path.write_bytes(edited)
        return path

    return write


def _replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return edit


def _without_end(count: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:-count]


def _flipped_byte(content: bytes) -> bytes:
    """Damage a compressed stream about two thirds on its way."""
    position = len(content) * 2 // 3
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


def _with(voxels: np.ndarray, value: float, *, count: int) -> np.ndarray:
    changed = voxels.astype(np.float32)
    changed.flat[:count] = value
    return changed


def _itk_image(extension: str, make: Callable[[], sitk.Image]) -> Writer:
    def write(folder: Path, stem: str) -> Path:
        path = folder / f"{stem}{extension}"
        sitk.WriteImage(make(), str(path))
        return path

    return write


def _two_frames() -> sitk.Image:
    frame = sitk.GetImageFromArray(noise().T)
    return sitk.JoinSeries([frame, frame])


def _three_channels() -> sitk.Image:
    channel = sitk.GetImageFromArray(noise().T)
    return sitk.Compose(channel, channel, channel)


def _missing(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.nii.gz"


def _broken_symlink(folder: Path, stem: str) -> Path:
    path = folder / f"{stem}.nii.gz"
    path.symlink_to(folder / "nowhere.nii.gz")
    return path


def _folder_with_image_name(folder: Path, stem: str) -> Path:
    path = folder / f"{stem}.nii.gz"
    path.mkdir()
    return path


def _unreadable_by_permission(folder: Path, stem: str) -> Path:
    path = _nifti_gz()(folder, stem)
    path.chmod(0)
    return path


def _metaimage_without_data(folder: Path, stem: str) -> Path:
    path = folder / f"{stem}.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(noise().T), str(path))
    path.with_suffix(".raw").unlink()
    return path


def _wrong_checksum() -> bytes:
    content = bytearray(gzip.compress(nifti_bytes(), mtime=0))
    content[-8:-4] = (zlib.crc32(b"something else")).to_bytes(4, "little")
    return bytes(content)


_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
_ONE_DEGREE_OFF = _affine(_01=1.5 * 0.01)
_TEN_DEGREES_OFF = _affine(_01=1.5 * 0.17)

_ABOUT_THE_FILE = {
    "missing": BadInput(_missing, kind="missing_file"),
    "broken_symlink": BadInput(_broken_symlink, kind="broken_symlink"),
    "folder_with_image_name": BadInput(_folder_with_image_name, kind="not_a_file"),
    "unsupported_extension": BadInput(
        _file(".jpg", lambda: b"\xff\xd8\xff"), kind="unsupported_extension"
    ),
    "zero_bytes": BadInput(_file(".nii.gz", lambda: b""), kind="empty_file"),
    "text_named_nifti_gz": BadInput(
        _file(".nii.gz", lambda: b"not an image\n" * 90), kind="unreadable_header"
    ),
    "short_text_named_nifti": BadInput(_file(".nii", lambda: b"hi"), kind="unreadable_header"),
    "gzipped_text": BadInput(
        _file(".nii.gz", lambda: gzip.compress(b"not an image\n" * 90)), kind="unreadable_header"
    ),
    "text_named_mha": BadInput(_file(".mha", lambda: b"not an image"), kind="unreadable_header"),
    "text_named_nrrd": BadInput(_file(".nrrd", lambda: b"not an image"), kind="unreadable_header"),
    "truncated_gzip": BadInput(
        _file(".nii.gz", lambda: gzip.compress(nifti_bytes())[:-200]), kind="truncated_data"
    ),
    "gzip_ends_in_header": BadInput(
        _file(".nii.gz", lambda: gzip.compress(nifti_bytes())[:40]), kind="truncated_data"
    ),
    "damaged_gzip": BadInput(
        _file(".nii.gz", lambda: _flipped_byte(gzip.compress(nifti_bytes(), mtime=0))),
        kind="corrupt_data",
    ),
    "wrong_checksum": BadInput(_file(".nii.gz", _wrong_checksum), kind="corrupt_data"),
    "damaged_bzip2": BadInput(
        _file(".nii.bz2", lambda: _flipped_byte(bz2.compress(nifti_bytes()))), kind="corrupt_data"
    ),
    "bzip2_damaged_from_its_start": BadInput(
        _file(".nii.bz2", lambda: b"BZh9" + bytes(400)), kind="corrupt_data"
    ),
    "truncated_bzip2": BadInput(
        _file(".nii.bz2", lambda: bz2.compress(nifti_bytes())[:-200]), kind="truncated_data"
    ),
    "bzip2_claims_too_many_slices": BadInput(
        _file(".nii.bz2", lambda: bz2.compress(nifti_bytes(dim__1=512, dim__2=512, dim__3=2000))),
        kind="truncated_data",
    ),
    "truncated_nifti": BadInput(_file(".nii", lambda: nifti_bytes()[:-100]), kind="truncated_data"),
    "header_claims_more_slices": BadInput(_nifti_gz(dim__3=60), kind="truncated_data"),
    "header_claims_far_more": BadInput(
        _nifti_gz(dim__1=512, dim__2=512, dim__3=500), kind="truncated_data"
    ),
    "truncated_mha": BadInput(_itk(".mha", _without_end(100)), kind="truncated_data"),
    "truncated_compressed_mha": BadInput(
        _itk(".mha", _without_end(100), compressed=True), kind="truncated_data"
    ),
    "damaged_compressed_mha": BadInput(
        _itk(".mha", _flipped_byte, compressed=True), kind="corrupt_data"
    ),
    "compressed_mha_claims_more_slices": BadInput(
        _itk(".mha", _replaced(b"DimSize = 12 10 6", b"DimSize = 12 10 9"), compressed=True),
        kind="truncated_data",
    ),
    "mhd_without_data_file": BadInput(_metaimage_without_data, kind="missing_data_file"),
    "truncated_nrrd": BadInput(_itk(".nrrd", _without_end(100)), kind="truncated_data"),
    "damaged_compressed_nrrd": BadInput(
        _itk(".nrrd", _flipped_byte, compressed=True), kind="corrupt_data"
    ),
    "nrrd_in_a_space_without_a_name": BadInput(
        _itk(".nrrd", _replaced(b"space: left-posterior-superior", b"space:")),
        kind="unreadable_header",
    ),
    "damaged_nrrd_header": BadInput(
        _itk(".nrrd", _replaced(b"sizes: 12 10 6", b"sizes: twelve")), kind="unreadable_header"
    ),
}

_ABOUT_THE_HEADER = {
    "pair_header_only": BadInput(_nifti(magic=b"ni1"), kind="nifti_pair"),
    "no_magic": BadInput(_nifti(magic=b""), kind="unreadable_header"),
    "impossible_number_of_axes": BadInput(_nifti(dim__0=9), kind="unreadable_header"),
    "unknown_voxel_type": BadInput(_nifti(datatype=77), kind="unreadable_header"),
    "voxels_begin_in_header": BadInput(_nifti(vox_offset=100), kind="unreadable_header"),
    "voxels_begin_nowhere": BadInput(_nifti(vox_offset=1e30), kind="unreadable_header"),
    "voxels_begin_past_end": BadInput(_nifti_gz(vox_offset=1e9), kind="truncated_data"),
    "binary_voxels": BadInput(_nifti(datatype=1, bitpix=1), kind="unsupported_dtype"),
    "rgb": BadInput(_nifti_gz(np.zeros(SHAPE_XYZ, dtype=_RGB)), kind="multi_channel"),
    "complex": BadInput(_nifti_gz(noise().astype(np.complex64)), kind="complex"),
    "vector_voxels": BadInput(_nifti_gz(noise((12, 10, 6, 1, 3))), kind="multi_channel"),
    "two_dimensional": BadInput(_nifti_gz(noise((12, 10))), kind="two_dimensional"),
    "single_slice": BadInput(_nifti_gz(noise((12, 10, 1))), kind="single_slice"),
    "single_sagittal_slice": BadInput(_nifti_gz(noise((1, 12, 10))), kind="single_slice"),
    "multi_frame": BadInput(_nifti_gz(noise((12, 10, 6, 2))), kind="multi_frame"),
    "no_slices": BadInput(_nifti_gz(dim__3=0), kind="zero_size"),
    "negative_size": BadInput(_nifti_gz(dim__1=-12), kind="zero_size"),
    "nifti1_claims_too_much": BadInput(
        _nifti_gz(dim__1=32767, dim__2=32767, dim__3=32767), kind="too_large"
    ),
    "nifti2_claims_too_much": BadInput(
        _nifti_gz(header_class=nib.Nifti2Header, dim__1=100000, dim__2=100000, dim__3=100000),
        kind="too_large",
    ),
    "mha_claims_too_much": BadInput(
        _itk(".mha", _replaced(b"DimSize = 12 10 6", b"DimSize = 100000 100000 100000")),
        kind="too_large",
    ),
    "nrrd_claims_too_much": BadInput(
        _itk(".nrrd", _replaced(b"sizes: 12 10 6", b"sizes: 100000 100000 100000")),
        kind="too_large",
    ),
    "two_dimensional_mha": BadInput(_itk(".mha", voxels=noise((12, 10))), kind="two_dimensional"),
    "multi_frame_mha": BadInput(_itk_image(".mha", _two_frames), kind="multi_frame"),
    "vector_nrrd": BadInput(_itk_image(".nrrd", _three_channels), kind="multi_channel"),
}

_ABOUT_THE_GEOMETRY = {
    "zero_spacing": BadInput(_nifti_gz(**_qform_only(pixdim__1=0)), kind="bad_spacing"),
    "negative_spacing": BadInput(_nifti_gz(**_qform_only(pixdim__2=-1.5)), kind="bad_spacing"),
    "nan_spacing": BadInput(_nifti_gz(**_qform_only(pixdim__3=np.nan)), kind="bad_spacing"),
    "zero_spacing_without_forms": BadInput(
        _nifti_gz(sform_code=0, qform_code=0, pixdim__1=0), kind="bad_spacing"
    ),
    "spacing_in_metres": BadInput(_nifti_gz(**_sform(AFFINE_RAS * 0.001)), kind="bad_spacing"),
    "spacing_of_half_a_metre": BadInput(_nifti_gz(**_sform(_affine(_22=500))), kind="bad_spacing"),
    "singular_affine": BadInput(
        _nifti_gz(**_sform(_affine(_00=0, _10=1.5))), kind="singular_affine"
    ),
    "all_zero_affine": BadInput(_nifti_gz(**_sform(AFFINE_RAS * 0)), kind="singular_affine"),
    "nan_affine": BadInput(_nifti_gz(**_sform(_affine(_00=np.nan))), kind="non_finite_affine"),
    "infinite_origin": BadInput(_nifti_gz(**_sform(_affine(_03=np.inf))), kind="non_finite_affine"),
    "origin_a_light_year_away": BadInput(
        _itk(".mha", _replaced(b"Offset = 0 0 0", b"Offset = 9.5e18 0 0")),
        kind="non_finite_affine",
    ),
    "sheared_affine": BadInput(_nifti_gz(**_sform(_TEN_DEGREES_OFF)), kind="sheared_affine"),
    "long_quaternion": BadInput(
        _nifti_gz(**_qform_only(quatern_b=0.9, quatern_c=0.9)), kind="bad_quaternion"
    ),
    "zero_spacing_mha": BadInput(
        _itk(".mha", _replaced(b"ElementSpacing = 1.5", b"ElementSpacing = 0.0")),
        kind="bad_spacing",
    ),
    "negative_spacing_mha": BadInput(
        _itk(".mha", _replaced(b"ElementSpacing = 1.5", b"ElementSpacing = -1.5")),
        kind="bad_spacing",
    ),
    "singular_mha": BadInput(
        _itk(".mha", _replaced(b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 1 0 0")),
        kind="singular_affine",
    ),
    "sheared_nrrd": BadInput(
        _itk(".nrrd", _replaced(b"(0,1.5,0)", b"(0.5,1.5,0)")), kind="sheared_affine"
    ),
}

_ABOUT_THE_VOXELS = {
    "all_zero": BadInput(_nifti_gz(np.zeros(SHAPE_XYZ, np.int16)), kind="constant"),
    "constant": BadInput(_nifti_gz(np.full(SHAPE_XYZ, 42.5, np.float32)), kind="constant"),
    "constant_but_for_nan": BadInput(
        _nifti_gz(_with(np.full(SHAPE_XYZ, 3), np.nan, count=5)), kind="constant"
    ),
    "all_nan": BadInput(_nifti_gz(np.full(SHAPE_XYZ, np.nan, np.float32)), kind="no_finite_voxels"),
    "all_nan_mha": BadInput(
        _itk(".mha", voxels=np.full(SHAPE_XYZ, np.nan, np.float32)), kind="no_finite_voxels"
    ),
}

_REPAIRED = {
    "nan_voxels": BadInput(_nifti_gz(_with(noise(), np.nan, count=9)), repair="non_finite_voxels"),
    "infinite_voxels": BadInput(
        _nifti_gz(_with(noise(), -np.inf, count=9)), repair="non_finite_voxels"
    ),
    "nan_voxels_mha": BadInput(
        _itk(".mha", voxels=_with(noise(), np.nan, count=9)), repair="non_finite_voxels"
    ),
    "beyond_float32": BadInput(
        _nifti_gz(np.where(noise() > 890, 1e300, noise().astype(np.float64))),
        repair="non_finite_voxels",
    ),
    "gzip_named_nii": BadInput(
        _file(".nii", lambda: gzip.compress(nifti_bytes())), repair="misnamed"
    ),
    "plain_named_nii_gz": BadInput(_file(".nii.gz", nifti_bytes), repair="misnamed"),
    "tiny_shear": BadInput(_nifti_gz(**_sform(_ONE_DEGREE_OFF)), repair="tiny_shear"),
    "no_forms": BadInput(_nifti_gz(sform_code=0, qform_code=0), repair="no_orientation"),
    "forms_disagree": BadInput(_nifti_gz(qoffset_x=0), repair="forms_disagree"),
    "sheared_sform_sound_qform": BadInput(
        _nifti_gz(**_sform(_TEN_DEGREES_OFF, qform_code=1)), repair="unusable_form"
    ),
    "sound_sform_unusable_qform": BadInput(_nifti_gz(quatern_b=np.nan), repair="unusable_form"),
    "infinite_slope": BadInput(_nifti_gz(scl_slope=np.inf), repair="bad_scaling"),
    "nan_intercept": BadInput(_nifti_gz(scl_slope=2, scl_inter=np.nan), repair="bad_scaling"),
}

BAD_INPUTS: dict[str, BadInput] = {
    **_ABOUT_THE_FILE,
    **_ABOUT_THE_HEADER,
    **_ABOUT_THE_GEOMETRY,
    **_ABOUT_THE_VOXELS,
    **_REPAIRED,
}
# The superuser may read everything, so for that user this input does not exist.
if os.geteuid() != 0:
    BAD_INPUTS["permission_denied"] = BadInput(_unreadable_by_permission, kind="permission_denied")
