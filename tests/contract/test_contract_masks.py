import pytest

from sslmedsam2.contract.masks import find_predictions, find_references, mask_key
from sslmedsam2.errors import NoInputError


@pytest.fixture
def make(tmp_path):
    def files(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"voxels")
        return tmp_path

    return files


def keys(listing):
    return [(mask.case, mask.sequence) for mask in listing.masks]


@pytest.mark.parametrize(
    "names",
    [
        ("0930-A/mask_GED4.nii.gz", "0930-A/mask_DWI_800.nii.gz"),
        ("Vendor_A/0930-A/GED4_mask.nii.gz", "Vendor_A/0930-A/DWI_mask.nii.gz"),
        ("0930-A/GED4_seg.nii", "0930-A/DWI_b800_seg.nii"),
        ("0930-A/GED4.nii.gz", "0930-A/DWI_800.nii.gz"),
        ("0930-A/mask_GED4.nii.gz", "0930-A/mask_DWI_800.nii.gz", "0930-A/GED4.nii.gz"),
        ("LiSeg_pred/0930-A/GED4_pred.nii.gz", "LiSeg_pred/0930-A/DWI_800_pred.nii.gz"),
    ],
)
def test_references_in_case_folders(make, names):
    listing = find_references(make(*names))

    assert keys(listing) == [("0930-A", "GED4"), ("0930-A", "DWI_800")]
    assert {mask.vendor for mask in listing.masks} == {"A"}
    assert listing.problems == ()


@pytest.mark.parametrize(
    "names",
    [
        ("anna.nii.gz", "bert.mha"),
        ("mask_anna.nii.gz", "bert_mask.nii.gz", "anna.nii.gz", "bert.nii.gz"),
        ("anna_liver.nii.gz", "bert_liver.nii.gz"),
    ],
)
def test_flat_references_are_called_by_their_image(make, names):
    assert keys(find_references(make(*names))) == [("anna", None), ("bert", None)]


def test_unlabelled_cases_of_a_training_folder_are_no_references(make):
    root = make("1-A/GED4.nii.gz", "1-A/mask_GED4.nii.gz", "2-A/GED4.nii.gz", "2-A/T1.nii.gz")

    assert keys(find_references(root)) == [("1-A", "GED4")]


def test_organ_maps_are_no_references(make):
    root = make("c/T2.nii.gz", "c/mask_T2.nii.gz", "c/organs_T2.nii.gz")

    assert keys(find_references(root)) == [("c", "T2")]


def test_names_agree_with_those_predictions_get(make):
    references = find_references(make("tsct01/CT.nii.gz", "tsct01/mask_CT.nii.gz"))

    assert keys(references) == [("tsct01_CT", None)]


def test_predictions_of_both_layouts(make):
    root = make(
        "LiSeg_pred/0930-A/GED4_pred.nii.gz",
        "LiSeg_pred/0930-A/.GED4_pred.nii.gz",
        "anna_liver.nii.gz",
        "previews/0930-A_GED4.png",
        "run_report.json",
    )

    assert keys(find_predictions(root)) == [("0930-A", "GED4"), ("anna", None)]
    assert keys(find_predictions(root / "LiSeg_pred")) == [("0930-A", "GED4")]


def test_predictions_beside_images_and_references_are_told_apart(make):
    root = make("c/T2.nii.gz", "c/mask_T2.nii.gz", "c/T2_pred.nii.gz")

    assert find_predictions(root).masks[0].path.name == "T2_pred.nii.gz"
    assert find_references(root).masks[0].path.name == "mask_T2.nii.gz"


def test_two_masks_of_one_image_are_a_problem_and_neither_is_used(make):
    listing = find_references(make("c/mask_T2.nii.gz", "c/T2_mask.nii.gz", "d/mask_T2.nii.gz"))

    assert keys(listing) == [("d", "T2")]
    (problem,) = listing.problems
    assert problem.kind == "duplicate_mask"
    assert "mask_T2.nii.gz" in str(problem)
    assert "T2_mask.nii.gz" in str(problem)


def test_a_key_ignores_letter_case_as_disks_do(make):
    (one,) = find_references(make("a/Case1/mask_T2.nii.gz")).masks
    (other,) = find_predictions(make("b/CASE1/T2_pred.nii.gz") / "b").masks

    assert mask_key(one) == mask_key(other)


@pytest.mark.parametrize("find", [find_predictions, find_references])
def test_a_folder_without_masks_is_an_error(make, tmp_path, find):
    make("x/notes.txt", "x/organs_T2.nii.gz")

    with pytest.raises(NoInputError, match="no masks"):
        find(tmp_path / "x")
    with pytest.raises(NoInputError, match="no such folder"):
        find(tmp_path / "nowhere")


def test_a_link_that_leads_nowhere_is_named_where_it_leaves_no_mask(make, tmp_path):
    make("x/notes.txt")
    (tmp_path / "x" / "mask_GED4.nii.gz").symlink_to(tmp_path / "nowhere")

    with pytest.raises(
        NoInputError, match=r"no masks \(.*GED4.nii.gz is a link that leads nowhere"
    ):
        find_references(tmp_path / "x")


@pytest.mark.parametrize(
    "link", ["0931-B/mask_GED4.nii.gz", "labelsTr/0931-B.nii.gz", "0931-B/GED4_seg.nii.gz"]
)
def test_a_reference_that_is_a_link_to_nowhere_is_a_problem(make, tmp_path, link):
    path = make("0930-A/mask_GED4.nii.gz") / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("not_fetched.nii.gz")

    listing = find_references(tmp_path)
    assert keys(listing) == [("0930-A", "GED4")]
    assert [(one.subject, one.kind) for one in listing.problems] == [(str(path), "broken_link")]


def test_an_image_beside_references_that_is_a_link_to_nowhere_is_no_problem(make, tmp_path):
    (make("0930-A/mask_GED4.nii.gz") / "0930-A" / "GED4.nii.gz").symlink_to("not_fetched.nii.gz")

    assert find_references(tmp_path).problems == ()
