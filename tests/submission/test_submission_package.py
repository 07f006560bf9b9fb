import csv
import io
import zipfile

import pytest

from sslmedsam2.cli.main import main
from sslmedsam2.errors import NoInputError, OutputError, UsageError
from sslmedsam2.reporting.run_report import SeriesResult, SeriesStatus, start_report, write_report
from sslmedsam2.submission.package import package


@pytest.fixture
def output(tmp_path):
    """Make an output folder with the given masks."""

    def make(*names):
        for name in names:
            path = tmp_path / "output" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"mask {name}".encode())
        return tmp_path / "output"

    return make


FULL = (
    "LiSeg_pred/0930-A/GED4_pred.nii.gz",
    "LiSeg_pred/0930-A/T1_pred.nii.gz",
    "LiSeg_pred/0007-C/GED4_pred.nii.gz",
    "LiSeg_pred/0007-C/DWI_800_pred.nii.gz",
)


def test_the_zip_holds_masks_list_and_description_without_a_wrapping_folder(output, tmp_path):
    folder = output(*FULL, "run_report.json", "previews/0930-A_T1.png")
    (tmp_path / "text.md").write_text("# Method\n")
    target = tmp_path / "s.zip"

    package(output_dir=folder, zip_path=target, description=tmp_path / "text.md")

    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            *sorted(FULL),
            "Method_Description.md",
            "Unsupervised_Segmentation_List.csv",
        ]
        assert archive.read(FULL[0]) == f"mask {FULL[0]}".encode()
        assert archive.read("Method_Description.md") == b"# Method\n"
        assert archive.read("Unsupervised_Segmentation_List.csv") == (
            b"Case,Modality\n0007-C,DWI\n0930-A,T1\n"
        )


def test_ged4_alone_needs_no_list(output, tmp_path):
    package(output_dir=output(FULL[0]), zip_path=tmp_path / "s.zip")

    assert zipfile.ZipFile(tmp_path / "s.zip").namelist() == [FULL[0]]


def test_the_same_masks_give_the_same_bytes(output, tmp_path):
    package(output_dir=output(*FULL), zip_path=tmp_path / "one.zip")
    package(output_dir=output(*reversed(FULL)), zip_path=tmp_path / "two.zip")

    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_what_is_no_mask_of_the_contract_is_left_out_loudly(output, tmp_path, caplog):
    strangers = (
        "LiSeg_pred/0930-A/.partial-GED4_pred.nii.gz",
        "LiSeg_pred/0930-A/GED1_pred.nii.gz",
        "LiSeg_pred/Vendor_A/0930-A/GED4_pred.nii.gz",
        "LiSeg_pred/GED4_pred.nii.gz",
    )

    plan = package(output_dir=output(FULL[1], *strangers), zip_path=tmp_path / "s.zip")

    assert [name for name, _ in plan.masks] == [FULL[1]]
    assert len(plan.left_out) == len(strangers)
    assert caplog.text.count("left out") == len(strangers)
    assert "0930-A: has no GED4 mask" in caplog.text


@pytest.mark.parametrize("names", [("run_report.json",), ("LiSeg_pred/0930-A/notes.txt",)])
def test_an_empty_prediction_folder_is_refused(output, tmp_path, names):
    with pytest.raises(NoInputError, match="no mask to pack"):
        package(output_dir=output(*names), zip_path=tmp_path / "s.zip")

    assert not (tmp_path / "s.zip").exists()


def test_masks_of_scans_without_a_sequence_are_refused_with_the_reason(output, tmp_path):
    with pytest.raises(NoInputError, match="masks are of scans without a sequence"):
        package(output_dir=output("scan_liver.nii.gz"), zip_path=tmp_path / "s.zip")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NoInputError, match="none: there is no such folder"):
        package(output_dir=tmp_path / "none", zip_path=tmp_path / "s.zip")


def test_a_missing_description_is_a_usage_error(output, tmp_path):
    with pytest.raises(UsageError):
        package(
            output_dir=output(*FULL), zip_path=tmp_path / "s.zip", description=tmp_path / "none.md"
        )

    assert not (tmp_path / "s.zip").exists()


def test_a_zip_that_cannot_be_written_leaves_nothing_behind(output, tmp_path):
    folder = output(*FULL)
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OutputError):
        package(output_dir=folder, zip_path=tmp_path / "file" / "s.zip")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "output"]


def test_the_command_writes_into_the_output_folder_by_default(output, capsys):
    folder = output(*FULL)

    assert main(["package", "--output", str(folder)]) == 0

    assert "4 masks" in capsys.readouterr().out
    assert (folder / "CARE-Liver-Submission.zip").is_file()
    assert main(["package", "--output", str(folder / "previews")]) == 3


def test_case_names_with_commas_keep_their_row(output, tmp_path):
    package(output_dir=output("LiSeg_pred/0001, A/T1_pred.nii.gz"), zip_path=tmp_path / "s.zip")

    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        text = archive.read("Unsupervised_Segmentation_List.csv").decode()
    assert list(csv.reader(io.StringIO(text))) == [["Case", "Modality"], ["0001, A", "T1"]]


def write_run_of(result, folder):
    run = start_report(models=(), device="cpu", backend="none", options={})
    write_report(run.with_series(result), folder / "run_report.json")


def test_guesses_are_packed_on_request_only(output, tmp_path):
    folder = output(*FULL)
    guess = SeriesResult("0930-A", "A", "T1", "in", FULL[1], SeriesStatus.FALLBACK)
    write_run_of(guess, folder)

    with pytest.raises(UsageError, match=r"it is a guess.*there are 1.*--with-fallbacks"):
        package(output_dir=folder, zip_path=tmp_path / "s.zip")

    plan = package(output_dir=folder, zip_path=tmp_path / "s.zip", with_fallbacks=True)
    assert len(plan.masks) == len(FULL)


def test_a_corrected_guess_is_packed(output, tmp_path):
    folder = output(*FULL)
    guess = SeriesResult(
        "0930-A", "A", "T1", "in", FULL[1], SeriesStatus.FALLBACK, mask_sha256="of the guess"
    )
    write_run_of(guess, folder)

    assert len(package(output_dir=folder, zip_path=tmp_path / "s.zip").masks) == len(FULL)
