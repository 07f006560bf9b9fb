import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from sslmedsam2.cli.main import main
from sslmedsam2.contract.outputs import report_path
from sslmedsam2.errors import ExitCode, NoInputError
from sslmedsam2.reporting.run_report import (
    SeriesResult,
    SeriesStatus,
    start_report,
    write_report,
)
from sslmedsam2.submission.evaluate import evaluate, write_results

AFFINE = np.diag([-1.2, -1.2, 5.0, 1.0])


def ball(radius=8, shape=(30, 32, 12)):
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return (x - 15) ** 2 + (y - 16) ** 2 + 9 * (z - 6) ** 2 < radius**2


@pytest.fixture
def write(tmp_path):
    def write_mask(name, mask, affine=AFFINE, dtype=np.uint8):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(mask.astype(dtype), affine), path)
        return path

    return write_mask


def statuses(evaluation):
    return {(row.case, row.sequence): row.status for row in evaluation.rows}


def test_predictions_meet_their_references_across_layouts(write, tmp_path):
    write("ref/Vendor_A/0930-A/mask_GED4.nii.gz", ball())
    write("ref/Vendor_A/0930-A/GED4.nii.gz", ball())
    write("ref/Vendor_C/0007-C/mask_T1.nii.gz", ball())
    write("ref/CT/mask_scan.nii.gz", ball())
    write("pred/LiSeg_pred/0930-A/GED4_pred.nii.gz", ball(9))
    write("pred/LiSeg_pred/0007-C/T1_pred.nii.gz", ball())
    write("pred/CT_scan_liver.nii.gz", ball())

    result = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref")

    assert statuses(result) == {
        ("0930-A", "GED4"): "scored",
        ("0007-C", "T1"): "scored",
        ("CT_scan", None): "scored",
    }
    assert 0.8 < result.rows[0].metrics.dice < 1
    assert [row.vendor for row in result.rows] == ["A", "C", None]
    assert result.exit_code == ExitCode.OK
    assert result.unmatched == ()


def test_visits_of_several_patients_on_one_day_are_told_apart(write, tmp_path):
    for patient, radius in (("p1", 8), ("p2", 6)):
        write(f"ref/{patient}/20240131/mask_T2.nii.gz", ball(radius))
        write(f"pred/LiSeg_pred/{patient}_20240131/T2_pred.nii.gz", ball(radius))

    result = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref")

    assert {row.case: row.metrics.dice for row in result.rows} == {
        "p1_20240131": 1.0,
        "p2_20240131": 1.0,
    }


def test_masks_of_an_earlier_run_that_were_moved_aside_are_not_scored(write, tmp_path):
    write("ref/0930-A/mask_GED4.nii.gz", ball())
    write("pred/LiSeg_pred/0930-A/GED4_pred.nii.gz", ball())
    write("pred/LiSeg_pred.replaced-20261128T195023Z/0930-A/GED4_pred.nii.gz", ball(4))
    write("pred/LiSeg_pred.replaced-20261128T195023Z-2/0931-A/GED4_pred.nii.gz", ball(4))

    result = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref")

    assert statuses(result) == {("0930-A", "GED4"): "scored"}
    assert result.rows[0].metrics.dice == 1
    assert result.unmatched == ()


def test_bad_pairs_are_named_and_the_others_go_on(write, tmp_path):
    shifted = AFFINE.copy()
    shifted[0, 3] = 3.0
    for case in ("good", "absent", "shape", "moved", "empty", "torn", "labels"):
        write(f"ref/{case}/mask_T2.nii.gz", ball())
    write("ref/badref/mask_T2.nii.gz", ball()).write_bytes(b"nothing")
    write("pred/LiSeg_pred/good/T2_pred.nii.gz", ball())
    write("pred/LiSeg_pred/badref/T2_pred.nii.gz", ball())
    write("pred/LiSeg_pred/shape/T2_pred.nii.gz", ball()[:, :, 1:])
    write("pred/LiSeg_pred/moved/T2_pred.nii.gz", ball(), affine=shifted)
    write("pred/LiSeg_pred/empty/T2_pred.nii.gz", ball(0))
    write("pred/LiSeg_pred/torn/T2_pred.nii.gz", ball()).write_bytes(b"\x1f\x8b")
    write("pred/LiSeg_pred/labels/T2_pred.nii.gz", ball().astype(int) + ball(4))
    write("pred/LiSeg_pred/extra/T2_pred.nii.gz", ball())

    result = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref")

    assert statuses(result) == {
        ("good", "T2"): "scored",
        ("absent", "T2"): "missing",
        ("empty", "T2"): "empty",
        **{(case, "T2"): "error" for case in ("shape", "moved", "torn", "labels", "badref")},
    }
    reasons = {row.case: row.reason for row in result.rows}
    assert "another grid" in reasons["shape"]
    assert "affine differs" in reasons["moved"]
    assert f"than its reference {tmp_path}/ref/moved/mask_T2.nii.gz" in reasons["moved"]
    assert "Check that both are of the same scan" in reasons["moved"]
    assert "more than two values" in reasons["labels"]
    assert reasons["badref"].startswith("reference ")
    assert [path.parent.name for path in result.unmatched] == ["extra"]
    assert result.exit_code == ExitCode.SOME_CASES_FAILED
    (summary,) = result.summaries
    assert summary.means["dice"] == 0.5
    assert summary.with_missing["dice"] == pytest.approx(1 / 7)


def test_an_image_in_place_of_a_reference_is_called_one(write, tmp_path):
    image = np.random.default_rng(1).integers(0, 900, (30, 32, 12))
    write("ref/c/T2.nii.gz", image, dtype=np.int16)
    write("pred/c/T2_pred.nii.gz", ball())

    [row] = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref").rows

    assert row.reason.endswith("It looks like an image: give its mask.")


def test_means_are_over_all_vendors_of_the_training_set_and_each_by_name(write, tmp_path):
    for case in ("0001-C", "0002-A", "0003-B1"):
        write(f"ref/{case}/mask_T2.nii.gz", ball())
        write(f"pred/{case}/T2_pred.nii.gz", ball())

    found = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref").summaries

    groups = ["all", "vendors A, B1, B2", "vendor A", "vendor B1", "vendor C"]
    assert [one.group for one in found] == groups


def test_a_trailing_axis_and_a_mask_of_255_do_not_matter(write, tmp_path):
    write("ref/c/mask_T2.nii.gz", ball() * 255)
    write("pred/c/T2_pred.nii.gz", ball()[..., None])

    result = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref")

    assert result.rows[0].metrics.dice == 1


def test_label_chooses_the_liver_of_references_with_several_organs(write, tmp_path):
    organs = ball() * 63
    organs[0] = 252
    write("ref/c/mask_T2.nii.gz", organs)
    write("ref/d/mask_T2.nii.gz", organs)
    write("pred/c/T2_pred.nii.gz", ball())
    write("pred/d/T2_pred.nii.gz", organs)

    refused = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref")
    chosen = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref", label=63)

    assert "--label" in refused.rows[0].reason
    assert [row.metrics.dice for row in chosen.rows] == [1, 1]


@pytest.mark.parametrize("shift_mm", [0, 3])
def test_slicer_segmentation_of_a_part_is_placed_or_refused(write, tmp_path, shift_mm):
    prediction = write("pred/LiSeg_pred/c/T2_pred.nii.gz", ball())
    whole = sitk.ReadImage(str(prediction))
    part = whole[5:25, 6:28, 2:11]
    part.SetOrigin([part.GetOrigin()[0] + shift_mm, *part.GetOrigin()[1:]])
    for key, text in {"Name": "liver", "LabelValue": "1", "Layer": "0"}.items():
        part.SetMetaData(f"Segment0_{key}", text)
    (tmp_path / "ref" / "c").mkdir(parents=True)
    sitk.WriteImage(part, str(tmp_path / "ref" / "c" / "T2.seg.nrrd"))

    (row,) = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref").rows
    if shift_mm:
        assert row.status == "error"
        assert "the segmentation lies on another grid" in row.reason
    else:
        assert row.metrics.dice == 1


def test_soft_masks_are_rounded(write, tmp_path):
    write("ref/c/mask_T2.nii.gz", ball() * 0.999999, dtype=np.float32)
    write("pred/c/T2_pred.nii.gz", ball())

    result = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref")
    assert result.rows[0].metrics.dice == 1


def test_nothing_to_compare_is_an_error(write, tmp_path):
    write("ref/c/mask_T2.nii.gz", ball())
    (tmp_path / "pred").mkdir()

    with pytest.raises(NoInputError):
        evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref")


def test_results_are_written_as_json_and_csv(write, tmp_path):
    write("ref/c/mask_T2.nii.gz", ball())
    write("pred/c/T2_pred.nii.gz", ball(0))
    result = evaluate(predictions=tmp_path / "pred", references=tmp_path / "ref")

    write_results(result, json_path=tmp_path / "a" / "s.json", csv_path=tmp_path / "s.csv")

    text = (tmp_path / "a" / "s.json").read_text()
    assert "NaN" not in text
    data = json.loads(text)
    assert data["rows"][0]["metrics"]["hausdorff_mm"] is None
    assert data["summary"][0]["empty"] == 1
    assert data["problems"] == []
    assert (tmp_path / "s.csv").read_text().count("\n") == 2


def test_the_command_prints_the_table_and_ends_with_the_exit_code(write, tmp_path, capsys):
    write("ref/c/mask_T2.nii.gz", ball())
    write("ref/d/mask_T2.nii.gz", ball())
    write("pred/c/T2_pred.nii.gz", ball())
    args = ["evaluate", "--predictions", str(tmp_path / "pred"), "--references"]

    assert main([*args, str(tmp_path / "ref"), "--json", str(tmp_path / "s.json")]) == 1
    printed = capsys.readouterr().out
    assert main([*args, str(tmp_path / "ref" / "c")]) == 0
    assert main([*args, str(tmp_path / "nowhere")]) == 3

    assert "MISSING" in printed
    assert printed.endswith(f"scores in {tmp_path / 's.json'}\n")
    assert "1.0000" in printed
    assert (tmp_path / "s.json").is_file()


def test_masks_of_a_run_have_the_names_of_its_report_and_others_their_own(write, tmp_path):
    write("ref/p1/mask_T2.nii.gz", ball())
    write("ref/p2/mask_T1.nii.gz", ball())
    write("out/p1_liver.nii.gz", ball(7))
    write("out/LiSeg_pred/p2/T1_pred.nii.gz", ball())
    status = SeriesStatus.OK
    result = SeriesResult("p1", None, "T2", "p1.nii.gz", "p1_liver.nii.gz", status)
    started = start_report(models=(), device="cpu", backend="", options={})
    write_report(started.with_series(result), report_path(tmp_path / "out"))

    rows = evaluate(predictions=tmp_path / "out", references=tmp_path / "ref").rows

    found = {(row.case, row.sequence): row.metrics.dice == 1 for row in rows}
    assert found == {("p1", "T2"): False, ("p2", "T1"): True}
