import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sslmedsam2.contract.studies import find_studies
from sslmedsam2.errors import InputError, NoInputError

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def make(tmp_path):
    """Make files below an input folder and return that folder."""
    root = tmp_path / "input"
    root.mkdir()

    def files(*names):
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"voxels")
        return root

    return files


def listed(discovery):
    """{case: {sequence: file name}}."""
    cases = {}
    for series in discovery.series:
        cases.setdefault(series.case, {})[series.sequence] = series.path.name
    return cases


def kinds(discovery):
    return sorted(error.kind for error in discovery.problems)


@pytest.mark.parametrize(
    ("folder", "vendor"),
    [
        ("Vendor_A/0930-A", "A"),
        ("Vendor-B1/0930-B1", "B1"),
        ("VendorB2/0930-B2", "B2"),
        ("vendor c/0930-C", "C"),
        ("LiQA_val/Data/Vendor_A/0930-A", "A"),
        ("0930-A", "A"),
        ("Data/1041-B2-S3", "B2"),
        ("Case001", None),
        ("a/b/c/d/e/Case001", None),
    ],
)
def test_every_folder_form_of_the_contract_is_a_case(make, folder, vendor):
    discovery = find_studies(make(f"{folder}/GED4.nii.gz", f"{folder}/T1.nii.gz"))

    assert {series.case for series in discovery.series} == {Path(folder).name}
    assert [series.sequence for series in discovery.series] == ["GED4", "T1"]
    assert {series.vendor for series in discovery.series} == {vendor}
    assert discovery.problems == ()
    assert discovery.notes == ()


def test_the_input_may_be_a_vendor_folder_or_one_case(make):
    root = make("Vendor_A/x1/GED4.nii.gz")

    by_vendor = find_studies(root / "Vendor_A").series[0]
    by_case = find_studies(root / "Vendor_A" / "x1").series[0]

    assert (by_vendor.case, by_vendor.vendor) == ("x1", "A")
    assert by_case.case == "x1"


def test_a_flat_folder_with_a_lone_ged4_is_a_case_named_after_the_folder(make, monkeypatch):
    root = make("GED4.nii.gz")
    monkeypatch.chdir(root)

    assert listed(find_studies(root)) == {"input": {"GED4": "GED4.nii.gz"}}
    assert listed(find_studies(Path())) == {"input": {"GED4": "GED4.nii.gz"}}


def test_a_folder_that_is_a_date_or_a_visit_has_its_patient_in_front(make):
    root = make(
        *(f"{p}/20240131/T2.nii.gz" for p in ("p1", "p2")),
        "p2/2024-03-01/T2/scan.nii.gz",
        "p3/visit1/T1.nii.gz",
        "20240131/T2.nii.gz",
        "Vendor_A/20240131b/T2.nii.gz",
    )

    found = find_studies(root)

    assert found.problems == ()
    assert sorted(listed(found)) == [
        *("20240131", "20240131b", "p1_20240131", "p2_2024-03-01", "p2_20240131", "p3_visit1"),
    ]


def test_the_training_name_gives_the_vendor(make):
    (series,) = find_studies(make("1406-A-S1/GED4.nii.gz")).series

    assert series.vendor == "A"


def test_sequences_come_in_processing_order_under_canonical_names(make):
    root = make(*(f"c/{n}.nii.gz" for n in ("t1wi", "T2WI", "dwi_b800", "GED-4", "GED1")))

    default, all_of_them = find_studies(root), find_studies(root, sequences=("GED1", "T1"))

    assert list(listed(default)["c"].items()) == [
        ("GED4", "GED-4.nii.gz"),
        ("T1", "t1wi.nii.gz"),
        ("T2", "T2WI.nii.gz"),
        ("DWI_800", "dwi_b800.nii.gz"),
    ]
    assert list(listed(all_of_them)["c"]) == ["T1", "GED1"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ", ".mha", ".nrrd"])
def test_every_volume_suffix_is_accepted(make, suffix):
    assert listed(find_studies(make(f"c/T2{suffix}"))) == {"c": {"T2": f"T2{suffix}"}}


def test_masks_and_hidden_files_are_never_images(make):
    root = make(
        "c/T2.nii.gz",
        *(f"c/{n}.nii.gz" for n in ("mask_T2", "organs_T2", "T1_mask", "GED4_seg", "T1_pred")),
        "c/._GED4.nii.gz",
        "c/.DS_Store",
        "__MACOSX/c/GED4.nii.gz",
        ".cache/d/GED4.nii.gz",
        "c.replaced-20261128T195023Z/GED4.nii.gz",
    )

    discovery = find_studies(root)

    assert listed(discovery) == {"c": {"T2": "T2.nii.gz"}}
    assert discovery.problems == ()
    assert discovery.notes == ()


def test_numbers_repeat_across_vendors_and_the_whole_name_tells_them_apart(make):
    discovery = find_studies(make("Vendor_A/1053-A/T1.nii.gz", "Vendor_B2/1053-B2/T1.nii.gz"))

    assert list(listed(discovery)) == ["1053-A", "1053-B2"]
    assert discovery.problems == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Vendor_A/0001-A", "Vendor_C/0001-A"),
        ("Vendor_A/case", "deep/down/Case"),
        ("x/M\u00fcller", "y/Mu\u0308ller"),
    ],
)
def test_a_case_name_that_occurs_twice_is_an_error_for_both(make, one, other):
    root = make(f"{one}/GED4.nii.gz", f"{other}/T1.nii.gz", "good/GED4.nii.gz")

    discovery = find_studies(root)

    assert list(listed(discovery)) == ["good"]
    assert kinds(discovery) == ["duplicate_case"] * 2
    first, second = discovery.problems
    assert str(root / one) in first.subject + second.subject
    assert first.subject in second.reason
    assert second.subject in first.reason


def test_compressed_and_plain_file_of_one_sequence_are_an_error_that_names_both(make):
    discovery = find_studies(make("c/T1.nii", "c/T1.nii.gz", "c/T2.nii.gz"))

    assert listed(discovery) == {"c": {"T2": "T2.nii.gz"}}
    assert kinds(discovery) == ["ambiguous_sequence"]
    assert "T1.nii and T1.nii.gz" in str(discovery.problems[0])


def test_two_names_of_one_real_file_are_one_file(make):
    root = make("c/T1.nii.gz")
    (root / "c" / "T1.nii").symlink_to("T1.nii.gz")

    discovery = find_studies(root)

    assert list(listed(discovery)["c"]) == ["T1"]
    assert discovery.problems == ()


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("T2", "T2WI"), ("DWI_800", "DWI_400"), ("DWI_b800", "DWI_b50"), ("GED4", "GED_4")],
)
def test_the_better_spelling_wins_and_is_noted(make, chosen, rejected):
    discovery = find_studies(make(f"c/{chosen}.nii.gz", f"c/{rejected}.nii.gz"))

    assert list(listed(discovery)["c"].values()) == [f"{chosen}.nii.gz"]
    assert len(discovery.notes) == 1
    assert f"{rejected}.nii.gz" in discovery.notes[0]
    assert discovery.problems == ()


@pytest.mark.parametrize(("one", "other"), [("DWI_400", "DWI_50"), ("T1WI", "T1_WI")])
def test_equally_good_spellings_are_ambiguous(make, one, other):
    discovery = find_studies(make(f"c/{one}.nii.gz", f"c/{other}.nii.gz"))

    assert discovery.series == ()
    assert kinds(discovery) == ["ambiguous_sequence"]


def test_another_b_value_is_reported(make):
    discovery = find_studies(make("c/DWI_b50.nii.gz"))

    assert listed(discovery) == {"c": {"DWI_800": "DWI_b50.nii.gz"}}
    [note] = discovery.notes
    assert note.endswith("is taken for DWI_800, though its name says b = 50")


@pytest.mark.parametrize("derived", ["DWI_ADC", "dwi-adc", "T1_sub", "p1_T2_mip"])
def test_images_computed_from_others_are_left_out(make, derived):
    discovery = find_studies(make("c/T2.nii.gz", f"c/{derived}.nii.gz"))

    assert listed(discovery) == {"c": {"T2": "T2.nii.gz"}}
    assert [one.path.name for one in discovery.left_out] == [f"{derived}.nii.gz"]


@pytest.mark.parametrize("folder", ["masks", "Labels", "segmentations"])
def test_files_in_folders_of_masks_are_no_scans(make, folder):
    discovery = find_studies(make("P1/scan.nii.gz", f"P1/{folder}/liver.nii.gz"))

    assert [one.case for one in discovery.series] == ["P1_scan"]


def test_a_scan_named_like_a_mask_is_left_out_with_the_reason(make):
    discovery = find_studies(make("T2.nii.gz", "liver_seg.nii.gz", "mask_T2.nii.gz"))

    assert [one.path.name for one in discovery.series] == ["T2.nii.gz"]
    [left_out] = discovery.left_out
    assert left_out.path.name == "liver_seg.nii.gz"
    assert "named like a mask" in left_out.reason


@pytest.mark.parametrize("name", ["masks/scan_mask.nii.gz", "maps/probability_scan.nii.gz"])
def test_masks_and_maps_in_folders_of_their_own_are_not_listed_as_left_out(make, name):
    assert find_studies(make("scan.nii.gz", name)).left_out == ()


def test_a_folder_of_masks_alone_says_so(make):
    [note] = find_studies(make("T2_pred.nii.gz", "notes.txt")).notes

    assert note.endswith("no image among its 2 files, 1 of them named like masks")


def test_unknown_files_in_a_case_are_noted_and_left_alone(make):
    discovery = find_studies(make("c/GED4.nii.gz", "c/ADC.nii.gz", "c/readme.txt"))

    assert listed(discovery) == {"c": {"GED4": "GED4.nii.gz"}}
    assert len(discovery.notes) == 2
    assert discovery.problems == ()


@pytest.mark.parametrize("files", [("scan.nii.gz",), ("mask_T2.nii.gz",), ("a.txt",)])
@pytest.mark.parametrize("folder", ["0930-A", "Vendor_A/Case1"])
def test_a_case_folder_without_a_recognised_image_is_an_error(make, folder, files):
    discovery = find_studies(make(*(f"{folder}/{file}" for file in files), "ok/T1.nii.gz"))

    assert list(listed(discovery)) == ["ok"]
    assert kinds(discovery) == ["unknown_sequence" if files == ("scan.nii.gz",) else "empty_case"]


def test_a_flat_folder_of_volumes_gives_a_case_a_file(make):
    root = make("anna.nii.gz", "bert.mha", "carl.nrrd", "dora.nii", "notes.txt", "mask_anna.nii.gz")

    discovery = find_studies(root)

    assert listed(discovery) == {
        "anna": {None: "anna.nii.gz"},
        "bert": {None: "bert.mha"},
        "carl": {None: "carl.nrrd"},
        "dora": {None: "dora.nii"},
    }
    assert discovery.problems == ()


def test_volumes_in_sub_folders_are_told_apart_by_the_folders(make):
    discovery = find_studies(make("one/scan.nii.gz", "two/scan.nii.gz"))

    assert list(listed(discovery)) == ["one_scan", "two_scan"]


def test_volumes_without_sequence_of_one_name_are_an_error_for_both(make):
    discovery = find_studies(make("a.nii", "a.nii.gz", "b_c.nii", "b/c.nii"))

    assert discovery.series == ()
    assert kinds(discovery) == ["duplicate_case"] * 4


def test_mixed_inputs_are_both_handled(make):
    discovery = find_studies(make("anna.nii.gz", "Vendor_A/0930-A/GED4.nii.gz"))

    assert listed(discovery) == {
        "0930-A": {"GED4": "GED4.nii.gz"},
        "anna": {None: "anna.nii.gz"},
    }


def test_a_single_file_is_a_case(make):
    root = make("anna.nii.gz", "bert.nii.gz", "0930-A/GED4.nii.gz", "0930-A/T1.nii.gz")

    assert listed(find_studies(root / "anna.nii.gz")) == {"anna": {None: "anna.nii.gz"}}
    assert listed(find_studies(root / "0930-A/GED4.nii.gz")) == {"0930-A": {"GED4": "GED4.nii.gz"}}


def test_a_single_mask_is_refused(make):
    assert kinds(find_studies(make("mask_T2.nii.gz") / "mask_T2.nii.gz")) == ["mask_as_input"]


def test_results_of_an_earlier_run_are_not_taken_for_images(make):
    root = make(
        "anna.nii.gz",
        "anna_liver.nii.gz",
        "out/anna_liver.nii.gz",
        "out/LiSeg_pred/0930-A/GED4_pred.nii.gz",
        "out/dicom_seg/x_liver.nii.gz",
        "MR_liver.nii.gz",
    )

    discovery = find_studies(root)

    assert list(listed(discovery)) == ["MR_liver", "anna"]
    assert [one.path.relative_to(root) for one in discovery.left_out] == [
        Path("anna_liver.nii.gz"),
        Path("out/anna_liver.nii.gz"),
    ]


def test_files_that_the_report_of_a_run_lists_are_not_taken_for_images(make):
    root = make("anna.nii.gz", "out/images/anna.mha", "out/maps/x.nii.gz", "out/maps/emil.nii.gz")
    result = {
        "output_path": "images/anna.mha",
        "dicom_seg_path": None,
        "map_paths": ["maps/x.nii.gz"],
    }
    (root / "out" / "run_report.json").write_text(json.dumps({"series": [result]}))

    assert list(listed(find_studies(root))) == ["anna", "out_maps_emil"]


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"series": [{}]}', '{"series": [1]}', "\xff", "[" * 10**5],
    ids=["list", "torn", "empty", "number", "no UTF-8", "nested"],
)
def test_a_report_that_is_none_hides_no_image(make, content):
    root = make("anna.nii.gz")
    (root / "run_report.json").write_bytes(content.encode("latin-1"))

    assert list(listed(find_studies(root))) == ["anna"]


def test_scans_in_a_folder_called_previews_are_used(make):
    root = make("previews/anna.nii.gz")

    assert list(listed(find_studies(root))) == ["previews_anna"]


def test_a_missing_input_is_an_error(tmp_path):
    with pytest.raises(NoInputError, match="does not exist"):
        find_studies(tmp_path / "nowhere")


def test_a_file_that_is_no_volume_is_an_error(make):
    with pytest.raises(NoInputError, match="neither a folder nor a volume"):
        find_studies(make("a.txt") / "a.txt")


def test_an_input_without_images_is_empty_and_says_so(make):
    discovery = find_studies(make("IM0001.dcm", "sub/IM0002.dcm"))

    assert discovery.series == ()
    assert "no image among its 2 files" in discovery.notes[0]


def test_links_in_a_circle_end(make):
    root = make("Vendor_A/0930-A/GED4.nii.gz")
    (root / "Vendor_A" / "loop").symlink_to(root, target_is_directory=True)
    (root / "again").symlink_to(root / "Vendor_A" / "0930-A", target_is_directory=True)

    discovery = find_studies(root)

    assert list(listed(discovery)) == ["0930-A"]
    assert discovery.problems == ()
    assert len(discovery.notes) == 2


def test_a_link_to_a_folder_above_the_input_is_not_followed(make):
    root = make("c/T2.nii.gz", "d/T1.nii.gz")
    (root / "c" / "up").symlink_to("../..")

    found = find_studies(root / "c")

    assert listed(found) == {"c": {"T2": "T2.nii.gz"}}
    assert any("leads to a folder that holds the input" in note for note in found.notes)


def test_a_linked_case_is_named_by_the_link(make, tmp_path):
    elsewhere = tmp_path / "store" / "abcdef"
    elsewhere.mkdir(parents=True)
    (elsewhere / "GED4.nii.gz").write_bytes(b"voxels")
    root = make()
    (root / "0930-A").symlink_to(elsewhere, target_is_directory=True)

    assert list(listed(find_studies(root))) == ["0930-A"]


def _broken_link(path):
    path.symlink_to("nowhere.nii.gz")


def _link_to_itself(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (_broken_link, "broken_link"),
        (_link_to_itself, "broken_link"),
        (Path.mkdir, "folder_as_volume"),
        (os.mkfifo, "not_a_file"),
    ],
)
@pytest.mark.parametrize("folder", ["0930-A", "plain"])
def test_what_is_named_like_an_image_and_is_none_is_an_error(make, spoil, kind, folder):
    root = make(f"{folder}/readme.txt", "good/GED4.nii.gz")
    spoil(root / folder / "GED4.nii.gz")

    discovery = find_studies(root)

    assert list(listed(discovery)) == ["good"]
    assert kinds(discovery) == [kind]
    assert discovery.problems[0].subject == str(root / folder / "GED4.nii.gz")


def test_an_unreadable_folder_is_an_error_and_the_others_go_on(make, monkeypatch):
    root = make("good/GED4.nii.gz", "shut/GED4.nii.gz")
    scandir = os.scandir

    # Permissions do not bind root, who runs tests in containers.
    def guarded(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    discovery = find_studies(root)

    assert list(listed(discovery)) == ["good"]
    assert kinds(discovery) == ["unreadable_folder"]


def test_a_name_that_cannot_be_a_path_component_is_an_error(make):
    discovery = find_studies(make("bad\nname/GED4.nii.gz", "x" * 200 + ".nii.gz", "c/T1.nii.gz"))

    assert list(listed(discovery)) == ["c"]
    assert kinds(discovery) == ["unsafe_name"] * 2
    assert all("\n" not in str(error) for error in discovery.problems)


def test_problems_are_input_errors_and_discovery_does_not_import_imaging_libraries(make):
    root = make("0930-A/scan.nii.gz")
    assert isinstance(find_studies(root).problems[0], InputError)
    code = (
        "import sys, pathlib\n"
        "from sslmedsam2.contract.studies import find_studies\n"
        f"find_studies(pathlib.Path({str(root)!r}))\n"
        "print(sorted({'torch', 'SimpleITK', 'nibabel', 'numpy'} & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_folder_in_conflict_with_its_name_is_noted(make):
    discovery = find_studies(make("Vendor_C/0930-A/GED4.nii.gz"))

    assert discovery.series[0].vendor == "C"
    assert "named as vendor A" in discovery.notes[0]


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real scans are not here")
def test_the_real_folders_are_read():
    chaos, ct = find_studies(REAL_DATA / "chaos_mr_t2"), find_studies(REAL_DATA / "totalseg_ct")

    assert len(chaos.series) == 16
    assert {series.sequence for series in chaos.series} == {"T2"}
    assert list(listed(ct)) == ["tsct01_CT"]
    assert chaos.problems == ct.problems == ()


def test_a_scan_beside_named_ones_is_a_case_without_a_sequence(make):
    root = make("0930-A/GED4.nii.gz", "0930-A/extra.nii.gz", "0930-A/GED1.nii.gz")

    default, chosen = find_studies(root), find_studies(root, sequences=("GED4",))

    assert listed(default) == {
        "0930-A": {"GED4": "GED4.nii.gz"},
        "0930-A_extra": {None: "extra.nii.gz"},
    }
    assert [(one.path.name, one.reason) for one in default.left_out] == [
        ("GED1.nii.gz", "GED1 is used only if --sequences names it")
    ]
    assert list(listed(chosen)) == ["0930-A"]
    assert {one.path.name for one in chosen.left_out} == {"extra.nii.gz", "GED1.nii.gz"}


def test_whatever_looks_like_an_image_is_left_out_with_its_reason(make):
    root = make("c/GED4.nii.gz", "c/T2WI.nii.gz", "c/T2.nii.gz", "c/ADC.nii.gz")
    for name in ("scan.mnc", "study.tar.gz", "lonely.img", "lonely.rec", "page.png"):
        (root / "c" / name).write_bytes(b"content")
    (root / "c" / "headless").write_bytes(bytes(344) + b"n+1\0" + bytes(8))
    (root / "c" / "notes.txt").write_text("no image")

    reasons = {one.path.name: one.reason for one in find_studies(root).left_out}

    assert reasons.keys() == {"T2WI.nii.gz", "ADC.nii.gz", "scan.mnc", "study.tar.gz",
                              "lonely.img", "lonely.rec", "page.png", "headless"}  # fmt: skip
    assert "NIfTI" in reasons["headless"]
    assert "without a header" in reasons["lonely.img"]
    assert "unpack" in reasons["study.tar.gz"]


def test_the_voxels_of_a_header_beside_them_are_no_image_of_their_own(make):
    root = make("a.nhdr", "b.hdr", "c.par", "d.mhd")
    for name in ("a.raw.gz", "b.img", "c.rec", "d.zraw"):
        (root / name).write_bytes(b"voxels")

    discovery = find_studies(root)

    assert len(discovery.series) == 4
    assert discovery.left_out == ()


def test_names_after_bids_give_subject_session_and_sequence(make):
    root = make(
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_T2w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_run-2_T2w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_PDw.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_label-liver_desc-T2w_mask.nii.gz",
    )

    discovery = find_studies(root)

    assert listed(discovery) == {
        "sub-01": {"T1": "sub-01_T1w.nii.gz", "T2": "sub-01_T2w.nii.gz"},
        "sub-02_ses-a_run-1": {"T2": "sub-02_ses-a_run-1_T2w.nii.gz"},
        "sub-02_ses-a_run-2": {"T2": "sub-02_ses-a_run-2_T2w.nii.gz"},
        "sub-02_ses-a_anat_sub-02_ses-a_PDw": {None: "sub-02_ses-a_PDw.nii.gz"},
    }
    assert discovery.problems == ()


def test_only_some_files_and_folders_of_an_input_are_looked_at(make):
    root = make("a/x.nii.gz", "a/y.nii.gz", "b/0930-A/T1.nii.gz", "b/0931-A/T1.nii.gz", "c/x.mha")

    given = [root / "a" / "x.nii.gz", root / "b" / "0931-A", root / "b" / "0931-A" / "T1.nii.gz"]
    discovery = find_studies(root, only=given)

    assert listed(discovery) == {"a_x": {None: "x.nii.gz"}, "0931-A": {"T1": "T1.nii.gz"}}
    assert discovery.problems == ()
