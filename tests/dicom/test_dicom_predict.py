"""``predict`` on DICOM from end to end: masks, DICOM-SEG, report, page, and no patient in them."""

import csv
import importlib
import json
import re
import stat
import zipfile
from pathlib import Path

import dicom_samples
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_samples import PATIENT_ID, PATIENT_NAME, write_enhanced
from tiny_models import bright_tissue_model
from tiny_scans import abdomen, write_scan

from sslmedsam2.cli.main import main
from sslmedsam2.contract.walk import walk_input
from sslmedsam2.dicom.discovery import find_volumes
from sslmedsam2.dicom.files import find_dicom_files
from sslmedsam2.dicom.segmentation import read_dicom_seg
from sslmedsam2.errors import ExitCode
from sslmedsam2.imaging.geometry import same_grid
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.predict.inputs import InputImages
from sslmedsam2.reporting.run_report import SeriesStatus, load_report
from sslmedsam2.weights.freeze import freeze_model
from sslmedsam2.weights.manifest import ModelCard

SHARED = Path(__file__).parents[3] / "shared" / "data"
# Every other voxel: most of the time goes into writing, reading and naming single slices.
ARRAY, LIVER = (array[::2, ::2, ::2] for array in abdomen())
SPACING_ZYX_MM = (14.0, 8.0, 8.0)
GED4 = {"number": 5, "description": "t1_vibe_fs_20min"}


def write_series(folder, array_zyx, **how):
    return dicom_samples.write_series(
        folder, array_zyx, **{"spacing_zyx_mm": SPACING_ZYX_MM, **how}
    )


class Place:
    """An input folder, an output folder and how to run the commands on them."""

    def __init__(self, root, model):
        self.input, self.output, self.model = root / "input", root / "output", model
        self.input.mkdir()

    def predict(self, *args):
        """Run ``predict`` as a user does."""
        folders = ["--input", str(self.input), "--output", str(self.output)]
        how = ["--model", str(self.model), "--device", "cpu", "--no-mirror", "--no-previews"]
        return main(["predict", *folders, *how, *args])

    @property
    def report(self):
        return load_report(self.output / "run_report.json")

    def files(self):
        found = (path for path in self.output.rglob("*") if path.is_file())
        return {path.relative_to(self.output).as_posix() for path in found}

    def volume_of(self, result):
        name = result.input_path.removeprefix("dicom:")
        return find_volumes(find_dicom_files(walk_input(self.input)))[name]


@pytest.fixture
def place(tmp_path, bright_model):
    return Place(tmp_path, bright_model)


def test_dicom_in_an_archive_is_read_as_in_a_folder(place, tmp_path, capsys):
    write_series(tmp_path / "series", ARRAY, **GED4)
    with zipfile.ZipFile(place.input / "export.zip", "w") as file:
        for path in sorted((tmp_path / "series").iterdir()):
            file.write(path, f"DICOM/{path.name}")

    assert main(["dicom", "--input", str(place.input), "--identify"]) == ExitCode.OK
    assert "export.zip/DICOM/" in capsys.readouterr().out
    assert place.predict() == ExitCode.OK
    [result] = place.report.series
    assert result.sequence == "GED4"
    assert (place.output / result.dicom_seg_path).is_file()
    assert not place.report.left_out
    assert InputImages(place.input).read(result.input_path).geometry.shape_zyx == ARRAY.shape


def assert_round_trip(place, result):
    """Check that mask and DICOM-SEG are one mask, on the grid of the images."""
    volume = place.volume_of(result)
    mask = read_mask(place.output / result.output_path)
    seg = read_dicom_seg(place.output / result.dicom_seg_path, volume=volume)
    assert mask.array_zyx.any()
    assert np.array_equal(seg, mask.array_zyx)
    assert same_grid(mask.geometry, volume.geometry)
    return seg


def test_a_series_becomes_a_mask_and_a_dicom_seg(place):
    write_series(place.input / "x", ARRAY, **GED4)

    assert place.predict() == ExitCode.OK

    [result] = place.report.series
    assert place.files() == {
        "run_report.json",
        "liver_volumes.csv",
        f"LiSeg_pred/{result.case}/GED4_pred.nii.gz",
        f"dicom_seg/{result.case}/GED4_seg.dcm",
    }
    seg = assert_round_trip(place, result)
    assert 2 * (seg & LIVER).sum() / (seg.sum() + LIVER.sum()) > 0.85
    [row] = place.report.dicom
    assert (row.sequence, row.use, row.images) == ("GED4", "segment", len(ARRAY))
    assert row.reason == "the description says 20 min"


def test_a_messy_tree_is_segmented_where_it_can_be_and_reported_elsewhere(place):
    write_series(place.input / "a", ARRAY, number=3)
    write_series(place.input / "b", ARRAY[:3], number=1, description="loc")
    write_series(place.input / "c", ARRAY, skipped=(9,), **GED4)
    write_series(place.input / "d", ARRAY, study="2", **GED4)
    write_enhanced(place.input / "e", {50.0: ARRAY, 800.0: ARRAY}, spacing_zyx_mm=SPACING_ZYX_MM)
    (place.input / "IM1").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 9)
    write_scan(place.input / "Vendor-A" / "0001-A" / "GED4.nii.gz")

    assert place.predict() == ExitCode.SOME_CASES_FAILED

    report = place.report
    good = [result for result in report.series if result.status is SeriesStatus.OK]
    assert sorted(result.sequence for result in good) == ["DWI_800", "GED4", "GED4", "T2"]
    for result in good:
        if result.input_path.startswith("dicom:"):
            assert_round_trip(place, result)
    failed = [result for result in report.series if result.status is SeriesStatus.FAILED]
    assert sorted(result.error.split(": ")[1].split(".")[0] for result in failed) == [
        "1 slice is missing, the first after slice 9 of 12",
        "the DICOM header cannot be read, or names no study",
    ]
    uses = sorted(row.use for row in report.dicom)
    assert uses == ["left_out"] * 2 + ["segment"] * 3 + ["unusable"] * 2


def test_a_series_that_no_model_serves_is_left_out_with_both_reasons(place, tmp_path, capsys):
    write_series(place.input / "a", ARRAY, number=3)
    write_series(place.input / "b", ARRAY, **GED4)
    card = ModelCard("numbers", "none", "Apache-2.0", "2026-01-31")
    weights = tmp_path / "weights"
    freeze_model(place.model, weights, name="for_t2", sequences=("T2",), card=card)

    assert place.predict("--model", str(weights)) == ExitCode.OK

    assert [result.sequence for result in place.report.series] == ["T2"]
    [row] = [row for row in place.report.dicom if row.sequence == "GED4"]
    assert (row.use, row.reason) == (
        "left_out",
        "the description says 20 min; no model serves this sequence (served: T2)",
    )
    assert capsys.readouterr().out.startswith("1 ok, 1 left out; see ")


def test_a_picture_beside_dicom_has_a_neutral_name_in_the_report(place):
    write_series(place.input / "Meier_Hans" / "x", ARRAY, **GED4)
    (place.input / "Meier_Hans" / "Meier_Hans_1950.png").write_bytes(b"\x89PNG")

    assert place.predict() == ExitCode.OK

    [left_out] = place.report.left_out
    assert "picture" in left_out.reason
    assert "Meier" not in (place.output / "run_report.json").read_text(encoding="utf-8")


def test_no_patient_is_named_in_logs_report_or_page(place, capfd):
    folder = place.input / PATIENT_NAME
    secrets = {"StudyDescription": PATIENT_NAME, "ProtocolName": PATIENT_NAME}
    write_series(folder / "ok", ARRAY, number=3, description=f"t2 {PATIENT_NAME}", **secrets)
    write_series(folder / "gap", ARRAY, number=4, skipped=(4,), **secrets)
    write_series(folder / "loc", ARRAY[:2], number=5, **secrets)
    # Values that break the standard are those that libraries like to quote.
    broken = {"PatientAge": PATIENT_NAME, "PatientWeight": 1.0, "InstitutionName": PATIENT_ID * 9}
    write_series(folder / "odd", ARRAY, number=6, description="t1 vibe", **broken)
    (folder / f"{PATIENT_NAME}.dcm").write_bytes(b"\0" * 128 + b"DICM" + PATIENT_NAME.encode())

    place.predict("--verbose", "--report", "--previews")

    segs = {name.rsplit("/", 1)[1] for name in place.files() if name.endswith(".dcm")}
    assert segs == {"T2_seg.dcm", "T1_seg.dcm"}
    printed = capfd.readouterr()
    texts = [printed.out, printed.err, *sorted(place.files())]
    texts += [
        path.read_text(errors="replace")
        for path in place.output.rglob("*")
        if path.suffix in (".json", ".html", ".js")
    ]
    assert any("study-" in text for text in texts)
    for text in texts:
        for secret in (PATIENT_NAME, PATIENT_NAME.split("^")[0], PATIENT_ID, "Nosy", "ACC-77"):
            assert secret.lower() not in text.lower()


def test_the_page_shows_the_volumes_and_why_a_series_has_its_sequence_or_is_left_out(place):
    write_series(place.input / "a", ARRAY, **GED4)
    write_series(place.input / "b", ARRAY[:3], number=1, description="loc")
    write_series(place.input / "c", ARRAY, number=4, skipped=(9,))

    assert place.predict("--report") == ExitCode.SOME_CASES_FAILED

    scripts = (place.output / "report").rglob("0*.js")
    assert len([path for path in scripts if path.stat().st_size > 10_000]) == 1
    text = (place.output / "report" / "index.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', text)[1])
    reasons = {row["sequence"]: row["sequence_reason"] for row in data["series"]}
    assert reasons["GED4"] == "the description says 20 min"
    table = [(row["series"][:2], row["images"], row["use"]) for row in data["left_out"]]
    assert table == [("1-", 3, "left_out"), ("4-", 12, "unusable")]
    assert [row["reason"] for row in data["left_out"]] == [
        "a localizer",
        "1 slice is missing, the first after slice 9 of 12",
    ]


def test_the_map_renames_and_the_switch_leaves_dicom_seg_out(place, tmp_path):
    write_series(place.input, ARRAY, description="whatever")
    table = tmp_path / "map.json"
    table.write_text(json.dumps({"whatever": "T1"}))

    assert place.predict("--sequence-map", str(table), "--no-dicom-seg") == ExitCode.OK

    [result] = place.report.series
    assert result.sequence == "T1"
    assert place.files() == {
        "run_report.json",
        "liver_volumes.csv",
        f"LiSeg_pred/{result.case}/T1_pred.nii.gz",
    }


def test_a_series_of_no_sequence_is_a_case_by_itself(place):
    write_series(place.input, ARRAY, description="whatever")

    assert place.predict() == ExitCode.OK

    [result] = place.report.series
    assert result.case.startswith("study-")
    assert place.files() == {
        "run_report.json",
        "liver_volumes.csv",
        f"{result.case}_liver.nii.gz",
        f"dicom_seg/{result.case}_liver.dcm",
    }
    assert_round_trip(place, result)


def test_a_guess_is_never_written_as_dicom_seg(place, tmp_path):
    write_series(place.input, ARRAY, **GED4)
    hopeless = bright_tissue_model(tmp_path / "hopeless", threshold=50.0)

    options = ("--model", str(hopeless), "--on-failure", "fallback")
    assert place.predict(*options) == ExitCode.SOME_CASES_FAILED

    [result] = place.report.series
    assert result.status is SeriesStatus.FALLBACK
    assert any(note.startswith("no_dicom_seg:") for note in result.warnings)
    assert not any(name.endswith(".dcm") for name in place.files())


def test_resume_keeps_what_has_its_dicom_seg(place):
    write_series(place.input, ARRAY, **GED4)
    assert place.predict("--no-dicom-seg") == ExitCode.OK

    assert place.predict("--resume") == ExitCode.OK
    [again] = place.report.series
    assert again.status is SeriesStatus.OK
    assert again.dicom_seg_path

    assert place.predict("--resume") == ExitCode.OK
    [kept] = place.report.series
    assert kept.status is SeriesStatus.SKIPPED_RESUME
    assert kept.dicom_seg_path == again.dicom_seg_path


def test_one_multi_frame_file_is_enough(place):
    place.input = write_enhanced(place.input / "one", {800.0: ARRAY}, spacing_zyx_mm=SPACING_ZYX_MM)

    assert place.predict() == ExitCode.OK
    assert place.report.series[0].sequence == "DWI_800"


def error_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    [line] = [line for line in lines if line.startswith("error: ")]
    return line


def test_dicom_without_anything_to_segment_ends_with_3(place, capsys):
    write_series(place.input, ARRAY[:3], description="loc")

    assert place.predict() == ExitCode.NO_VALID_INPUT
    assert "no volume can be used (study-" in (line := error_line(capsys))
    assert "a localizer" in line


def test_files_only_named_like_dicom_end_with_3(place, capsys):
    (place.input / "IM1.dcm").write_bytes(b"")

    assert place.predict() == ExitCode.NO_VALID_INPUT
    assert "1 files are named like DICOM and do not begin so" in error_line(capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "cannot be read as a table"), ("[]", "does not hold a table"),
     ('{"a": "GED7"}', "entry 1: its value is not a sequence")],
)  # fmt: skip
def test_a_wrong_map_ends_with_2(place, tmp_path, capsys, text, said):
    write_series(place.input, ARRAY[:3])
    (tmp_path / "map.json").write_text(text)

    assert place.predict("--sequence-map", str(tmp_path / "map.json")) == ExitCode.USAGE
    assert said in error_line(capsys)


@pytest.fixture
def without_packages(monkeypatch):
    """Make highdicom look as if it were not installed."""
    real = importlib.import_module

    def refuse(name, *args):
        if name == "highdicom":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    monkeypatch.setattr("sslmedsam2.dicom.files.importlib.import_module", refuse)


@pytest.mark.usefixtures("without_packages")
def test_without_the_extra_the_error_says_how_to_get_it(place, capsys):
    write_series(place.input, ARRAY[:3])

    assert place.predict() == ExitCode.USAGE
    assert "pip install pydicom highdicom" in error_line(capsys)


@pytest.mark.usefixtures("without_packages")
def test_without_the_extra_other_images_are_still_found(place, capsys):
    write_series(place.input / "x", ARRAY[:3])
    write_scan(place.input / "Vendor-A" / "0001-A" / "GED4.nii.gz")

    assert place.predict() == ExitCode.OK
    assert [result.case for result in place.report.series] == ["0001-A"]
    assert "3 DICOM files are left alone: DICOM: it needs packages" in capsys.readouterr().err


def test_the_list_shows_neutral_names_unless_told_to_identify(place, capsys):
    write_series(place.input / PATIENT_NAME, ARRAY, **GED4)

    assert main(["dicom", "--input", str(place.input)]) == ExitCode.OK
    plain = capsys.readouterr().out
    assert main(["dicom", "--input", str(place.input), "--identify"]) == ExitCode.OK
    identified = capsys.readouterr().out

    assert "GED4" in plain
    assert "the description says 20 min" in plain
    assert PATIENT_NAME not in plain
    assert PATIENT_NAME in identified
    assert "t1_vibe_fs_20min" in identified


def test_the_key_leads_its_owner_back_to_the_patient_and_nobody_else(place, tmp_path, capfd):
    write_series(place.input / "x", ARRAY, **GED4)
    (place.input / "cut.dcm").write_bytes(b"")
    key = tmp_path / "key.csv"

    assert main(["dicom", "--input", str(place.input), "--key", str(key)]) == ExitCode.OK

    rows = {row["case"]: row for row in csv.DictReader(key.open(encoding="utf-8"))}
    row = rows.pop(next(case for case in rows if case.startswith("study-")))
    source = pydicom.dcmread(next((place.input / "x").iterdir()))
    assert row["patient_id"] == PATIENT_ID
    assert row["study_instance_uid"] == source.StudyInstanceUID
    assert row["series_instance_uid"] == source.SeriesInstanceUID
    assert (row["description"], row["place"]) == ("t1_vibe_fs_20min", "x/")
    assert [one["place"] for one in rows.values()] == [str(place.input / "cut.dcm")]
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    said = "".join(capfd.readouterr())
    assert PATIENT_ID not in said
    assert str(source.StudyInstanceUID) not in said
    # A second key replaces the first.
    assert main(["dicom", "--input", str(place.input), "--key", str(key)]) == ExitCode.OK


def test_a_key_overwrites_no_other_file(place, tmp_path, capsys):
    write_series(place.input / "x", ARRAY, **GED4)
    notes = tmp_path / "notes.csv"
    notes.write_text("mine")

    assert main(["dicom", "--input", str(place.input), "--key", str(notes)]) == ExitCode.USAGE

    assert "it exists and is not a key" in capsys.readouterr().err
    assert notes.read_text() == "mine"


def test_the_list_of_a_folder_without_dicom_ends_with_3(place, capsys):
    assert main(["dicom", "--input", str(place.input)]) == ExitCode.NO_VALID_INPUT
    assert "there is no DICOM file. Give" in error_line(capsys)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "there is no such folder or file"),
        ("letter.txt", "there is no DICOM file. Give"),
        ("IM1.dcm", "there is no DICOM file (1 files are named like DICOM and do not begin so)"),
    ],
)
def test_the_list_of_what_is_no_dicom_ends_with_3_and_says_what_it_is(place, capsys, name, words):
    for written in ("letter.txt", "IM1.dcm"):
        (place.input / written).write_text("dear colleague")
    assert main(["dicom", "--input", str(place.input / name)]) == ExitCode.NO_VALID_INPUT
    assert words in error_line(capsys)


@pytest.mark.real_data
def test_a_real_ct_makes_the_round_trip(place):
    folder = SHARED / "totalseg_ct"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/totalseg_ct")
    [path] = [p for p in folder.rglob("*.nii.gz") if not p.name.startswith(("mask_", "organs_"))]
    image = nib.as_closest_canonical(nib.load(path))
    # RAS to LPS: both in-plane axes turn.
    array = np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
    spacing = tuple(float(mm) for mm in image.header.get_zooms()[::-1])
    write_series(
        place.input, array, modality="CT", description="abdomen", number=2,
        spacing_zyx_mm=spacing, intercept=-1024.0, dtype=np.uint16,
    )  # fmt: skip

    assert place.predict() == ExitCode.OK

    [result] = place.report.series
    assert result.sequence == "no sequence"
    assert any(note.startswith("hounsfield_window") for note in result.warnings)
    assert_round_trip(place, result)
