import pytest

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.contract.studies import find_queries
from sslmedsam2.errors import NoInputError


def touch(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(root, support, **options):
    queries = find_queries(root, labelled=find_labelled_series(support), **options)
    assert not queries.problems
    return [(series.case, series.sequence) for series in queries.series]


@pytest.fixture
def support(tmp_path):
    touch(tmp_path / "support", "1001-A-S1/GED4.nii.gz", "1001-A-S1/mask_GED4.nii.gz")
    return tmp_path / "support"


def test_volumes_of_any_layout_are_queries_by_case_and_processing_order(tmp_path, support):
    touch(tmp_path / "q", "Vendor_C/0002-C/T2WI.nii.gz", "Vendor_C/0002-C/GED4.nii.gz")
    touch(tmp_path / "q", "0001-B1/T1.nii.gz", "odd/scan.mha")

    assert found(tmp_path / "q", support) == [
        ("0001-B1", "T1"),
        ("0002-C", "GED4"),
        ("0002-C", "T2"),
        ("odd_scan", None),
    ]


def test_sequences_choose_among_the_named(tmp_path, support):
    touch(tmp_path / "q", "0001-A/T1.nii.gz", "0001-A/GED1.nii.gz", "0002-A/T2.nii.gz")

    assert found(tmp_path / "q", support, sequences=("GED1", "T2")) == [
        ("0001-A", "GED1"),
        ("0002-A", "T2"),
    ]


def test_all_sequences_are_queries_unless_some_are_chosen(tmp_path, support):
    names = ("GED4", "T1", "T2", "DWI_800", "GED1", "GED2", "GED3")
    touch(tmp_path / "q", "0001-A/portal.nii.gz", *(f"0001-A/{name}.nii.gz" for name in names))
    labelled = find_labelled_series(support)

    chosen = find_queries(tmp_path / "q", labelled=labelled, sequences=("T1",))

    named = [("0001-A", name) for name in names]
    assert found(tmp_path / "q", support) == [*named, ("0001-A_portal", None)]
    assert [one.sequence for one in chosen.series] == ["T1"]
    for name in (*names, "portal"):
        is_told = any(f"{name}.nii.gz: is left out" in note for note in chosen.notes)
        assert is_told == (name != "T1")


def test_a_mask_beside_a_query_is_passed_over(tmp_path, support):
    touch(tmp_path / "q", "0001-A/T2.nii.gz", "0001-A/mask_T2.nii.gz")

    assert found(tmp_path / "q", support) == [("0001-A", "T2")]


def test_a_labelled_image_is_no_query_whichever_way_it_is_reached(tmp_path, support):
    touch(support, "1001-A-S1/T2.nii.gz", "0005-A/GED4.nii.gz")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "linked").symlink_to(support, target_is_directory=True)

    expected = [("0005-A", "GED4"), ("1001-A-S1", "T2")]
    assert found(support, support) == expected
    assert found(support.parent / "support" / "..", support) == expected
    assert found(tmp_path / "q", support) == expected


def test_what_was_left_out_is_noted(support):
    queries = find_queries(support, labelled=find_labelled_series(support))

    assert queries.series == ()
    assert any("needs no pseudo label" in note for note in queries.notes)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(NoInputError):
        find_queries(tmp_path / "none", labelled=())


def test_an_archive_of_queries_is_refused_with_what_to_do(tmp_path):
    touch(tmp_path, "queries.zip")

    with pytest.raises(NoInputError, match=r"is an archive.*Unpack it"):
        find_queries(tmp_path / "queries.zip", labelled=[])


def test_case_numbers_of_four_digits_are_no_channels(tmp_path, support):
    touch(tmp_path / "q", "imagesTr/amos_0507.nii.gz", "imagesTr/amos_0508.nii.gz")

    assert found(tmp_path / "q", support) == [("amos_0507", None), ("amos_0508", None)]
