"""A mask lands on the exact grid of its image, whoever looks at it."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from bad_inputs import AFFINE_RAS, BAD_INPUTS, SHAPE_XYZ, nifti_bytes, noise

from sslmedsam2.errors import OutputError
from sslmedsam2.imaging import nifti_writing, writing
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.orientation import to_canonical, to_native
from sslmedsam2.imaging.reading import read_mask, read_volume
from sslmedsam2.imaging.volume import Volume
from sslmedsam2.imaging.writing import write_labels, write_map, write_mask

PLACING_FIELDS = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
MASK_XYZ = (noise() > 450).astype(np.uint8)
OBLIQUE_LEFT_HANDED = np.array(
    [
        [-1.2, 0.05, -0.3, 70.123],
        [0.05, 1.2, 0.4, -60.7],
        [-0.0729, 0.0961, -4.0, 12.0],
        [0, 0, 0, 1],
    ]
)


def _image(path: Path, voxels: np.ndarray | None = None, **options: object) -> Volume:
    path.write_bytes(gzip.compress(nifti_bytes(voxels, **options)))
    return read_volume(path)


def _raw_header(path: Path, header_class: type = nib.Nifti1Header) -> nib.Nifti1Header:
    with gzip.open(path) as stream:
        return header_class(stream.read(header_class.sizeof_hdr), check=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sform_code": 2, "qform_code": 1, "xyzt_units": 10},
        {"sform_code": 0, "qform_code": 3},
        {"sform_code": 4, "qform_code": 0},
        {"sform_code": 0, "qform_code": 0},
        {"qoffset_x": 1.25},
        {"pixdim__0": 0},
        {"pixdim__4": 2.5, "xyzt_units": 2},
        {"srow_x": [-1.5, 0.015, 0, 90], "qform_code": 0},
        {"affine_ras": np.diag([-1.0, 2.0, 3.0, 1.0])},
        {"endianness": ">"},
        {"scl_slope": np.nan, "scl_inter": np.nan},
        {"scl_slope": 0.5, "scl_inter": -20, "cal_max": 800, "intent_code": 1001},
    ],
)
def test_placing_fields_are_repeated_bit_for_bit(
    tmp_path: Path, options: dict[str, object]
) -> None:
    image = _image(tmp_path / "GED4.nii.gz", **options)
    out = tmp_path / "GED4_pred.nii.gz"
    write_mask(MASK_XYZ.T, like=image, path=out)
    source, written = _raw_header(tmp_path / "GED4.nii.gz"), _raw_header(out)
    for field in PLACING_FIELDS:
        assert written[field].tobytes() == source[field].tobytes(), field
    assert (written["scl_slope"], written["scl_inter"]) == (1, 0)
    assert (written["cal_min"], written["cal_max"]) == (0, 1)
    assert written["intent_code"] == 0
    found = nib.load(out)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(found.dataobj), MASK_XYZ)
    assert same_grid(read_mask(out).geometry, image.geometry)


@pytest.mark.parametrize("shape", [(12, 10, 6, 1), (12, 10, 6, 1, 1)])
def test_trailing_single_axes_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = _image(tmp_path / "T1.nii.gz", noise().reshape(shape))
    write_mask(MASK_XYZ.T, like=image, path=tmp_path / "T1_pred.nii.gz")
    found = nib.load(tmp_path / "T1_pred.nii.gz")
    assert found.shape == shape
    np.testing.assert_array_equal(np.asarray(found.dataobj), MASK_XYZ.reshape(shape))


@pytest.mark.parametrize("stored", ["i2", "f4", "f8", "u8"])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_voxel_type_of_the_input_on_request(tmp_path: Path, stored: str, endianness: str) -> None:
    image = _image(tmp_path / "T1.nii.gz", noise().astype(stored), endianness=endianness)
    write_mask(MASK_XYZ.T, like=image, path=tmp_path / "p.nii.gz", dtype="input")
    found = nib.load(tmp_path / "p.nii.gz")
    assert found.get_data_dtype() == np.dtype(stored).newbyteorder(endianness)
    np.testing.assert_array_equal(np.asarray(found.dataobj), MASK_XYZ)


def test_nifti2_stays_nifti2(tmp_path: Path) -> None:
    image = _image(tmp_path / "T1.nii.gz", header_class=nib.Nifti2Header)
    write_mask(MASK_XYZ.T, like=image, path=tmp_path / "p.nii.gz")
    source = _raw_header(tmp_path / "T1.nii.gz", nib.Nifti2Header)
    written = _raw_header(tmp_path / "p.nii.gz", nib.Nifti2Header)
    for field in PLACING_FIELDS:
        assert written[field].tobytes() == source[field].tobytes(), field
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "p.nii.gz").dataobj), MASK_XYZ)


def test_unusable_voxel_sizes_are_not_repeated(tmp_path: Path) -> None:
    image = _image(tmp_path / "T1.nii.gz", qform_code=0, pixdim__1=0, pixdim__3=np.nan)
    write_mask(MASK_XYZ.T, like=image, path=tmp_path / "p.nii.gz")
    found = nib.load(tmp_path / "p.nii.gz")
    np.testing.assert_allclose(found.header.get_zooms(), (1.5, 1.5, 4.0))
    np.testing.assert_allclose(found.affine, AFFINE_RAS)


@pytest.mark.parametrize("name", [name for name, bad in BAD_INPUTS.items() if bad.repair])
def test_repaired_images_get_masks_on_their_grid(tmp_path: Path, name: str) -> None:
    image = read_volume(BAD_INPUTS[name].write(tmp_path, "GED4"))
    out = tmp_path / "out" / "GED4_pred.nii.gz"
    write_mask(MASK_XYZ.T, like=image, path=out)
    assert same_grid(read_mask(out).geometry, image.geometry)
    np.testing.assert_array_equal(read_mask(out).array_zyx, MASK_XYZ.T)


def test_simpleitk_sees_image_and_mask_on_one_grid(tmp_path: Path) -> None:
    image = _image(tmp_path / "T1.nii.gz", affine_ras=OBLIQUE_LEFT_HANDED)
    canonical = to_canonical(image)
    mask = to_native(canonical.array_zyx > 450, canonical.reorientation)
    write_mask(mask, like=image, path=tmp_path / "p.nii.gz")
    first, second = (sitk.ReadImage(str(tmp_path / name)) for name in ("T1.nii.gz", "p.nii.gz"))
    assert first.GetSize() == second.GetSize()
    assert first.GetSpacing() == second.GetSpacing()
    assert first.GetOrigin() == second.GetOrigin()
    assert first.GetDirection() == second.GetDirection()
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(second), sitk.GetArrayFromImage(first) > 450
    )


@pytest.mark.parametrize("source_extension", [".mha", ".nrrd"])
@pytest.mark.parametrize("extension", [".mha", ".nrrd", ".nii.gz", ".nii"])
@pytest.mark.parametrize("axes", [3, 4])
def test_mask_of_an_itk_image_in_any_format(
    tmp_path: Path, source_extension: str, extension: str, axes: int
) -> None:
    original = sitk.GetImageFromArray(noise().T)
    original.SetSpacing([1.5, 1.5, 4.0])
    original.SetOrigin([-10.5, 20, 33.25])
    original.SetDirection([0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, -1])
    source = tmp_path / f"scan{source_extension}"
    sitk.WriteImage(sitk.JoinSeries([original]) if axes == 4 else original, str(source))
    out = tmp_path / f"mask{extension}"
    write_mask(MASK_XYZ.T, like=read_volume(source), path=out)
    found = sitk.ReadImage(str(out))
    if extension.startswith(".nii"):
        header = nib.load(out).header
        assert (header["qform_code"], header["sform_code"]) == (1, 1)
    # SimpleITK drops a trailing axis of one element where the format is NIfTI.
    assert found.GetSize() in {SHAPE_XYZ, (*SHAPE_XYZ, 1)}
    volume = sitk.Extract(found, [*SHAPE_XYZ, 0]) if found.GetDimension() == 4 else found
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume), MASK_XYZ.T)
    np.testing.assert_allclose(volume.GetSpacing(), original.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(volume.GetOrigin(), original.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(volume.GetDirection(), original.GetDirection(), atol=1e-6)


def test_mask_of_a_nifti_image_as_nrrd(tmp_path: Path) -> None:
    image = _image(tmp_path / "T1.nii.gz", affine_ras=OBLIQUE_LEFT_HANDED, endianness=">")
    write_mask(MASK_XYZ.T, like=image, path=tmp_path / "p.nrrd", dtype="input")
    found = sitk.ReadImage(str(tmp_path / "p.nrrd"))
    assert found.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), MASK_XYZ.T)
    assert same_grid(read_mask(tmp_path / "p.nrrd").geometry, image.geometry)


def test_map_keeps_its_values(tmp_path: Path) -> None:
    image = _image(tmp_path / "T1.nii.gz")
    probability = (noise().T / 1000).astype(np.float32)
    write_map(probability, like=image, path=tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "p.nii.gz").dataobj), probability.T
    )


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    image = _image(tmp_path / "T1.nii.gz")
    write_mask(MASK_XYZ.T, like=image, path=tmp_path / "a.nii.gz")
    write_mask(MASK_XYZ.T > 0, like=image, path=tmp_path / "b.nii.gz")
    first = (tmp_path / "a.nii.gz").read_bytes()
    assert first == (tmp_path / "b.nii.gz").read_bytes()
    # Bytes 4 to 7 hold the time of compression.
    assert first[4:8] == bytes(4)


def test_wrong_shape_or_values_are_programming_errors(tmp_path: Path) -> None:
    image = _image(tmp_path / "T1.nii.gz")
    with pytest.raises(ValueError, match="shape"):
        write_mask(MASK_XYZ, like=image, path=tmp_path / "p.nii.gz")
    with pytest.raises(ValueError, match="0 and 1"):
        write_mask(MASK_XYZ.T * 2, like=image, path=tmp_path / "p.nii.gz")
    assert not (tmp_path / "p.nii.gz").exists()


@pytest.mark.parametrize("name", ["mask.mhd", "mask.png", "mask"])
def test_format_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    image = _image(tmp_path / "T1.nii.gz")
    with pytest.raises(OutputError, match="cannot be written"):
        write_mask(MASK_XYZ.T, like=image, path=tmp_path / name)


@pytest.mark.parametrize("extension", [".nii.gz", ".mha"])
def test_folder_that_cannot_be_made(tmp_path: Path, extension: str) -> None:
    image = _image(tmp_path / "T1.nii.gz")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError) as caught:
        write_mask(MASK_XYZ.T, like=image, path=tmp_path / "out" / f"mask{extension}")
    assert str(tmp_path / "out") in caught.value.subject


def _swapped_voxels(written: bytes) -> bytes:
    content = bytearray(gzip.decompress(written))
    content[-1] ^= 1
    return gzip.compress(bytes(content))


def _shifted_origin(written: bytes) -> bytes:
    content = bytearray(gzip.decompress(written))
    header = nib.Nifti1Header(bytes(content[:348]))
    header["srow_x"][3] += 0.001
    return gzip.compress(header.binaryblock + bytes(content[348:]))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_swapped_voxels, "another content"),
        (_shifted_origin, "another header"),
        (lambda written: written[:-20], "cannot be read back"),
    ],
)
def test_what_reads_back_differently_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: object, named: str
) -> None:
    image = _image(tmp_path / "T1.nii.gz")

    def write_on_a_bad_disk(*arguments: object, path: Path, **options: object) -> None:
        nifti_writing.write_nifti(*arguments, path=path, **options)
        path.write_bytes(damage(path.read_bytes()))

    monkeypatch.setattr(writing, "write_nifti", write_on_a_bad_disk)
    with pytest.raises(OutputError, match=named):
        write_mask(MASK_XYZ.T, like=image, path=tmp_path / "out" / "p.nii.gz")
    assert list((tmp_path / "out").iterdir()) == []


def test_labels_keep_their_values_on_the_grid_of_the_image(tmp_path: Path) -> None:
    image = _image(tmp_path / "GED4.nii.gz", affine_ras=OBLIQUE_LEFT_HANDED)
    labels = (noise() % 3).astype(np.uint8).T
    assert set(np.unique(labels)) == {0, 1, 2}
    write_labels(labels, like=image, path=tmp_path / "T2_train.nii.gz")
    found = nib.load(tmp_path / "T2_train.nii.gz")
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(found.dataobj).T, labels)
    assert (found.header["cal_min"], found.header["cal_max"]) == (0, 2)
    assert same_grid(read_mask(tmp_path / "T2_train.nii.gz").geometry, image.geometry)


def test_labels_can_be_written_on_the_grid_of_a_mask(tmp_path: Path) -> None:
    image = _image(tmp_path / "GED4.nii.gz")
    write_mask(MASK_XYZ.T, like=image, path=tmp_path / "mask.nii.gz")
    mask = read_mask(tmp_path / "mask.nii.gz")
    write_labels(2 * mask.array_zyx, like=mask, path=tmp_path / "labels.nii.gz")
    found = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), 2 * MASK_XYZ)
    assert _raw_header(tmp_path / "labels.nii.gz")["srow_x"].tolist() == (
        _raw_header(tmp_path / "GED4.nii.gz")["srow_x"].tolist()
    )
