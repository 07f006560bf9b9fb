"""Masks as DICOM-SEG: equal to the voxel, coded, and tied to the images and the weights."""

import itertools
import json
import shutil
import subprocess

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_samples import CORONAL, PATIENT_NAME, edit, write_enhanced, write_series
from tiny_scans import abdomen

from sslmedsam2 import __version__
from sslmedsam2.contract.walk import walk_input
from sslmedsam2.dicom.discovery import find_volumes
from sslmedsam2.dicom.files import find_dicom_files
from sslmedsam2.dicom.model import Algorithm
from sslmedsam2.dicom.reading import read_dicom
from sslmedsam2.dicom.segmentation import read_dicom_seg, write_dicom_seg
from sslmedsam2.errors import OutputError
from sslmedsam2.imaging.geometry import affine_lps
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.imaging.writing import write_mask

ARRAY, LIVER = (array[4:16, 10:40, 8:50] for array in abdomen())
ALGORITHM = Algorithm("tiny", {"plans.json": "a" * 64, "fold_0/checkpoint_final.pth": "b" * 64})


@pytest.fixture
def volume(tmp_path):
    """Return the one volume of a series, its files in no order."""
    write_series(tmp_path / "series", ARRAY, number=7, orientation=CORONAL)
    [found] = find_volumes(find_dicom_files(walk_input(tmp_path))).values()
    return found


@pytest.fixture
def written(volume, tmp_path):
    path = tmp_path / "out" / "seg.dcm"
    write_dicom_seg(LIVER, volume=volume, path=path, algorithm=ALGORITHM)
    return path


def test_a_mask_reads_back_equal_by_the_images_it_names(volume, written):
    assert 0 < LIVER.sum() < LIVER.size
    assert np.array_equal(read_dicom_seg(written, volume=volume), LIVER)
    assert [path.name for path in written.parent.iterdir()] == ["seg.dcm"]


def test_a_mask_lies_where_its_images_lie(volume, written):
    found = hd.seg.segread(written).get_volume(combine_segments=True)

    liver_zyx = np.argwhere(LIVER)
    expected = np.c_[liver_zyx[:, ::-1], np.ones(len(liver_zyx))] @ affine_lps(volume.geometry).T
    places = np.argwhere(found.array)
    reached = np.c_[places, np.ones(len(places))] @ found.affine.T

    def ordered(points):
        return np.array(sorted(map(tuple, np.round(points[:, :3], 3))))

    assert np.allclose(ordered(reached), ordered(expected), atol=2e-3)


def orientations():
    """Return ImageOrientationPatient and the sense of the slices: 48, then an oblique one."""
    for first, second in itertools.permutations(range(3), 2):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            yield (*signs[0] * np.eye(3)[first], *signs[1] * np.eye(3)[second]), signs[2]
    turn = np.linalg.qr(np.array([[0.9, -0.3, 0.2], [0.3, 0.9, 0.1], [-0.2, -0.1, 1.0]]))[0]
    yield (*turn[:, 0], *turn[:, 1]), 1.0


ORIENTATIONS = list(orientations())


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=() if number % 12 == 0 else pytest.mark.slow)
        for number in range(len(ORIENTATIONS))
    ],
)
def test_object_and_nifti_mask_have_the_centre_of_what_was_imaged(tmp_path, number):
    orientation, sense = ORIENTATIONS[number]
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    steps = np.column_stack([2.0 * row, 3.0 * column, 5.0 * sense * np.cross(row, column)])
    origin = np.array([-40.0, 25.0, 60.0])
    pixels = np.random.default_rng(3).integers(1, 300, (8, 10, 12))
    pixels[1:4, 6:9, 2:5] = 400
    write_series(
        tmp_path / "series",
        pixels,
        orientation=orientation,
        spacing_zyx_mm=(5.0 * sense, 3.0, 2.0),
        origin_xyz_mm=tuple(origin),
        SliceThickness=5.0,
    )
    [volume] = find_volumes(find_dicom_files(walk_input(tmp_path))).values()
    image = read_dicom(volume)
    mask = (image.array_zyx > 350).astype(np.uint8)

    write_dicom_seg(mask, volume=volume, path=tmp_path / "seg.dcm", algorithm=ALGORITHM)
    write_mask(mask, like=image, path=tmp_path / "mask.nii.gz")

    imaged = origin + steps @ np.argwhere(pixels.transpose(2, 1, 0) == 400).mean(axis=0)
    nifti = nib.load(tmp_path / "mask.nii.gz")
    ras = nifti.affine @ [*np.argwhere(np.asarray(nifti.dataobj)).mean(axis=0), 1]
    np.testing.assert_allclose(ras[:3] * [-1, -1, 1], imaged, atol=1e-3)
    np.testing.assert_allclose(centre_of_seg(tmp_path / "seg.dcm"), imaged, atol=1e-3)


def centre_of_seg(path):
    """Return the LPS centre of a DICOM-SEG by nothing but its own headers."""
    dataset = pydicom.dcmread(path)
    [shared] = dataset.SharedFunctionalGroupsSequence
    row, column = np.reshape(
        shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)
    ).astype(float)
    down, across = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    points = []
    groups = dataset.PerFrameFunctionalGroupsSequence
    for frame, group in zip(dataset.pixel_array, groups, strict=True):
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        for y, x in np.argwhere(frame):
            points.append(corner + x * across * row + y * down * column)
    return np.mean(points, axis=0)


def test_the_object_says_what_it_is_and_what_made_it(written):
    dataset = pydicom.dcmread(written)
    [segment] = dataset.SegmentSequence
    [kind] = segment.SegmentedPropertyTypeCodeSequence
    [algorithm] = segment.SegmentationAlgorithmIdentificationSequence

    assert (dataset.Modality, dataset.SegmentationType) == ("SEG", "BINARY")
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("10200004", "SCT")
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (
        "SSL-MedSAM2 liver",
        __version__,
    )
    assert "b" * 64 in algorithm.AlgorithmParameters
    assert "tiny" in algorithm.AlgorithmParameters
    assert dataset.SeriesNumber == 9007
    assert hd.color.CIELabColor.from_dicom_value(
        segment.RecommendedDisplayCIELabValue
    ).to_rgb() == (221, 130, 101)


def test_dcmqi_reads_the_same_mask_with_its_name_and_colour(volume, written, tmp_path):
    """As OHIF and 3D Slicer do, which load DICOM-SEG by dcmqi's rules."""
    program = shutil.which("segimage2itkimage")
    if program is None:
        pytest.skip("dcmqi is not installed (pip install dcmqi)")
    call = [program, "--inputDICOM", written, "--outputDirectory", tmp_path, "-t", "nii"]
    subprocess.run([str(word) for word in call], check=True, capture_output=True)

    segment = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"][0][0]
    assert segment["SegmentLabel"] == "Liver"
    assert segment["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == "10200004"
    assert segment["recommendedDisplayRGBValue"] == pytest.approx([221, 130, 101], abs=2)
    [mask] = tmp_path.glob("*.nii.gz")
    found = read_mask(mask)
    # dcmqi stores only the slices that hold something.
    assert int(found.array_zyx.sum()) == int(LIVER.sum())
    assert sorted(found.geometry.spacing_zyx_mm) == pytest.approx(
        sorted(volume.geometry.spacing_zyx_mm), abs=1e-3
    )


def test_the_object_belongs_to_the_study_and_names_every_source_image(volume, written):
    dataset, source = pydicom.dcmread(written), pydicom.dcmread(volume.frames[0].path)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID"):
        assert dataset[keyword].value == source[keyword].value
    assert str(dataset.PatientName).startswith(PATIENT_NAME)
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID

    [series] = dataset.ReferencedSeriesSequence
    named = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert named == {frame.sop_uid for frame in volume.frames}


def test_an_enhanced_source_is_referred_to_frame_by_frame(tmp_path):
    write_enhanced(tmp_path / "enhanced", {50.0: ARRAY, 800.0: ARRAY})
    volumes = find_volumes(find_dicom_files(walk_input(tmp_path)))
    [volume] = [one for one in volumes.values() if one.frames[0].b_value == 800]
    [other] = [one for one in volumes.values() if one is not volume]
    path = tmp_path / "seg.dcm"

    write_dicom_seg(LIVER, volume=volume, path=path, algorithm=ALGORITHM)

    assert np.array_equal(read_dicom_seg(path, volume=volume), LIVER)
    referred = {
        source.ReferencedFrameNumber
        for group in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
        for derivation in group.DerivationImageSequence
        for source in derivation.SourceImageSequence
    }
    slices = np.flatnonzero(LIVER.any(axis=(1, 2)))
    assert referred == {volume.frames[place].index + 1 for place in slices}
    assert not referred & {frame.index + 1 for frame in other.frames}


def test_images_that_no_object_can_be_made_of_are_an_error_that_quotes_nothing(volume, tmp_path):
    edit(volume.frames[2].path, FrameOfReferenceUID="1.2.3", PatientID=PATIENT_NAME)

    with pytest.raises(OutputError) as caught:
        write_dicom_seg(LIVER, volume=volume, path=tmp_path / "seg.dcm", algorithm=ALGORITHM)

    assert "a DICOM-SEG cannot be made of these images" in str(caught.value)
    assert PATIENT_NAME not in str(caught.value)
    assert not (tmp_path / "seg.dcm").exists()


def test_an_output_that_cannot_be_written_is_an_error(volume, tmp_path):
    (tmp_path / "out").write_text("in the way")

    with pytest.raises(OutputError, match="A part of the path is a file"):
        write_dicom_seg(
            LIVER, volume=volume, path=tmp_path / "out" / "seg.dcm", algorithm=ALGORITHM
        )


def test_a_mask_of_another_shape_is_refused(volume, tmp_path):
    with pytest.raises(ValueError, match="is not the volume's"):
        write_dicom_seg(LIVER[1:], volume=volume, path=tmp_path / "x.dcm", algorithm=ALGORITHM)


def test_what_de_identification_removed_is_left_empty(tmp_path):
    paths = write_series(tmp_path / "series", ARRAY)
    gone = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
            "StudyID", "AccessionNumber", "ReferringPhysicianName", "SliceThickness",
            "FrameOfReferenceUID")  # fmt: skip
    for path in paths:
        edit(path, **dict.fromkeys(gone))
    [found] = find_volumes(find_dicom_files(walk_input(tmp_path))).values()

    write_dicom_seg(LIVER, volume=found, path=tmp_path / "seg.dcm", algorithm=ALGORITHM)

    assert np.array_equal(read_dicom_seg(tmp_path / "seg.dcm", volume=found), LIVER)
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientID == ""


def test_orientations_that_differ_by_rounding_are_no_obstacle(tmp_path):
    paths = write_series(tmp_path / "series", ARRAY)
    for number, path in enumerate(paths):
        edit(path, ImageOrientationPatient=[1, 1e-4 * (number % 3), 0, -1e-4 * (number % 3), 1, 0])
    [found] = find_volumes(find_dicom_files(walk_input(tmp_path))).values()

    write_dicom_seg(LIVER, volume=found, path=tmp_path / "seg.dcm", algorithm=ALGORITHM)

    assert np.array_equal(read_dicom_seg(tmp_path / "seg.dcm", volume=found), LIVER)


def test_images_that_share_one_identifier_are_refused_with_that_reason(tmp_path):
    write_series(tmp_path / "series", ARRAY, SOPInstanceUID="1.2.3")
    [found] = find_volumes(find_dicom_files(walk_input(tmp_path))).values()

    with pytest.raises(OutputError, match="have one SOPInstanceUID"):
        write_dicom_seg(LIVER, volume=found, path=tmp_path / "seg.dcm", algorithm=ALGORITHM)
