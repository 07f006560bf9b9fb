"""MetaImage and NRRD files give, to the last bit, what SimpleITK gives for them.

SimpleITK writes and reads the files here; the package reads them without it.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from bad_inputs import noise

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.reading import read_stored, stored_from_itk

TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
SHAPE_XYZ = (12, 10, 6)
ODD_FILES = Path(__file__).parents[3] / "shared" / "data" / "odd_files"

METAIMAGE = """ObjectType = Image
NDims = 3
BinaryData = True
{}
DimSize = 12 10 6
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
NRRD = """NRRD0004
type: short
dimension: 3
sizes: 12 10 6
endian: little
encoding: {encoding}
{fields}

"""
IN_SPACE = "space: {}\nspace directions: (1.1,0.3,0) (-0.3,1.1,0) (0,0,-3.3)\nspace origin: {}"


def _assert_as_itk(path: Path) -> None:
    """Compare voxels and every number of the geometry, bit for bit."""
    found = read_stored(path)
    expected = stored_from_itk(sitk.ReadImage(str(path)), name=path)
    np.testing.assert_array_equal(found.array_zyx, expected.array_zyx)
    assert found.array_zyx.flags.c_contiguous
    for name in ("shape_zyx", "spacing_zyx_mm", "origin_xyz_mm", "direction_xyz"):
        ours, theirs = (np.array(getattr(one.geometry, name)) for one in (found, expected))
        assert ours.tobytes() == theirs.tobytes(), name
    assert found.source.native_shape == expected.source.native_shape
    assert found.source.native_dtype.newbyteorder("=") == expected.source.native_dtype


def _turned(seed: int) -> np.ndarray:
    """Return a random rotation, left-handed for odd seeds, as a flat list."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    if (np.linalg.det(matrix) < 0) != bool(seed % 2):
        matrix[:, 0] *= -1
    return matrix


def _image(dtype: str = "i2", *, seed: int = 0) -> sitk.Image:
    random = np.random.default_rng(seed)
    image = sitk.GetImageFromArray((noise() % 120).astype(dtype).T)
    image.SetSpacing(random.uniform(0.3, 7, 3).tolist())
    image.SetOrigin(random.normal(scale=200, size=3).tolist())
    image.SetDirection(_turned(seed).ravel().tolist())
    return image


@pytest.mark.parametrize("extension", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_voxel_type_and_many_directions(tmp_path, extension, compressed):
    for seed, dtype in enumerate([*TYPES, *["i2"] * 15]):
        path = tmp_path / f"{seed}{extension}"
        sitk.WriteImage(_image(dtype, seed=seed), str(path), useCompression=compressed)
        _assert_as_itk(path)


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
def test_all_axis_aligned_directions(tmp_path, extension):
    for number, (order, signs) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        image = _image()
        image.SetDirection((np.eye(3)[:, list(order)] * signs).ravel().tolist())
        path = tmp_path / f"{number}{extension}"
        sitk.WriteImage(image, str(path))
        _assert_as_itk(path)


@pytest.mark.parametrize("extension", [".mha", ".mhd", ".nrrd"])
def test_a_fourth_axis_of_one_element(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    sitk.WriteImage(sitk.JoinSeries([_image(seed=3)]), str(path))
    _assert_as_itk(path)


@pytest.mark.parametrize(
    "fields",
    [
        "BinaryDataByteOrderMSB = True",
        "ElementByteOrderMSB = True",
        "BinaryDataByteOrderMSB = False\nElementByteOrderMSB = True",
        "Offset = 1 2 3",
        "Position = 1 2 3",
        "Origin = -1e2 .5 3.",
        "Offset = 9 9 9\nPosition = 1 2 3",
        "ElementSpacing = 0.7999999999999999 1.1234567890123456 3.3",
        "ElementSize = 1 2 3",
        "ElementSize = 1 2 3\nElementSpacing = 4 5 6",
        "ElementSpacing = 1 2 3\nElementSpacing = 4 5 6",
        "TransformMatrix = 0 1 0 0 0 1 1 0 0",
        "Orientation = 0 1 0 0 0 1 1 0 0",
        "Rotation = 0 1 0 1 0 0 0 0 1",
        "# a comment = 3\n\nComment = a = b",
        "  ElementSpacing = 1 2 3",
        "elementspacing = 1 2 3",
        "DistanceUnits = mm\nModality = MET_MOD_MR\nElementMin = 0\nSomethingElse = 3",
        "ElementToIntensityFunctionSlope = 2",
        "ElementNumberOfChannels = 1",
    ],
)
def test_fields_of_a_metaimage(tmp_path, fields):
    path = tmp_path / "a.mha"
    content = METAIMAGE.format(fields).encode()
    for header in (content, content.replace(b" = ", b"="), content.replace(b"\n", b"\r\n")):
        path.write_bytes(header + noise().tobytes(order="F"))
        _assert_as_itk(path)


@pytest.mark.parametrize("name", ["MET_LONG", "MET_ULONG", "MET_LONG_LONG", "MET_ULONG_LONG"])
def test_long_types_of_a_metaimage(tmp_path, name):
    path = tmp_path / "a.mha"
    header = METAIMAGE.format("").replace("MET_SHORT", name)
    path.write_bytes(header.encode() + np.arange(720, dtype="<i8").tobytes())
    _assert_as_itk(path)


@pytest.mark.parametrize("size", [0, 17, 5000, -1])
def test_header_size_of_a_metaimage(tmp_path, size):
    (tmp_path / "a.raw").write_bytes(bytes(max(size, 40)) + noise().tobytes(order="F") * 2)
    header = METAIMAGE.format(f"HeaderSize = {size}").replace("LOCAL", "a.raw")
    (tmp_path / "a.mhd").write_text(header)
    _assert_as_itk(tmp_path / "a.mhd")


def test_data_file_in_a_folder_below(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.raw").write_bytes(noise().tobytes(order="F"))
    (tmp_path / "a.mhd").write_text(METAIMAGE.format("").replace("LOCAL", "data/a.raw"))
    _assert_as_itk(tmp_path / "a.mhd")
    header = NRRD.format(encoding="raw", fields="data file: ./data/a.raw")
    (tmp_path / "a.nhdr").write_text(header.rstrip() + "\n")
    _assert_as_itk(tmp_path / "a.nhdr")


def test_metaimage_without_compressed_size_is_read_where_itk_takes_the_header_for_data(tmp_path):
    """ITK#6575, item B65: ITK inflates the text header and gives voxels that are no voxels."""
    path = tmp_path / "a.mha"
    header = METAIMAGE.format("CompressedData = True").encode()
    path.write_bytes(header + zlib.compress(noise().tobytes(order="F")))
    np.testing.assert_array_equal(read_stored(path).array_zyx, noise().T)


@pytest.mark.parametrize("origin", ["(0,0,0)", "(-1.5,2,3e1)", "none"])
@pytest.mark.parametrize(
    "space",
    [
        "left-posterior-superior",
        "LPS",
        "right-anterior-superior",
        "RAS",
        "left-anterior-superior",
        "LAS",
        "scanner-xyz",
        "3D-right-handed",
        "3D-left-handed",
    ],
)
def test_spaces_of_an_nrrd(tmp_path, space, origin):
    path = tmp_path / "a.nrrd"
    header = NRRD.format(encoding="raw", fields=IN_SPACE.format(space, origin))
    path.write_bytes(header.encode() + noise().tobytes(order="F"))
    _assert_as_itk(path)


def _nrrd(path: Path, fields: str, data: bytes, *, encoding: str = "raw", **changes: str) -> Path:
    header = NRRD.format(encoding=encoding, fields=fields or "#")
    for old, new in changes.items():
        header = header.replace({"kind": "short", "order": "little"}.get(old, old), new)
    path.write_bytes(header.encode() + data)
    return path


@pytest.mark.parametrize(
    "fields",
    [
        "",
        "spacings: 1 2 3",
        "space: RAS",
        "space: RAS\nspace origin: (1,2,3)",
        "space dimension: 3\nspace directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (1,2,3)",
        "space: LPS\nspace directions: ( 1 , 0, 0)  (0,2,0)\t(0, 0 ,3)",
        "space: LPS\nspace directions: (1,0,0)(0,2,0)(0,0,3)",
        "space: LPS\nspacedirections: (1,0,0) (0,2,0) (0,0,3)",
        "KINDS: Domain domain domain",
        "kinds: space ??? none",
        'centers: cell node ???\nlabels: "x" "y y" "z"\nthicknesses: 1 1 nan',
        'units: "mm" "mm" "mm"',
        "content: a: b\nnumber: 720\nmin: 0\nmax: 3\nold min: 1\nsample units: x",
        "key:=value: more\nother key:=",
        "# type: float",
    ],
)
def test_fields_of_an_nrrd(tmp_path, fields):
    data = noise().tobytes(order="F")
    _assert_as_itk(_nrrd(tmp_path / "a.nrrd", fields, data))
    path = tmp_path / "b.nrrd"
    path.write_bytes(
        NRRD.format(encoding="raw", fields=fields or "#").replace("\n", "\r\n").encode() + data
    )
    _assert_as_itk(path)


@pytest.mark.parametrize(
    "name",
    [
        *["signed char", "int8", "uint8_t", "unsigned char", "short int", "uint16", "signed int"],
        *["uint32", "longlong", "int64", "unsigned long long int", "uint64_t", "float", "double"],
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_names_of_the_voxel_types_of_an_nrrd(tmp_path, name, order):
    data = np.random.default_rng(1).integers(0, 99, 720 * 8, dtype=np.uint8).tobytes()
    path = _nrrd(tmp_path / "a.nrrd", "", data, kind=name, order=order)
    _assert_as_itk(path)


@pytest.mark.parametrize("where", [0, 2, 3])
@pytest.mark.parametrize("kind", ["list", "vector", "scalar"])
def test_a_channel_axis_of_one_element(tmp_path, where, kind):
    def with_channel(values: list[str], value: str) -> str:
        return " ".join([*values[:where], value, *values[where:]])

    directions = with_channel(["(1,0,0)", "(0,2,0)", "(0,0,3)"], "none")
    kinds = with_channel(["domain"] * 3, kind)
    fields = f"space: RAS\nspace directions: {directions}\nkinds: {kinds}"
    header = NRRD.format(encoding="raw", fields=fields).replace("dimension: 3", "dimension: 4")
    header = header.replace("12 10 6", with_channel(["12", "10", "6"], "1"))
    path = tmp_path / "a.nrrd"
    path.write_bytes(header.encode() + noise().tobytes(order="F"))
    _assert_as_itk(path)


def test_skipped_lines_and_bytes_of_an_nrrd(tmp_path):
    data = noise().tobytes(order="F")
    packed = gzip.compress(b"abc" + data)
    for fields, content, encoding in (
        ("byte skip: 5", b"abcde" + data, "raw"),
        ("byte skip: -1", b"abcde" + data, "raw"),
        ("line skip: 2", b"abcde\nfg\n" + data, "raw"),
        ("line skip: 1\nbyte skip: 2", b"abcde\nfg" + data, "raw"),
        ("byte skip: 3", packed, "gzip"),
        ("line skip: 1\nbyte skip: 3", b"x\n" + packed, "gz"),
    ):
        _assert_as_itk(_nrrd(tmp_path / "a.nrrd", fields, content, encoding=encoding))


def test_gzip_of_several_members_and_with_bytes_after_it(tmp_path):
    data = noise().tobytes(order="F")
    for content in (
        gzip.compress(data[:100]) + gzip.compress(data[100:]),
        gzip.compress(data) + b"more",
        gzip.compress(data * 2),
    ):
        _assert_as_itk(_nrrd(tmp_path / "a.nrrd", "", content, encoding="gzip"))


@pytest.mark.real_data
@pytest.mark.skipif(not ODD_FILES.is_dir(), reason="the odd files are not here")
def test_odd_files_are_read_as_itk_reads_them_or_refused_by_both():
    paths = [
        path
        for path in sorted(ODD_FILES.rglob("*"))
        if path.suffix in (".mha", ".mhd", ".nrrd", ".nhdr") and path.name != "ball_bz2.nrrd"
    ]
    assert len(paths) >= 10
    for path in paths:
        try:
            stored_from_itk(sitk.ReadImage(str(path)), name=path)
        except (InputError, RuntimeError):
            with pytest.raises(InputError):
                read_stored(path)
        else:
            _assert_as_itk(path)


@pytest.mark.real_data
@pytest.mark.skipif(not ODD_FILES.is_dir(), reason="the odd files are not here")
def test_bzip2_which_itk_does_not_read_is_read():
    found = read_stored(ODD_FILES / "nrrd" / "ball_bz2.nrrd")
    twin = read_stored(ODD_FILES / "nrrd" / "ball_gz_lineskip.nrrd")
    np.testing.assert_array_equal(found.array_zyx, twin.array_zyx)
