"""From frames to volumes: what belongs together, where it lies, and what is no volume."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_samples import CORONAL, SPACING_ZYX_MM, edit, write_enhanced, write_series
from tiny_scans import abdomen

from sslmedsam2.dicom.headers import read_frames
from sslmedsam2.dicom.reading import dicom_grid, read_dicom
from sslmedsam2.dicom.volumes import make_volume, split_series
from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import same_grid

ARRAY = abdomen()[0][:9, :20, :24]
PREAMBLE = b"\0" * 128 + b"DICM"
OBLIQUE = (0.96, 0.28, 0.0, -0.28 * 0.8, 0.96 * 0.8, 0.6)


def frames_of(paths):
    return [frame for path in paths for frame in read_frames(path, name="x")]


def volume_of(paths):
    [stack] = split_series(frames_of(paths))
    return make_volume(stack, case="study", series="1-a")


@pytest.mark.parametrize("orientation", [CORONAL, OBLIQUE])
def test_geometry_and_voxels_are_those_that_itk_reads(tmp_path, orientation):
    array = np.random.default_rng(3).integers(0, 900, ARRAY.shape).astype(float)
    paths = write_series(tmp_path, array, orientation=orientation, origin_xyz_mm=(11, -7.5, 40))
    expected = sitk.ReadImage([str(path) for path in paths])

    volume = read_dicom(volume_of(paths[::-1]))

    assert np.array_equal(volume.array_zyx, sitk.GetArrayFromImage(expected))
    geometry = volume.geometry
    assert np.allclose(geometry.spacing_zyx_mm, expected.GetSpacing()[::-1], atol=1e-4)
    assert np.allclose(geometry.origin_xyz_mm, expected.GetOrigin(), atol=1e-4)
    assert np.allclose(geometry.direction_xyz.ravel(), expected.GetDirection(), atol=1e-4)
    assert volume.source.native_shape == expected.GetSize()
    assert same_grid(dicom_grid(volume_of(paths)).geometry, geometry)


def test_slices_that_follow_each_other_downwards_are_sorted(tmp_path):
    paths = write_series(tmp_path / "up", ARRAY)
    for place, path in enumerate(paths):
        edit(path, InstanceNumber=len(paths) - place)

    assert np.allclose(read_dicom(volume_of(paths)).array_zyx, ARRAY, atol=0.5)


def test_values_are_rescaled_and_signed(tmp_path):
    hounsfield = ARRAY * 4 - 1000
    paths = write_series(
        tmp_path, hounsfield, modality="CT", slope=0.5, intercept=-1024.0, dtype=np.uint16
    )
    signed = write_series(tmp_path / "signed", ARRAY - 100, dtype=np.int16)

    assert np.abs(read_dicom(volume_of(paths)).array_zyx - hounsfield).max() <= 0.25 + 1e-3
    assert read_dicom(volume_of(signed)).array_zyx.min() < -50


def test_each_slice_has_a_scale_of_its_own(tmp_path):
    paths = write_series(tmp_path, ARRAY)
    edit(paths[2], RescaleSlope=3.0, RescaleIntercept=5.0)

    found = read_dicom(volume_of(paths)).array_zyx

    assert np.array_equal(found[2], np.rint(ARRAY[2]) * 3 + 5)
    assert np.array_equal(found[1], np.rint(ARRAY[1]))


@pytest.mark.parametrize("compressor", ["JPEG", "JPEGLS", "JPEG2000"])
def test_compressed_series_are_read(tmp_path, compressor):
    paths = write_series(tmp_path / "plain", ARRAY, dtype=np.uint16)
    packed = []
    for number, path in enumerate(paths):
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        packed.append(tmp_path / f"{number}.dcm")
        writer.SetFileName(str(packed[-1]))
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        reader.LoadPrivateTagsOn()
        writer.Execute(reader.Execute())
        # What the writer does not carry over.
        first = frames_of([path])[0]
        edit(packed[-1], SeriesInstanceUID=first.series_uid, StudyInstanceUID=first.study_uid)

    found = read_dicom(volume_of(packed)).array_zyx

    assert not frames_of(packed)[0].is_truncated
    assert np.array_equal(found, np.rint(ARRAY))


def test_an_enhanced_file_holds_a_volume_for_each_b_value(tmp_path):
    path = write_enhanced(tmp_path / "enhanced", {50.0: ARRAY, 800.0: ARRAY * 2})

    low, high = (
        make_volume(stack, case="study", series="1-a") for stack in split_series(frames_of([path]))
    )

    assert [low.frames[0].b_value, high.frames[0].b_value] == [50, 800]
    assert np.allclose(read_dicom(low).array_zyx, ARRAY, atol=0.5)
    # Its frames are stored halved, with a slope of 2.
    assert np.allclose(read_dicom(high).array_zyx, ARRAY * 2, atol=1.0)
    assert same_grid(low.geometry, high.geometry)


@pytest.mark.parametrize(
    "tags",
    [
        {"DiffusionBValue": 50.0},
        {"EchoTime": 4.8},
        {"TemporalPositionIdentifier": 2},
        {"AcquisitionNumber": 2},
        {"AcquisitionTime": "121314"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
    ],
)
def test_volumes_of_one_series_are_told_apart(tmp_path, tags):
    defaults = {
        "EchoTime": 2.4,
        "TemporalPositionIdentifier": 1,
        "AcquisitionNumber": 1,
        "AcquisitionTime": "120000",
    }
    one = write_series(tmp_path / "one", ARRAY, series_uid="1.2.3", **defaults)
    other = write_series(tmp_path / "two", ARRAY, series_uid="1.2.3", **{**defaults, **tags})

    stacks = split_series(frames_of([*one, *other]))

    assert sorted({frame.path.parent.name for frame in stack} for stack in stacks) == [
        {"one"},
        {"two"},
    ]


def test_other_orientations_and_sizes_are_stacks_of_their_own(tmp_path):
    paths = write_series(tmp_path / "axial", ARRAY)
    paths += write_series(tmp_path / "coronal", ARRAY[:2], orientation=CORONAL)
    paths += write_series(tmp_path / "small", ARRAY[:1, :5, :5])

    assert [len(stack) for stack in split_series(frames_of(paths))] == [9, 2, 1]


def refused(frames):
    with pytest.raises(InputError) as caught:
        make_volume(frames, case="study", series="1-a")
    assert str(caught.value).startswith("study/1-a: ")
    return caught.value


@pytest.mark.parametrize(
    ("skipped", "reason"),
    [((4,), "1 slice is missing, the first after slice 4 of 8"),
     ((3, 4, 6), "3 slices are missing, the first after slice 3 of 6")],
)  # fmt: skip
def test_missing_slices_are_counted(tmp_path, skipped, reason):
    error = refused(frames_of(write_series(tmp_path, ARRAY, skipped=skipped)))

    assert (error.kind, error.reason) == ("missing_slices", reason)


def test_slices_unevenly_spaced_are_refused(tmp_path):
    paths = write_series(tmp_path, ARRAY)
    position = frames_of([paths[4]])[0].position_xyz_mm
    edit(paths[4], ImagePositionPatient=[position[0], position[1], position[2] + 2.0])

    assert refused(frames_of(paths)).kind == "uneven_slices"


def test_a_slice_shifted_in_its_plane_is_refused(tmp_path):
    paths = write_series(tmp_path, ARRAY)
    x, y, z = frames_of([paths[4]])[0].position_xyz_mm
    edit(paths[4], ImagePositionPatient=[x + 5.0, y, z])

    assert refused(frames_of(paths)).kind == "uneven_slices"


def test_a_tilted_gantry_is_refused(tmp_path):
    paths = write_series(tmp_path, ARRAY)
    for number, path in enumerate(paths):
        x, y, z = frames_of([path])[0].position_xyz_mm
        edit(path, ImagePositionPatient=[x, y + 2.0 * number, z])

    assert refused(frames_of(paths)).kind == "sheared_affine"


def test_images_at_one_place_that_nothing_tells_apart_are_refused(tmp_path):
    paths = write_series(tmp_path / "a", ARRAY) + write_series(tmp_path / "b", ARRAY)

    assert refused(frames_of(paths)).kind == "same_place"


def test_images_without_a_position_are_refused(tmp_path):
    paths = write_series(tmp_path, ARRAY)
    for path in paths:
        edit(path, ImagePositionPatient=None)

    assert refused(frames_of(paths)).kind == "no_position"


def test_a_file_cut_short_is_refused_before_it_is_read(tmp_path):
    paths = write_series(tmp_path, ARRAY)
    paths[3].write_bytes(paths[3].read_bytes()[:-300])

    assert refused(frames_of(paths)).reason == "1 of its 9 images end before their last pixel"


def test_pixels_that_cannot_be_decoded_are_an_error_of_the_series(tmp_path):
    volume = volume_of(write_series(tmp_path, ARRAY))
    volume.frames[3].path.write_bytes(b"\0" * 128 + b"DICM")

    with pytest.raises(InputError) as caught:
        read_dicom(volume)

    assert caught.value.kind == "unreadable_pixels"
    assert caught.value.subject == "study/1-a"


def test_a_constant_series_is_refused(tmp_path):
    with pytest.raises(InputError, match="same value"):
        read_dicom(volume_of(write_series(tmp_path, np.full((9, 8, 8), 7.0))))


@pytest.mark.parametrize("content", [b"", PREAMBLE, PREAMBLE + b"\xff" * 90])
def test_a_damaged_header_is_an_error_of_the_file(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)

    with pytest.raises(InputError) as caught:
        read_frames(path, name="file-1")

    assert caught.value.kind == "corrupt_dicom"
    assert caught.value.subject == "file-1"


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_order_of_instances_is_the_last_thing_that_tells_volumes_apart(tmp_path, interleaved):
    paths = []
    for volume in range(2):
        for index, path in enumerate(
            write_series(tmp_path / str(volume), ARRAY + 50 * volume, series_uid="1.2.3")
        ):
            number = 2 * index + volume if interleaved else len(ARRAY) * volume + index
            edit(path, InstanceNumber=number + 1)
            paths.append(path)

    stacks = split_series(frames_of(paths))

    assert [{frame.path.parent.name for frame in stack} for stack in stacks] == [{"0"}, {"1"}]


def test_white_stored_as_0_is_turned_round_in_an_mr_and_not_in_a_ct(tmp_path):
    how = {"PhotometricInterpretation": "MONOCHROME1"}
    mr = write_series(tmp_path / "mr", 2000 - ARRAY)
    ct = write_series(tmp_path / "ct", ARRAY, modality="CT")
    for path in [*mr, *ct]:
        edit(path, **how)

    turned = read_dicom(volume_of(mr))
    assert np.allclose(turned.array_zyx, ARRAY - ARRAY.min(), atol=1)
    assert any(note.startswith("inverted: ") for note in turned.repairs)
    assert np.allclose(read_dicom(volume_of(ct)).array_zyx, ARRAY, atol=0.5)


def test_padding_named_in_the_header_becomes_background(tmp_path):
    padded = np.maximum(ARRAY, 0)
    padded[:, :4] = -1000
    paths = write_series(tmp_path, padded)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", "SS", -1000)
        dataset.save_as(path)

    volume = read_dicom(volume_of(paths))

    assert volume.modality == "MR"
    assert (volume.array_zyx[:, :4] == 0).all()
    assert any(note.startswith("padding: ") for note in volume.repairs)


@pytest.mark.parametrize("keyword", ["PhotometricInterpretation", "BitsStored"])
def test_pixels_that_the_header_does_not_describe_are_refused_with_what_it_lacks(tmp_path, keyword):
    paths = write_series(tmp_path, ARRAY)
    edit(paths[3], **{keyword: None})

    with pytest.raises(InputError, match=f"lacks {keyword}"):
        read_dicom(volume_of(paths))


@pytest.mark.parametrize("slope", ["0", "nan"])
def test_a_scale_that_would_make_a_slice_of_one_grey_is_refused(tmp_path, slope):
    paths = write_series(tmp_path, ARRAY)
    edit(paths[3], RescaleSlope=slope, RescaleIntercept="0")

    with pytest.raises(InputError, match="RescaleSlope or RescaleIntercept"):
        read_dicom(volume_of(paths))


def test_pixels_in_the_high_bits_are_refused(tmp_path):
    # pydicom reads the low bits, whatever HighBit says.
    paths = write_series(tmp_path, ARRAY * 200, dtype=np.uint16)
    for path in paths:
        edit(path, BitsStored=12, HighBit=15)

    with pytest.raises(InputError, match="HighBit"):
        read_dicom(volume_of(paths))


def test_a_high_bit_that_the_pixels_contradict_is_passed_over(tmp_path):
    paths = write_series(tmp_path, ARRAY, dtype=np.uint16)
    for path in paths:
        edit(path, BitsStored=12, HighBit=15)

    assert np.allclose(read_dicom(volume_of(paths)).array_zyx, ARRAY, atol=0.5)


def test_directions_written_with_few_digits_leave_the_voxel_size_as_it_is(tmp_path):
    paths = write_series(tmp_path, ARRAY)
    for path in paths:
        edit(path, ImageOrientationPatient=[0.71, 0.71, 0.0, -0.71, 0.71, 0.0])

    assert np.allclose(volume_of(paths).geometry.spacing_zyx_mm, SPACING_ZYX_MM, atol=1e-6)


@pytest.mark.parametrize(
    "orientation",
    [[0.5, 0, 0, 0, 0.5, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0, 0.5, 0.866, 0]],
)
def test_directions_that_are_no_unit_vectors_at_right_angles_are_refused(tmp_path, orientation):
    paths = write_series(tmp_path, ARRAY)
    for path in paths:
        edit(path, ImageOrientationPatient=orientation)

    with pytest.raises(InputError, match="orientation"):
        volume_of(paths)


def test_a_pixel_spacing_of_one_number_is_refused(tmp_path):
    paths = write_series(tmp_path, ARRAY)
    for path in paths:
        edit(path, PixelSpacing="4.0")

    with pytest.raises(InputError, match="pixel spacing"):
        volume_of(paths)
