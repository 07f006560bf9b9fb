from pathlib import Path

import pytest

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.errors import InputError, NoInputError


def _touch(root: Path, *files: str) -> None:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _found(root: Path) -> list[tuple[str, str]]:
    return [(series.case, series.sequence) for series in find_labelled_series(root)]


def test_images_with_masks_are_found_at_any_depth_and_sorted(tmp_path):
    _touch(
        tmp_path,
        "Vendor_B1/1041-B1-S3/GED4.nii.gz",
        "Vendor_B1/1041-B1-S3/mask_GED4.nii.gz",
        "Vendor_A/1001-A-S1/T2.nii.gz",
        "Vendor_A/1001-A-S1/mask_T2.nii.gz",
        "Vendor_A/1001-A-S1/GED4.nii.gz",
        "Vendor_A/1001-A-S1/mask_GED4.nii.gz",
        "Vendor_A/1002-A-S2/GED4.nii.gz",
    )

    assert _found(tmp_path) == [
        ("1001-A-S1", "GED4"),
        ("1001-A-S1", "T2"),
        ("1041-B1-S3", "GED4"),
    ]


def test_patients_of_one_day_are_not_one_case(tmp_path):
    for patient, sequence in (("p1", "T2"), ("p2", "GED4")):
        _touch(tmp_path, f"{patient}/20240131/{sequence}.nii.gz")
        _touch(tmp_path, f"{patient}/20240131/{sequence}_roi.nii.gz")

    assert _found(tmp_path) == [("p1_20240131", "T2"), ("p2_20240131", "GED4")]


def test_map_of_organs_belongs_to_its_image_and_is_no_mask(tmp_path):
    _touch(tmp_path, "c/T1.nii.gz", "c/mask_T1.nii.gz", "c/T2.nii.gz", "c/mask_T2.nii.gz")
    _touch(tmp_path, "c/organs_T2.nii.gz", "d/T2.nii.gz", "d/organs_T2.nii.gz")

    t1, t2 = find_labelled_series(tmp_path)
    assert t1.organs is None
    assert t2.organs == tmp_path / "c" / "organs_T2.nii.gz"


@pytest.mark.parametrize(
    ("image", "mask", "sequence"),
    [
        ("T2.nii.gz", "mask_T2.nii", "T2"),
        ("T2WI.nii.gz", "mask_T2WI.nii.gz", "T2"),
        ("GED4.nii.gz", "GED4_seg.nii.gz", "GED4"),
        ("ged4.nii.gz", "MASK_GED4.nii.gz", "GED4"),
        ("scan_7.nrrd", "scan_7_mask.nrrd", "scan_7"),
    ],
)
def test_spellings_of_names(tmp_path, image, mask, sequence):
    _touch(tmp_path, f"case/{image}", f"case/{mask}")

    (series,) = find_labelled_series(tmp_path)
    assert (series.case, series.sequence) == ("case", sequence)
    assert series.path.name == image
    assert series.mask.name == mask


def test_hidden_files_and_predictions_are_no_reference_masks(tmp_path):
    _touch(tmp_path, "c/T2.nii.gz", "c/._mask_T2.nii.gz", "c/T2_pred.nii.gz", ".x/mask_T2.nii.gz")

    assert _found(tmp_path) == []


def test_mask_without_image_is_an_error_that_names_the_mask(tmp_path):
    _touch(tmp_path, "c/T2.nii.gz", "c/mask_T2.nii.gz", "c/mask_T1.nii.gz")

    with pytest.raises(InputError, match=r"c/mask_T1\.nii\.gz: there is no image") as error:
        find_labelled_series(tmp_path)
    assert error.value.kind == "mask_without_image"


@pytest.mark.parametrize("second", ["T2.nii", "mask_T2.nii", "T2_seg.nii.gz"])
def test_two_files_for_one_are_an_error(tmp_path, second):
    _touch(tmp_path, "c/T2.nii.gz", "c/mask_T2.nii.gz", f"c/{second}")

    with pytest.raises(InputError) as error:
        find_labelled_series(tmp_path)
    assert error.value.kind == "ambiguous_label"


def test_one_case_name_twice_is_an_error_that_names_both(tmp_path):
    _touch(tmp_path, "x/Case1/T2.nii.gz", "x/Case1/mask_T2.nii.gz")
    _touch(tmp_path, "y/case1/T2WI.nii.gz", "y/case1/mask_T2WI.nii.gz")

    with pytest.raises(InputError, match=r"y/case1/T2WI.*x/Case1/T2") as error:
        find_labelled_series(tmp_path)
    assert error.value.kind == "duplicate_case"


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(NoInputError, match="nowhere"):
        find_labelled_series(tmp_path / "nowhere")


def test_an_archive_given_as_the_folder_is_refused_with_what_to_do(tmp_path):
    _touch(tmp_path, "data.zip", "scan.nii.gz")

    with pytest.raises(NoInputError, match=r"is an archive.*Unpack it"):
        find_labelled_series(tmp_path / "data.zip")
    with pytest.raises(NoInputError, match="it is a file"):
        find_labelled_series(tmp_path / "scan.nii.gz")


def test_case_numbers_of_four_digits_are_no_channels(tmp_path):
    _touch(
        tmp_path,
        *(f"imagesTr/amos_{n}.nii.gz" for n in ("0507", "0508")),
        *(f"labelsTr/amos_{n}.nii.gz" for n in ("0507", "0508")),
        "imagesVa/amos_0510.nii.gz",
        "labelsVa/amos_0510.nii.gz",
    )

    assert [case for case, _ in _found(tmp_path)] == ["amos_0507", "amos_0508", "amos_0510"]


@pytest.mark.parametrize("mask", ["mask_T2.nii.gz", "T2_seg.nii.gz", "organs_T2.nii.gz"])
def test_a_mask_that_is_a_link_to_nowhere_is_an_error_that_names_it(tmp_path, mask):
    _touch(tmp_path, "a/T2.nii.gz", "a/mask_T2.nii.gz", "b/T2.nii.gz")
    (tmp_path / "b" / mask).symlink_to("not_fetched.nii.gz")

    with pytest.raises(InputError, match=f"b/{mask}: is a link that leads nowhere"):
        find_labelled_series(tmp_path)


def test_an_unlabelled_image_that_is_a_link_to_nowhere_is_passed_over(tmp_path):
    _touch(tmp_path, "a/T2.nii.gz", "a/mask_T2.nii.gz")
    (tmp_path / "a" / "T1.nii.gz").symlink_to("not_fetched.nii.gz")

    assert _found(tmp_path) == [("a", "T2")]
