"""Case and sequence in the layouts in which data sets are shared."""

import json
from pathlib import Path

import pytest

from sslmedsam2.contract.labelled import find_labelled_series
from sslmedsam2.contract.masks import find_predictions, find_references, match_masks
from sslmedsam2.contract.outputs import mask_path
from sslmedsam2.contract.sequence_map import parse_sequence_map
from sslmedsam2.contract.studies import find_queries, find_studies
from sslmedsam2.errors import InputError


@pytest.fixture
def make(tmp_path):
    def files(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return files


def _labelled(root, **options):
    return [(image.case, image.sequence) for image in find_labelled_series(root, **options)]


def _queries(root, **options):
    found = find_queries(root, labelled=(), **options)
    assert not found.problems
    return [(image.case, image.sequence) for image in found.series]


@pytest.mark.parametrize(
    "mask",
    [
        "T2.seg.nrrd",
        "T2-label.nrrd",
        "T2_label.nii.gz",
        "T2_labels.nii.gz",
        "T2_gt.nii.gz",
        "T2_segmentation.nii.gz",
        "segmentation.nii.gz",
        "Segmentation.seg.nrrd",
        "Segmentation-label.nrrd",
        "T2-segmentation.seg.nrrd",
        "mask.nii.gz",
        "label.nii.gz",
    ],
)
def test_masks_are_found_as_slicer_and_itk_snap_name_them(make, mask):
    root = make("c1/T2.nii.gz", f"c1/{mask}")

    (image,) = find_labelled_series(root)
    assert (image.case, image.sequence) == ("c1", "T2")
    assert (image.path.name, image.mask.name) == ("T2.nii.gz", mask)
    assert [series.case for series in find_studies(root).series] == ["c1"]
    (reference,) = find_references(root).masks
    assert (reference.case, reference.sequence, reference.path) == ("c1", "T2", image.mask)


def test_mask_alone_beside_several_images_is_refused(make):
    root = make("c1/T2.nii.gz", "c1/T1.nii.gz", "c1/segmentation.nii.gz")

    with pytest.raises(InputError, match="does not say which of 2 images") as error:
        find_labelled_series(root)
    assert error.value.kind == "ambiguous_label"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("p1_T2.nii.gz", "p1_T2_mask.nii.gz"), ("p1", "T2")),
        (("p1_DWI_800.nii.gz", "mask_p1_DWI_800.nii.gz"), ("p1", "DWI_800")),
        (("p1/p1_T2.nii.gz", "p1/p1_T2.seg.nrrd"), ("p1", "T2")),
        (("p1/scan_T2.nii.gz", "p1/scan_T2_seg.nii.gz"), ("p1", "T2")),
        (("p1/T2_0000.nii.gz", "p1/T2_mask.nii.gz"), ("p1", "T2")),
        (("T2/p1.nii.gz", "T2/p1_seg.nii.gz"), ("p1", "T2")),
        (("p1/T2/image.nii.gz", "p1/T2/mask.nii.gz"), ("p1", "T2")),
        (("p1/T2/T2.nii.gz", "p1/T2/mask_T2.nii.gz"), ("p1", "T2")),
        (("T2/p1/image.nii.gz", "T2/p1/label.nii.gz"), ("p1", "T2")),
        (("p1.nii.gz", "mask_p1.nii.gz"), ("p1", None)),
        (("imagesTr/p1_0000.nii.gz", "labelsTr/p1.nii.gz"), ("p1", None)),
        (("imagesTr/p1_T2_0000.nii.gz", "labelsTr/p1_T2.nii.gz"), ("p1", "T2")),
        (("imagesTr/amos_0001_0000.nii.gz", "labelsTr/amos_0001.nii.gz"), ("amos_0001", None)),
        (("imagesTr/amos_0000_0000.nii.gz", "labelsTr/amos_0000.nii.gz"), ("amos_0000", None)),
        (("p1_0000.nii.gz", "p1_mask.nii.gz"), ("p1", None)),
    ],
)
def test_case_and_sequence_of_labelled_images(make, names, expected):
    root = make(*names)

    assert _labelled(root) == [expected]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("p1_T2.nii.gz", ("p1", "T2")),
        ("p1/p1_T2.nii.gz", ("p1", "T2")),
        ("p1/T2_0000.nii.gz", ("p1", "T2")),
        ("T2/p1.nii.gz", ("p1", "T2")),
        ("p1/T2/image.nii.gz", ("p1", "T2")),
        ("imagesTr/p1_0000.nii.gz", ("p1", None)),
        ("imagesTr/amos_0001_0000.nii.gz", ("amos_0001", None)),
        ("p1_0000.nii.gz", ("p1", None)),
        ("imagesTs/p1_T2_0000.nii.gz", ("p1", "T2")),
    ],
)
def test_queries_are_the_cases_that_labelled_images_would_be(make, name, expected):
    assert _queries(make(name)) == [expected]


@pytest.mark.parametrize("name", ["1001-A-S1_T2.nii.gz", "T2_0000.nii.gz", "scan_T2.nii.gz"])
def test_folder_named_as_a_case_may_repeat_the_case_in_its_files(make, name):
    root = make(f"Vendor_A/1001-A-S1/{name}")

    found = find_studies(root)
    assert not found.problems
    assert [(one.case, one.sequence) for one in found.series] == [("1001-A-S1", "T2")]
    assert _queries(root) == [("1001-A-S1", "T2")]


def test_prefix_that_several_folders_share_is_no_case(make):
    root = make(*(f"p{n}/abd_T2{end}.nii.gz" for n in (1, 2) for end in ("", "_mask")))

    assert _labelled(root) == [("p1", "T2"), ("p2", "T2")]


def test_channels_of_an_nnunet_data_set_are_named_by_its_json(make):
    root = make(
        *(f"imagesTr/p{case}_000{channel}.nii.gz" for case in (1, 2) for channel in (0, 1)),
        "labelsTr/p1.nii.gz",
        "imagesTs/p3_0000.nii.gz",
    )
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T2", "1": "T1"}}))

    found = find_labelled_series(root)
    assert [(image.case, image.sequence) for image in found] == [("p1", "T1"), ("p1", "T2")]
    assert {image.mask for image in found} == {root / "labelsTr" / "p1.nii.gz"}
    queries = find_queries(root, labelled=found)
    assert [(image.case, image.sequence) for image in queries.series] == [
        ("p2", "T1"),
        ("p2", "T2"),
        ("p3", "T2"),
    ]
    assert not any("labelsTr" in str(series.path) for series in queries.series)
    folders = {series.path.parent.name for series in find_studies(root).series}
    assert folders == {"imagesTr", "imagesTs"}


def test_label_without_its_image_in_an_nnunet_data_set_is_an_error(make):
    root = make("imagesTr/p1_0000.nii.gz", "labelsTr/p1.nii.gz", "labelsTr/p2.nii.gz")

    with pytest.raises(InputError, match="there is no p2_0000 in imagesTr") as error:
        find_labelled_series(root)
    assert error.value.kind == "mask_without_image"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"p1/ax_haste.nii.gz": "T2"}, ("p1", "T2")),
        ({"AX_HASTE": "T2"}, ("p1", "T2")),
        ({"p1/ax_haste": "T2"}, ("p1", "T2")),
    ],
)
def test_sequence_map_names_files(make, table, expected):
    root = make("p1/ax_haste.nii.gz", "p1/ax_haste_mask.nii.gz")
    chosen = parse_sequence_map(table)

    assert _labelled(root, sequence_map=chosen) == [expected]
    assert _queries(root, sequence_map=chosen) == [expected]
    found = find_studies(root, sequence_map=chosen).series
    assert [(one.case, one.sequence) for one in found] == [expected]


def test_sequence_map_names_parts_of_names_and_folders(make):
    chosen = parse_sequence_map({"haste": "T2", "vibe": "GED4"})
    root = make("p1_haste.nii.gz", "p1_haste_seg.nii.gz", "vibe/p1.nii.gz", "vibe/p1_seg.nii.gz")

    assert _labelled(root, sequence_map=chosen) == [("p1", "GED4"), ("p1", "T2")]
    assert _queries(root, sequence_map=chosen) == [("p1", "GED4"), ("p1", "T2")]
    found = find_studies(root, sequence_map=chosen).series
    assert [(one.case, one.sequence) for one in found] == [
        ("p1", "GED4"),
        ("p1", "T2"),
    ]


def test_sequence_map_may_give_one_sequence_to_several_cases_of_a_folder(make):
    chosen = parse_sequence_map({"a.nii.gz": "T2", "b.nii.gz": "T2"})
    root = make("a.nii.gz", "b.nii.gz")

    assert _queries(root, sequence_map=chosen) == [("a", "T2"), ("b", "T2")]


def test_sequence_map_skips_files(make):
    chosen = parse_sequence_map({"p1/T1.nii.gz": "skip"})
    root = make(*(f"p1/{end}T{n}.nii.gz" for n in (1, 2) for end in ("", "mask_")))

    assert _labelled(root, sequence_map=chosen) == [("p1", "T2")]
    assert _queries(root, sequence_map=chosen) == [("p1", "T2")]


_IN_FOLDERS = [
    ("P1/T2/T2", "P1/T1/T1", "P2/T2/T2"),
    ("P1/T2/scan", "P1/T1/scan", "P2/T2/scan"),
    ("P1/T2/P1_T2", "P1/T1/P1_T1", "P2/T2/P2_T2"),
    ("T2/P1", "T1/P1", "T2/P2"),
    ("T2/P1/scan", "T1/P1/scan", "T2/P2/scan"),
    ("T2/P1/T2", "T1/P1/T1", "T2/P2/T2"),
    ("Vendor_A/P1/T2/T2", "Vendor_A/P1/T1/T1", "Vendor_A/P2/T2/T2"),
    ("Vendor_A/T2/P1", "Vendor_A/T1/P1", "Vendor_A/T2/P2"),
]


@pytest.mark.parametrize("images", _IN_FOLDERS)
def test_one_folder_for_each_sequence_is_read_alike_by_every_command(make, images):
    masks = [f"{one.rpartition('/')[0]}/mask_{one.rpartition('/')[2]}" for one in images]
    root = make(*(f"scans/{one}.nii.gz" for one in (*images, *masks)))
    expected = [("P1", "T1"), ("P1", "T2"), ("P2", "T2")]

    found = find_studies(root / "scans")

    assert found.problems == ()
    assert [(one.case, one.sequence) for one in found.series] == expected
    assert _labelled(root / "scans") == expected
    assert _queries(root / "scans") == expected
    made = make(*(str(mask_path(Path("out"), one)) for one in found.series))
    pairs = match_masks(find_references(root / "scans"), find_predictions(made / "out"))
    assert len(pairs) == 3
    assert all(prediction is not None for _, prediction in pairs)


def test_of_folders_of_one_sequence_the_better_spelling_is_taken(make):
    root = make("P1/DWI_50/scan.nii.gz", "P1/DWI_800/scan.nii.gz", "P2/DWI_800/scan.nii.gz")

    found = find_studies(root)

    assert [one.path.parent.name for one in found.series] == ["DWI_800", "DWI_800"]
    [left_out] = found.left_out
    assert left_out.path == root / "P1/DWI_50/scan.nii.gz"


def test_two_images_in_a_folder_of_one_sequence_stay_volumes_of_their_own(make):
    found = find_studies(make("P1/T2/a.nii.gz", "P1/T2/b.nii.gz"))

    assert [series.case for series in found.series] == ["P1_T2_a", "P1_T2_b"]
    assert found.problems == ()


def test_patients_of_one_name_below_different_folders_are_still_refused(make):
    found = find_studies(make("site1/T2/P1/scan.nii.gz", "site2/T1/P1/scan.nii.gz"))

    assert [problem.kind for problem in found.problems] == ["duplicate_case"] * 2


def test_entry_of_the_sequence_map_that_fits_nothing_is_reported(make, caplog):
    root = make("p1/haste.nii.gz", "p1/haste_mask.nii.gz")
    chosen = parse_sequence_map({"haste": "T2", "p1_haste": "T1", "p1": "none", "vibe": "skip"})

    chosen.warn_of_unused(root)

    assert [record.message for record in caplog.records] == [
        "--sequence-map: entry 2 ('p1_haste': 'T1') fits no file or series",
        "--sequence-map: entry 4 ('vibe': 'skip') fits no file or series",
    ]


@pytest.mark.parametrize(
    "only", [["p1/haste.nii.gz"], ["p1/haste.nii.gz", "p2/haste.nii.gz"], ["p1"], ["p1", "p2"]]
)
def test_entries_of_the_sequence_map_that_fit_chosen_files_are_not_reported(make, caplog, only):
    root = make("p1/haste.nii.gz", "p2/haste.nii.gz")
    chosen = parse_sequence_map({"haste": "T2", "p1/haste.nii.gz": "T2"})

    if len(only) == 1 and only[0].endswith(".gz"):
        parse_sequence_map({"haste": "T2"}).warn_of_unused(root / only[0])
    chosen.warn_of_unused(root, only=[root / path for path in only])

    assert not caplog.records


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("LiSeg_pred/p1/T2_pred.nii.gz", "p1/T2.seg.nrrd"),
        ("LiSeg_pred/p1/T2_pred.nii.gz", "p1_T2_gt.nii.gz"),
        ("LiSeg_pred/p1/T2_pred.nii.gz", "p1/T2/segmentation.nii.gz"),
        ("LiSeg_pred/p1/T2_pred.nii.gz", "p1/segmentation.nii.gz"),
        ("p1_T2_liver.nii.gz", "p1_T2_mask.nii.gz"),
        ("p1_scan_T2_liver.nii.gz", "p1/scan_T2_mask.nii.gz"),
        ("T2_p1_liver.nii.gz", "T2/p1-label.nrrd"),
        ("p1_0000_liver.nii.gz", "labelsTr/p1.nii.gz"),
        ("imagesTr_p1_0000_liver.nii.gz", "labelsTr/p1.nii.gz"),
        ("p1_pred.nii.gz", "labelsTr/p1.nii.gz"),
        ("amos_0001_pred.nii.gz", "labelsTr/amos_0001.nii.gz"),
        ("amos_0000_0000_liver.nii.gz", "labelsTr/amos_0000.nii.gz"),
        ("imagesTr_amos_0001_0000_liver.nii.gz", "labelsTr/amos_0001.nii.gz"),
    ],
)
def test_predictions_meet_references_of_every_layout(make, prediction, reference):
    root = make(f"pred/{prediction}", f"ref/{reference}")
    references = find_references(root / "ref")

    ((found, matched),) = match_masks(references, find_predictions(root / "pred"))
    assert found.path == root / "ref" / reference
    assert matched is not None
    assert matched.path == root / "pred" / prediction


def test_images_of_an_nnunet_data_set_are_no_references(make):
    root = make("imagesTr/p1_0000.nii.gz", "labelsTr/p1.nii.gz")

    (mask,) = find_references(root).masks
    assert (mask.case, mask.path.parent.name) == ("p1", "labelsTr")


def test_a_second_mask_of_the_case_is_no_match_for_what_is_left(make):
    root = make(
        *("pred/LiSeg_pred/p1/T1_pred.nii.gz", "pred/p1_liver.nii.gz"),
        *("ref/p1/mask_T1.nii.gz", "ref/p1/mask_T2.nii.gz"),
    )

    pairs = match_masks(find_references(root / "ref"), find_predictions(root / "pred"))
    found = {reference.sequence: matched and matched.path.name for reference, matched in pairs}
    assert found == {"T1": "T1_pred.nii.gz", "T2": None}


def test_prediction_of_another_sequence_of_the_case_is_no_match(make):
    root = make("pred/LiSeg_pred/p1/T1_pred.nii.gz", "ref/p1/mask_T2.nii.gz")

    pairs = match_masks(find_references(root / "ref"), find_predictions(root / "pred"))
    assert [matched for _, matched in pairs] == [None]
