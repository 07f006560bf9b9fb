import csv
import io
from dataclasses import replace

import pytest

from sslmedsam2.reporting.run_report import InputGeometry, SeriesResult, SeriesStatus, start_report
from sslmedsam2.reporting.volume_table import csv_text, volume_table, write_volume_table

GEOMETRY = InputGeometry(
    shape_zyx=(30, 200, 256),
    spacing_zyx_mm=(7.5, 1.25, 1.5),
    origin_xyz_mm=(0.0, 0.0, 0.0),
    direction_xyz=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    left_handed=False,
    native_shape=(256, 200, 30),
    native_dtype="int16",
)
SEGMENTED = SeriesResult(
    case="b",
    vendor="A",
    sequence="T2",
    input_path="b/T2.nii.gz",
    output_path="LiSeg_pred/b/T2_pred.nii.gz",
    status=SeriesStatus.OK,
    liver_volume_ml=1432.1,
    estimated_dice=0.93,
    estimated_dice_interval=(0.88, 0.96),
    verdict="ok",
    geometry=GEOMETRY,
)


def report_of(*series):
    report = start_report(models=(), device="cpu", backend="torch", options={})
    for one in series:
        report = report.with_series(one)
    return report


def rows_of(*series):
    return list(csv.DictReader(io.StringIO(volume_table(report_of(*series)), newline="")))


def test_a_row_has_volume_estimate_verdict_and_spacing():
    [row] = rows_of(SEGMENTED)
    assert row["case"] == "b"
    assert row["sequence"] == "T2"
    assert float(row["volume_ml"]) == 1432.1
    estimate = [row[f"estimated_dice{end}"] for end in ("", "_low", "_high")]
    assert estimate == ["0.93", "0.88", "0.96"]
    assert row["verdict"] == "ok"
    assert [row[f"spacing_{axis}_mm"] for axis in "xyz"] == ["1.5", "1.25", "7.5"]
    assert row["mask"] == "LiSeg_pred/b/T2_pred.nii.gz"


def test_every_scan_has_a_row_also_without_a_mask():
    failed = SeriesResult("a", None, "T1", "a/T1.nii.gz", None, SeriesStatus.FAILED, error="no")
    first, second = rows_of(SEGMENTED, failed)
    assert (first["case"], first["volume_ml"], first["status"]) == ("a", "", "failed")
    assert second["case"] == "b"


def test_a_guess_is_marked():
    guess = replace(SEGMENTED, status=SeriesStatus.FALLBACK, verdict="check")
    assert [row["is_guess"] for row in rows_of(guess)] == ["yes"]
    assert [row["is_guess"] for row in rows_of(SEGMENTED)] == ["no"]


def test_flags_are_the_names_of_the_warnings():
    warned = replace(SEGMENTED, warnings=("touches_border: cut off", "low_confidence: 0.7", "odd"))
    assert rows_of(warned)[0]["flags"] == "touches_border; low_confidence; warning"


def test_intensities_have_columns_if_some_scan_has_them():
    measured = replace(SEGMENTED, case="c", intensity={"mean": 210.5, "sd": 12.0})
    first, second = rows_of(SEGMENTED, measured)
    assert first["intensity_mean"] == ""
    assert second["intensity_mean"] == "210.5"
    assert "intensity_mean" not in rows_of(SEGMENTED)[0]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_name_never_starts_a_formula(start):
    case = start + "cmd|' /C calc'!A0"
    assert rows_of(replace(SEGMENTED, case=case))[0]["case"] == "'" + case


def test_a_negative_number_stays_a_number():
    assert csv_text(["change"], [{"change": -1.5}]) == "change\r\n-1.5\r\n"


def test_commas_quotes_and_line_breaks_survive():
    case = 'a, "b"\nc'
    assert rows_of(replace(SEGMENTED, case=case))[0]["case"] == case


def test_lines_end_as_rfc_4180_says(tmp_path):
    path = tmp_path / "liver_volumes.csv"
    write_volume_table(report_of(SEGMENTED), path)
    content = path.read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n") == 2
