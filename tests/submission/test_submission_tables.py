import csv
import io
import math

import numpy as np
import pytest

from sslmedsam2.submission.metrics import measure
from sslmedsam2.submission.tables import ScoreRow, format_tables, rows_as_csv, summarise

GROUPS = {"in-distribution": ("A", "B1", "B2"), "vendor C": ("C",)}
DIAGONAL_MM = 100.0


def row(case, *, status="scored", vendor="A", sequence="GED4", extra=0, diagonal_mm=DIAGONAL_MM):
    """Score a bar of 10 voxels predicted with ``extra`` voxels (-10: empty) too many."""
    metrics = None
    if status in ("scored", "empty"):
        prediction, reference = np.zeros((2, 1, 1, 30), bool)
        reference[..., :10] = True
        prediction[..., : 10 + extra] = True
        metrics = measure(prediction, reference, spacing_zyx_mm=(10.0, 10.0, 10.0))
    return ScoreRow(
        case=case,
        sequence=sequence,
        vendor=vendor,
        status=status,
        metrics=metrics,
        diagonal_mm=diagonal_mm,
        reason="" if status == "scored" else "why",
    )


def means(rows, group="all", sequence="GED4"):
    summaries = summarise(rows, vendor_groups=GROUPS)
    (found,) = [s for s in summaries if s.group == group and s.sequence == sequence]
    return found


def test_means_and_deviations_run_over_cases():
    summary = means([row("1", extra=2), row("2", extra=4)])

    dices = [20 / 22, 20 / 24]
    assert summary.means["dice"] == pytest.approx(np.mean(dices))
    assert summary.deviations["dice"] == pytest.approx(np.std(dices))
    assert summary.means["hausdorff_mm"] == pytest.approx(30)
    assert (summary.references, summary.compared) == (2, 2)


def test_volume_errors_of_both_signs_do_not_cancel():
    summary = means([row("1", extra=2), row("2", extra=-2)])

    assert summary.means["volume_error_ml"] == pytest.approx(2)
    assert summary.means["volume_error_percent"] == pytest.approx(20)


def test_an_empty_prediction_counts_in_dice_and_not_in_distances():
    summary = means([row("1", extra=2), row("2", status="empty", extra=-10)])

    assert summary.means["dice"] == pytest.approx(20 / 22 / 2)
    assert summary.means["hausdorff_mm"] == pytest.approx(20)
    assert summary.with_missing["hausdorff_mm"] == pytest.approx((20 + DIAGONAL_MM) / 2)
    assert summary.empty == 1


@pytest.mark.parametrize("status", ["missing", "error"])
def test_what_is_missing_counts_only_in_the_means_with_missing(status):
    summary = means([row("1"), row("2", status=status)])

    assert summary.means["dice"] == 1
    assert summary.with_missing["dice"] == 0.5
    assert summary.with_missing["hausdorff_mm"] == pytest.approx(DIAGONAL_MM / 2)
    assert (summary.missing, summary.errors) == ((1, 0) if status == "missing" else (0, 1))


def test_an_unreadable_reference_counts_in_no_mean():
    summary = means([row("1"), row("2", status="error", diagonal_mm=None)])

    assert summary.with_missing == {"dice": 1, "hausdorff_mm": 0}
    assert summary.errors == 1


def test_groups_split_in_distribution_from_the_unseen_vendor():
    rows = [row("1", vendor="A"), row("2", vendor="B2", extra=2), row("3", vendor="C", extra=4)]

    assert means(rows).references == 3
    assert means(rows, "in-distribution").means["dice"] == pytest.approx((1 + 20 / 22) / 2)
    assert means(rows, "vendor C").means["dice"] == pytest.approx(20 / 24)
    assert means(rows, "vendor A").references == 1
    groups = [summary.group for summary in summarise(rows, vendor_groups=GROUPS)]
    assert groups == ["all", "in-distribution", "vendor C", "vendor A", "vendor B2"]


def test_sequences_are_never_mixed():
    rows = [row("1"), row("1", sequence="T1", extra=2), row("x", sequence=None, vendor=None)]

    assert means(rows).means["dice"] == 1
    assert means(rows, sequence="T1").references == 1
    assert means(rows, sequence=None).references == 1


def test_nothing_to_average_is_nan():
    summary = means([row("1", status="missing")])

    assert math.isnan(summary.means["dice"])
    assert math.isnan(summary.deviations["hausdorff_mm"])


def test_text_tables_show_every_row_and_reason():
    rows = [row("0001-A", extra=2), row("0002-C", status="missing", vendor="C")]

    text = format_tables(rows, summarise(rows, vendor_groups=GROUPS))

    lines = text.splitlines()
    assert "0.9091" in lines[1]
    assert lines[2].endswith("MISSING")
    assert "0002-C GED4: why" in lines
    assert "nan" not in text
    assert any(line.startswith("GED4") and "in-distribution" in line for line in lines)


def test_text_tables_fit_100_columns_and_say_which_volume_is_a_difference():
    rows = [
        row(f"patient-{vendor}-00001234", vendor=vendor, sequence="DWI_800", extra=extra)
        for vendor, extra in (("A", 20), ("B1", 2), ("C", 4))
    ]

    text = format_tables(rows, summarise(rows, vendor_groups=GROUPS))

    assert "in-distribution" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "  diff ml" in text
    assert "|diff| ml" in text
    assert "diff: volume of the prediction less that of the reference" in text


def test_csv_has_a_line_a_row_and_empty_cells_for_what_is_not_defined():
    text = rows_as_csv(
        [row("a,b", extra=2), row("2", status="empty", extra=-10), row("3", status="missing")]
    )

    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["case"] for line in lines] == ["a,b", "2", "3"]
    assert float(lines[0]["dice"]) == pytest.approx(20 / 22)
    assert (lines[1]["dice"], lines[1]["hausdorff_mm"]) == ("0.0", "")
    assert lines[2]["dice"] == ""


def test_a_case_named_like_a_formula_is_text_in_csv():
    [line] = csv.DictReader(io.StringIO(rows_as_csv([row("=1+1", status="missing")])))
    assert line["case"] == "'=1+1"
