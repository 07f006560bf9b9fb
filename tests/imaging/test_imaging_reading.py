"""What is sound is read right, checked against nibabel and SimpleITK."""

from __future__ import annotations

import bz2
import gzip
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from bad_inputs import AFFINE_RAS, SHAPE_XYZ, nifti_bytes, noise

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import affine_ras, same_grid
from sslmedsam2.imaging.reading import read_mask, read_volume
from sslmedsam2.imaging.volume import Geometry
from sslmedsam2.imaging.writing import write_mask


def _write(path: Path, voxels: np.ndarray | None = None, **options: object) -> Path:
    content = nifti_bytes(voxels, **options)
    path.write_bytes(gzip.compress(content, compresslevel=1) if path.suffix == ".gz" else content)
    return path


def _rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _assert_like_simpleitk(geometry: Geometry, path: Path) -> None:
    image = sitk.ReadImage(str(path))
    np.testing.assert_allclose(geometry.spacing_zyx_mm[::-1], image.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(geometry.origin_xyz_mm, image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(geometry.direction_xyz.ravel(), image.GetDirection(), atol=1e-5)
    assert geometry.shape_zyx == image.GetSize()[::-1]


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_every_real_voxel_type_in_both_byte_orders(
    tmp_path: Path, dtype: str, endianness: str
) -> None:
    voxels = (noise() % 100).astype(dtype)
    volume = read_volume(_write(tmp_path / "T1.nii.gz", voxels, endianness=endianness))
    np.testing.assert_array_equal(volume.array_zyx, voxels.T.astype(np.float32))
    assert volume.array_zyx.dtype == np.float32
    assert volume.array_zyx.flags.c_contiguous
    assert volume.source.native_dtype == np.dtype(dtype).newbyteorder(endianness)
    assert volume.repairs == ()


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_unset_slope_leaves_voxels_alone(tmp_path: Path, slope: float) -> None:
    volume = read_volume(_write(tmp_path / "T1.nii.gz", scl_slope=slope, scl_inter=5))
    np.testing.assert_array_equal(volume.array_zyx, noise().T)
    assert volume.repairs == ()


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    path = _write(tmp_path / "T1.nii", scl_slope=0.25, scl_inter=-10)
    np.testing.assert_array_equal(read_volume(path).array_zyx, noise().T * 0.25 - 10)
    assert read_volume(path).source.native_dtype == np.int16


@pytest.mark.parametrize("shape", [(12, 10, 6, 1), (12, 10, 6, 1, 1)])
def test_trailing_single_axes_are_dropped_and_remembered(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    volume = read_volume(_write(tmp_path / "T1.nii.gz", noise().reshape(shape)))
    np.testing.assert_array_equal(volume.array_zyx, noise().T)
    assert volume.source.native_shape == shape


def test_two_slices_are_a_volume(tmp_path: Path) -> None:
    volume = read_volume(_write(tmp_path / "T1.nii.gz", noise((12, 10, 2))))
    assert volume.geometry.shape_zyx == (2, 10, 12)


def test_nifti2_and_capital_extension(tmp_path: Path) -> None:
    volume = read_volume(_write(tmp_path / "T1.NII", header_class=nib.Nifti2Header))
    np.testing.assert_array_equal(volume.array_zyx, noise().T)


def test_header_extension_is_skipped(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), AFFINE_RAS)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note" * 30))
    nib.save(image, tmp_path / "T1.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "T1.nii.gz").array_zyx, noise().T)


def test_gzip_of_several_members(tmp_path: Path) -> None:
    content = nifti_bytes()
    path = tmp_path / "T1.nii.gz"
    path.write_bytes(gzip.compress(content[:700]) + gzip.compress(content[700:]))
    np.testing.assert_array_equal(read_volume(path).array_zyx, noise().T)


@pytest.mark.parametrize("form", ["sform_code", "qform_code"])
@pytest.mark.parametrize("handedness", [1, -1])
@pytest.mark.parametrize(
    "degrees", [(0, 0, 0), (12, -7, 30), (180, 0, 0), (3, 179.99, 0), (90, 45, -120)]
)
def test_geometry_agrees_with_nibabel_and_simpleitk(
    tmp_path: Path, form: str, handedness: int, degrees: tuple[float, float, float]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = _rotation(degrees) * [1.25, 1.25, 7.7 * handedness]
    affine[:3, 3] = [-140, 33, 812.5]
    path = _write(tmp_path / "T2.nii", affine_ras=affine, **{form: 0})
    volume = read_volume(path)
    assert volume.repairs == ()
    np.testing.assert_allclose(affine_ras(volume.geometry), nib.load(path).affine, atol=1e-4)
    _assert_like_simpleitk(volume.geometry, path)


def test_qfac_of_zero_counts_as_one(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    plain = read_volume(_write(tmp_path / "a.nii", affine_ras=affine, sform_code=0))
    zero = read_volume(_write(tmp_path / "b.nii", affine_ras=affine, sform_code=0, pixdim__0=0))
    assert same_grid(plain.geometry, zero.geometry)


def test_sform_is_preferred_to_qform(tmp_path: Path) -> None:
    volume = read_volume(_write(tmp_path / "T1.nii", qoffset_x=0))
    np.testing.assert_allclose(affine_ras(volume.geometry), AFFINE_RAS, atol=1e-4)


def test_without_forms_nibabels_convention_holds(tmp_path: Path) -> None:
    path = _write(tmp_path / "T1.nii", sform_code=0, qform_code=0)
    np.testing.assert_allclose(
        affine_ras(read_volume(path).geometry), nib.load(path).affine, atol=1e-5
    )


@pytest.mark.parametrize("extension", [".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("axes", [3, 4])
def test_itk_formats(tmp_path: Path, extension: str, axes: int) -> None:
    image = sitk.GetImageFromArray(noise().T)
    image.SetSpacing([0.8, 0.9, 3.5])
    image.SetOrigin([10, -20, 30])
    image.SetDirection((_rotation((5, 6, 7)) * [1, 1, -1]).ravel().tolist())
    path = tmp_path / f"scan{extension}"
    sitk.WriteImage(sitk.JoinSeries([image]) if axes == 4 else image, str(path))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array_zyx, noise().T)
    assert volume.geometry.spacing_zyx_mm == pytest.approx((3.5, 0.9, 0.8))
    assert volume.geometry.origin_xyz_mm == pytest.approx((10, -20, 30))
    np.testing.assert_allclose(
        volume.geometry.direction_xyz.ravel(), image.GetDirection(), atol=1e-9
    )
    assert volume.source.native_shape == (SHAPE_XYZ if axes == 3 else (*SHAPE_XYZ, 1))
    assert volume.source.native_dtype == np.int16
    assert volume.source.nifti_header is None
    assert volume.repairs == ()


@pytest.mark.parametrize("dtype", ["i2", "f8"])
def test_reading_holds_little_beside_the_volume(tmp_path: Path, dtype: str) -> None:
    shape = (256, 256, 96)
    path = _write(tmp_path / "T1.nii.gz", np.resize(noise(), shape).astype(dtype))
    tracemalloc.start()
    volume = read_volume(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * volume.array_zyx.nbytes


def test_mask_may_be_empty_and_counts_every_label(tmp_path: Path) -> None:
    empty = read_mask(_write(tmp_path / "empty.nii.gz", np.zeros(SHAPE_XYZ, np.uint8)))
    assert empty.array_zyx.dtype == np.uint8
    assert not empty.array_zyx.any()
    labels = (noise() % 4 - 1).astype(np.float32)
    labels[0, 0, 0] = np.nan
    mask = read_mask(_write(tmp_path / "labels.nii.gz", labels))
    np.testing.assert_array_equal(mask.array_zyx, (labels.T > 0).astype(np.uint8))


def _scan() -> nib.Nifti1Image:
    voxels = np.random.default_rng(1).integers(0, 900, (10, 11, 12)).astype(np.int16)
    image = nib.Nifti1Image(voxels, np.diag([-2.0, -2.5, 6.0, 1.0]))
    image.set_qform(image.affine, code=1)
    return image


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001)])
def test_lengths_in_other_units_are_converted(tmp_path, kind, unit, factor):
    sound = _scan()
    affine = sound.affine.copy()
    affine[:3] /= factor
    image = kind(np.asarray(sound.dataobj), affine)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "other.nii.gz")
    nib.save(sound, tmp_path / "sound.nii.gz")

    found, expected = read_volume(tmp_path / "other.nii.gz"), read_volume(tmp_path / "sound.nii.gz")

    assert same_grid(found.geometry, expected.geometry)
    assert any(note.startswith("units: ") for note in found.repairs)
    mask = np.zeros(found.geometry.shape_zyx, np.uint8)
    mask[3:6, 4:8, 2:7] = 1
    write_mask(mask, like=found, path=tmp_path / "mask.nii.gz")
    assert same_grid(read_mask(tmp_path / "mask.nii.gz").geometry, found.geometry)


def test_a_unit_that_no_scan_can_have_is_passed_over(tmp_path):
    image = _scan()
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "wrong.nii")

    assert read_volume(tmp_path / "wrong.nii").geometry.spacing_zyx_mm == (6.0, 2.5, 2.0)


def test_the_unit_of_an_nrrd_is_converted(tmp_path):
    image = sitk.GetImageFromArray(np.random.default_rng(1).integers(0, 900, (12, 11, 10)))
    image.SetSpacing((0.2, 0.25, 0.6))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    header, _, data = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    line = b'\nspace units: "cm" "cm" "cm"'
    (tmp_path / "a.nrrd").write_bytes(header + line + b"\n\n" + data)

    found = read_volume(tmp_path / "a.nrrd")

    assert np.allclose(found.geometry.spacing_zyx_mm, (6.0, 2.5, 2.0))


def test_an_unused_length_of_0_counts_as_1(tmp_path):
    image = _scan()
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[40:56] = np.array([4, 10, 11, 12, 0, 0, 0, 0], "<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(bytes(content))

    found = read_volume(tmp_path / "a.nii")

    assert found.geometry.shape_zyx == (12, 11, 10)
    write_mask(np.ones((12, 11, 10), np.uint8), like=found, path=tmp_path / "mask.nii.gz")
    assert nib.load(tmp_path / "mask.nii.gz").shape == (10, 11, 12, 1)


@pytest.mark.parametrize("tail", [b"\n", b"trailing garbage"])
def test_bytes_after_a_complete_gzip_member_are_noted(tmp_path, tail):
    nib.save(_scan(), tmp_path / "a.nii.gz")
    with (tmp_path / "a.nii.gz").open("ab") as file:
        file.write(tail)

    found = read_volume(tmp_path / "a.nii.gz")

    assert any(note.startswith("trailing_bytes: ") for note in found.repairs)


def test_channel_first_gets_the_right_advice(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((1, 10, 11, 12), np.int16), np.eye(4)), tmp_path / "a.nii")

    with pytest.raises(InputError) as caught:
        read_volume(tmp_path / "a.nii")

    assert caught.value.kind == "channel_first"
    assert "axes x, y, z" in caught.value.remedy


@pytest.mark.parametrize("name", ["a.nii.bz2", "a.hdr", "a.mgz", "a.nhdr"])
def test_further_formats_are_read_as_their_nifti_twin(tmp_path, name):
    scan = _scan()
    nib.save(scan, tmp_path / "twin.nii.gz")
    twin = read_volume(tmp_path / "twin.nii.gz")
    path = tmp_path / name
    if name == "a.nhdr":
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "twin.nii.gz")), str(path))
    elif name == "a.hdr":
        nib.save(nib.Nifti1Pair(np.asarray(scan.dataobj), scan.affine), path)
    elif name == "a.mgz":
        nib.save(nib.MGHImage(np.asarray(scan.dataobj).astype(np.int32), scan.affine), path)
    else:
        nib.save(scan, path)

    found = read_volume(path)

    assert same_grid(found.geometry, twin.geometry)
    assert np.array_equal(found.array_zyx, twin.array_zyx)


@pytest.mark.parametrize("name", ["a.nii.bz2", "a.hdr", "a.mgz", "a.par", "a.nhdr"])
def test_damaged_files_of_further_formats_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"BZh9 no image at all")

    with pytest.raises(InputError) as caught:
        read_volume(tmp_path / name)

    assert str(caught.value).startswith(str(tmp_path / name))
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_bzip2_is_told_by_its_content_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(bz2.compress(nifti_bytes()))

    np.testing.assert_array_equal(read_volume(path).array_zyx, noise().T)


def _analyze(folder):
    image = nib.Spm2AnalyzeImage(noise(), np.diag([2.0, 2.0, 5.0, 1.0]))
    nib.save(image, folder / "a.hdr")
    (folder / "a.mat").unlink(missing_ok=True)
    return folder / "a.hdr"


def _text(name, *lines):
    def write(folder):
        content = "\n".join(lines).encode() + b"\n" + noise().tobytes(order="F")
        (folder / name).write_bytes(content)
        return folder / name

    return write


_META = ("ObjectType = Image", "NDims = 3", "DimSize = 12 10 6", "ElementType = MET_SHORT")
_DATA = "ElementDataFile = LOCAL"
_NRRD = ("NRRD0004", "type: short", "dimension: 3", "sizes: 12 10 6", "endian: little")


@pytest.mark.parametrize(
    ("write", "noted"),
    [
        (_analyze, ["no_orientation"]),
        (_text("a.mha", *_META, _DATA), ["no_spacing", "no_orientation"]),
        (_text("a.mha", *_META, "ElementSpacing = 2 2 5", _DATA), ["no_orientation"]),
        (_text("a.mha", *_META, "Orientation = 1 0 0 0 1 0 0 0 1", _DATA), ["no_spacing"]),
        (_text("a.nrrd", *_NRRD, "encoding: raw", ""), ["no_spacing", "no_orientation"]),
        (
            _text(
                "a.nrrd",
                *_NRRD,
                "encoding: raw",
                "space dimension: 3",
                "space directions: (2,0,0) (0,2,0) (0,0,5)",
                "",
            ),
            ["no_orientation"],
        ),
    ],
)
def test_a_header_without_voxel_size_or_orientation_is_noted(tmp_path, write, noted):
    repairs = read_volume(write(tmp_path)).repairs

    assert [one.partition(":")[0] for one in repairs] == noted


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (bytes(128) + b"DICM" + bytes(400), "a DICOM image"),
        (b"PK\x03\x04" + bytes(400), "an archive"),
        (b"ObjectType = Image\n" + bytes(400), "a MetaImage"),
    ],
)
def test_a_file_that_holds_something_else_says_what(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputError, match=said):
        read_volume(tmp_path / name)
