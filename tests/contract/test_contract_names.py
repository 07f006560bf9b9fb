import pytest

from sslmedsam2.contract import names
from sslmedsam2.errors import UsageError


@pytest.mark.parametrize(
    ("stem", "sequence", "rank"),
    [
        ("GED4", "GED4", 0),
        ("ged4", "GED4", 0),
        ("GED_4", "GED4", 1),
        ("GED-1", "GED1", 1),
        ("T1", "T1", 0),
        ("T1WI", "T1", 1),
        ("t2wi", "T2", 1),
        ("T2W", "T2", 1),
        ("DWI_800", "DWI_800", 0),
        ("DWI", "DWI_800", 2),
        ("DWI800", "DWI_800", 1),
        ("DWI_b800", "DWI_800", 1),
        ("dwi-b-800", "DWI_800", 1),
        ("DWI_400", "DWI_800", 2),
        ("DWIb50", "DWI_800", 2),
    ],
)
def test_sequences_are_recognised_with_a_rank(stem, sequence, rank):
    assert names.parse_sequence(stem) == names.SequenceName(sequence, rank)


@pytest.mark.parametrize(
    "stem",
    ["", "GED5", "GED", "T3", "T1_liver", "my_T1", "T11", "dwight", "mask_T2", "CT", "DWI_ADC"],
)
def test_other_names_are_no_sequences(stem):
    assert names.parse_sequence(stem) is None


@pytest.mark.parametrize(
    ("stem", "kind", "image"),
    [
        ("mask_GED4", "mask", "GED4"),
        ("Mask-T2", "mask", "T2"),
        ("organs_T2", "organs", "T2"),
        ("T1_mask", "mask", "T1"),
        ("T1_seg", "seg", "T1"),
        ("DWI_800_pred", "pred", "DWI_800"),
        ("T2_roi", "seg", "T2"),
        ("T2-GroundTruth", "seg", "T2"),
        ("T2_ground_truth", "seg", "T2"),
        ("T2_manual", "seg", "T2"),
        ("ROI", "mask", ""),
    ],
)
def test_masks_are_recognised(stem, kind, image):
    assert names.parse_mask_stem(stem) == names.MaskName(kind, image)


@pytest.mark.parametrize("stem", ["T1", "masked", "unmask", "segment", "organs", "prediction"])
def test_words_that_contain_a_mask_word_are_no_masks(stem):
    assert names.parse_mask_stem(stem) is None


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("Vendor_A", "A"),
        ("Vendor-B1", "B1"),
        ("VendorC", "C"),
        ("vendor a", "A"),
        ("VENDOR_b2", "B2"),
        ("Vendors", None),
        ("Vendor_A_old", None),
        ("A", None),
    ],
)
def test_vendor_folders(name, vendor):
    assert names.vendor_of_folder(name) == vendor


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("0930-A", "A"),
        ("1406-A-S1", "A"),
        ("1041-B2-S3", "B2"),
        ("Case001", None),
        ("0930", None),
        ("0930-A-x", None),
    ],
)
def test_a_case_name_of_the_challenge_tells_the_vendor(name, vendor):
    assert names.vendor_of_case(name) == vendor


def test_a_users_list_comes_back_canonical_and_in_processing_order():
    assert names.parse_sequence_list("dwi, t1wi;GED4 GED1") == ("GED4", "T1", "DWI_800", "GED1")


@pytest.mark.parametrize("text", ["", " , ", "GED4,T9"])
def test_a_wrong_list_is_a_usage_error(text):
    with pytest.raises(UsageError):
        names.parse_sequence_list(text)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("T1.nii.gz", "T1"), ("T1.NII.GZ", "T1"), ("a.b.nii", "a.b"), ("x.mha", "x"), ("y.nrrd", "y")],
)
def test_volume_names_are_split(name, stem):
    assert names.split_volume_name(name)[0] == stem


@pytest.mark.parametrize("name", ["T1.gz", "T1.dcm", ".nii.gz", "nii", "T1.nii.txt"])
def test_other_files_are_no_volumes(name):
    assert names.split_volume_name(name) is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "x" * 300, "a\udce9"])
def test_unsafe_names_are_named(name):
    assert names.unsafe_reason(name)


@pytest.mark.parametrize("name", ["0930-A", "Case 1", "Müller", "a.b", "10:30"])
def test_ordinary_names_are_safe(name):
    assert names.unsafe_reason(name) is None


@pytest.mark.parametrize(
    ("stem", "b_value"),
    [
        ("DWI_b50", 50),
        ("dwi1000", 1000),
        ("DWI_0", 0),
        ("DWI-b-400 tra", 400),
        ("DWI_800", None),
        ("DWI", None),
        ("DWI_3", None),
        ("DWI_20210504", None),
    ],
)
def test_a_name_may_say_another_b_value(stem, b_value):
    assert names.other_b_value(stem) == b_value


@pytest.mark.parametrize(
    "name", ["20240131", "2024-01-31", "19991231_0830", "ses-1", "Visit 2", "baseline", "follow-up"]
)
def test_dates_and_visits_name_no_patient(name):
    assert names.is_occasion(name)


@pytest.mark.parametrize("name", ["20241331", "0930-A", "12345678", "2024", "visitor", "P1", ""])
def test_other_folders_may_name_a_patient(name):
    assert not names.is_occasion(name)
