"""``predict`` on zip archives, from end to end."""

import zipfile

import numpy as np
import pytest
from tiny_scans import abdomen

from sslmedsam2.errors import ExitCode, InputError
from sslmedsam2.imaging.reading import read_mask
from sslmedsam2.predict.inputs import InputImages, input_name, list_dicom
from sslmedsam2.predict.page import ReportOptions, report
from sslmedsam2.reporting.run_report import SeriesStatus
from sslmedsam2.submission.validate import validate


def pack(workplace, archive, *names):
    """Move scans of the input folder into an archive there."""
    with zipfile.ZipFile(workplace.input / archive, "w") as file:
        for name in names:
            path = workplace.input / name
            file.write(path, name.rpartition("/")[2])
            path.unlink()
            path.parent.rmdir()


@pytest.fixture
def packed(workplace):
    """An input of two cases, one of them in an archive, with the masks of the unpacked ones."""
    for case in ("0001-A", "0002-A"):
        workplace.add(f"{case}/GED4.nii.gz")
    before = workplace.run(output_dir=workplace.root / "before")
    workplace.plain = read_mask(
        workplace.root / "before" / before.of("0001-A", "GED4").output_path
    ).array_zyx
    pack(workplace, "0001-A.zip", "0001-A/GED4.nii.gz")
    return workplace


def test_scans_of_an_archive_are_segmented_as_those_of_a_folder(packed):
    ended = packed.run()

    assert ended.exit_code == ExitCode.OK
    names = [result.input_path for result in ended.report.series]
    assert names == ["0001-A.zip/GED4.nii.gz", "0002-A/GED4.nii.gz"]
    mask = read_mask(packed.mask_of(ended.of("0001-A", "GED4"))).array_zyx
    np.testing.assert_array_equal(mask, packed.plain)
    assert not any("unpacked" in name for name in packed.written())
    assert validate(input_path=packed.input, output_dir=packed.output).failures == 0


def test_archives_resume_and_are_read_again_for_the_page(packed):
    packed.run()

    again = packed.run(resume=True)
    images = InputImages(packed.input)
    shapes = [images.read(result.input_path).geometry.shape_zyx for result in again.report.series]

    assert {result.status for result in again.report.series} == {SeriesStatus.SKIPPED_RESUME}
    assert shapes == [packed.plain.shape] * 2


def test_an_archive_alone_may_be_the_input(packed):
    ended = packed.run(input_path=packed.input / "0001-A.zip")

    [result] = ended.report.series
    assert (result.case, result.sequence) == ("0001-A", "GED4")
    assert result.input_path == "0001-A.zip/GED4.nii.gz"
    assert input_name(packed.input / result.input_path, packed.input) == result.input_path


def test_a_bad_scan_in_an_archive_and_bad_archives_are_named_as_the_user_knows_them(workplace):
    workplace.add("0002-A/GED4.nii.gz")
    with zipfile.ZipFile(workplace.input / "0001-A.zip", "w") as file:
        file.writestr("GED4.nii.gz", b"no image")
    (workplace.input / "cut.zip").write_bytes(b"PK")
    with zipfile.ZipFile(workplace.input / "texts.zip", "w") as file:
        file.writestr("readme.txt", b"no image")

    ended = workplace.run(on_failure="skip")

    assert ended.exit_code == ExitCode.SOME_CASES_FAILED
    errors = {one.input_path: one.error for one in ended.report.series if one.error}
    assert sorted(errors) == ["0001-A.zip/GED4.nii.gz", "cut.zip"]
    for name, error in errors.items():
        assert error.startswith(f"{workplace.input / name}: ")
    [left_out] = ended.report.left_out
    assert left_out.input_path == "texts.zip"
    assert left_out.reason == "it is an archive without an image"
    assert ended.of("0002-A", "GED4").status is SeriesStatus.OK


def test_for_the_page_of_one_archive_no_other_is_unpacked(packed):
    pack(packed, "0002-A.zip", "0002-A/GED4.nii.gz")
    one = packed.input / "0001-A.zip"

    images = InputImages(one)

    assert images.read("0001-A.zip/GED4.nii.gz").geometry.shape_zyx == packed.plain.shape
    with pytest.raises(InputError, match="does not exist"):
        images.read("0002-A.zip/GED4.nii.gz")
    both = InputImages(packed.input, only=[one, packed.input / "0002-A.zip"])
    assert both.read("0002-A.zip/GED4.nii.gz").geometry.shape_zyx == packed.plain.shape


def test_what_is_wrong_with_an_image_of_an_archive_is_said_by_its_given_path(packed):
    packed.run()
    # The image of the run is gone, and one on another grid has its place.
    with zipfile.ZipFile(packed.input / "0001-A.zip", "w") as file:
        file.write(packed.add("other/GED4.nii.gz", array_zyx=abdomen()[0][:-2]), "GED4.nii.gz")
    [problem] = filter(None, (entry.problem for entry in page_of(packed)))
    assert problem.startswith("0001-A.zip/GED4.nii.gz: the mask of the run lies on another grid")

    with zipfile.ZipFile(packed.input / "0001-A.zip", "w") as file:
        file.writestr("GED4.nii.gz", b"no image")
    [problem] = filter(None, (entry.problem for entry in page_of(packed)))
    assert problem.startswith("0001-A.zip/GED4.nii.gz: ")
    with pytest.raises(InputError) as caught:
        InputImages(packed.input).read("0001-A.zip/GED4.nii.gz")
    assert caught.value.subject == str(packed.input / "0001-A.zip" / "GED4.nii.gz")


def page_of(workplace):
    return report(ReportOptions(workplace.output, input_path=workplace.input)).entries


def test_a_resumed_run_says_nothing_of_temporary_folders(packed, caplog):
    packed.run()
    with zipfile.ZipFile(packed.input / "0001-A.zip", "w") as file:
        file.writestr("GED4.nii.gz", b"no image")

    with caplog.at_level("INFO"):
        packed.run(resume=True, on_failure="skip")

    assert "done again: LiSeg_pred/0001-A/GED4_pred.nii.gz: " in caplog.text
    assert ".unpacked-" not in caplog.text


def test_a_bad_archive_beside_dicom_is_listed_by_its_given_path(workplace):
    pytest.importorskip("highdicom", reason="needs the extra [dicom]")
    from dicom.dicom_samples import write_series

    write_series(workplace.input / "series", abdomen()[0][:4])
    (workplace.input / "cut.zip").write_bytes(b"PK")

    [note] = list_dicom(workplace.input, sequences=None).notes

    assert note.startswith(f"{workplace.input / 'cut.zip'}: ")
