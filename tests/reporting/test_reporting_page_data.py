import json

import pytest

from sslmedsam2.reporting.page_data import PageEntry, PageScore, page_data, worst_first
from sslmedsam2.reporting.run_report import (
    DicomRecord,
    LeftOutRecord,
    ModelRecord,
    SeriesResult,
    SeriesStatus,
    start_report,
)


def entry(
    case, *, status="ok", confidence=0.95, warnings=(), dice=None, problem=None, estimate=None
):
    result = SeriesResult(
        case=case,
        vendor="A",
        sequence="GED4",
        input_path=f"{case}/GED4.nii.gz",
        output_path=None,
        status=SeriesStatus(status),
        seconds={"read": 1.25, "network": 2.5},
        mean_foreground_confidence=confidence,
        estimated_dice=estimate,
        estimated_dice_interval=None if estimate is None else (estimate - 0.1, estimate),
        warnings=warnings,
    )
    score = None if dice is None else PageScore(dice, 12.5)
    return PageEntry("0001", result, problem=problem, score=score)


def order(*entries):
    return [item.result.case for item in worst_first(entries)]


def test_statuses_are_ordered_from_failed_to_ok():
    shuffled = ["ok", "fallback", "failed", "empty", "skipped_resume"]
    entries = [entry(status, status=status) for status in shuffled]
    expected = ["failed", "empty", "fallback", "ok", "skipped_resume"]
    assert order(*entries) == expected


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (entry("z", confidence=0.7), entry("a", confidence=0.9)),
        (entry("z", warnings=("touches_border: it does",)), entry("a")),
        (entry("z", estimate=0.8, confidence=0.99), entry("a", estimate=0.9, confidence=0.8)),
        (entry("z", estimate=0.8), entry("a", estimate=0.9, warnings=("touches_border: x",))),
        (entry("z", dice=0.6, estimate=0.95), entry("a", dice=0.7, estimate=0.5)),
        (entry("z", dice=0.6, confidence=0.99), entry("a", dice=0.9, confidence=0.7)),
        (entry("z", dice=0.6), entry("a", confidence=0.7)),
        (entry("z", problem="the mask is gone"), entry("a", status="empty")),
        (entry("a"), entry("z")),
    ],
)
def test_the_more_doubtful_series_comes_first(worse, better):
    assert order(better, worse) == [worse.result.case, better.result.case]


def test_a_note_after_which_there_is_nothing_to_check_does_not_weigh():
    noted = entry("z", warnings=("hounsfield_window: clipped", "padding: set to 0"))
    assert order(noted, entry("a")) == ["a", "z"]
    assert order(noted, entry("a", confidence=0.96)) == ["z", "a"]


def test_flags_are_the_names_of_the_warnings_each_once():
    warnings = ("tiny_shear: a", "tiny_shear: b", "low_confidence: c", "Something: else")
    assert entry("a", warnings=warnings).flags == ("tiny_shear", "low_confidence", "warning")


def test_a_mask_that_cannot_be_read_is_a_flag():
    assert entry("a", problem="gone").flags == ("not_shown",)


def test_page_data_is_json_and_names_what_made_the_run():
    report = start_report(
        models=(ModelRecord("liver_mr", {"plans.json": "ab" * 32, "f/final.pth": "cd" * 32}),),
        device="cuda",
        backend="torch bf16",
        options={"mode": "fast", "sequences": None},
    )
    data = json.loads(json.dumps(page_data(report, [entry("a", dice=0.5)], notes=["a note"])))
    facts = dict(data["run"])
    assert facts["Model"] == "liver_mr (sha256 cdcdcdcdcdcd)"
    assert facts["Device"] == "cuda, torch bf16"
    assert facts["Options"] == "mode fast"
    assert "not ended" in facts["Ended"]
    assert data["notes"] == ["a note"]
    (row,) = data["series"]
    assert (row["seconds"], row["dice"], row["hausdorff_mm"]) == (3.75, 0.5, 12.5)
    assert data["scored"]


def test_what_was_not_segmented_is_listed_by_case_with_its_reason():
    report = start_report(
        models=(), device="cpu", backend="torch", options={},
        dicom=(
            DicomRecord("study-1", "1-a", None, "left_out", "a localizer", 3),
            DicomRecord("study-1", "2-b", "T2", "segment", "the description says t2", 30),
        ),
        left_out=(LeftOutRecord("0001-A", "T1", "0001-A/T1.nii.gz", "no model serves it"),),
    )  # fmt: skip
    data = json.loads(json.dumps(page_data(report, [], notes=[])))
    rows = [(row["case"], row["series"], row["images"], row["reason"]) for row in data["left_out"]]
    assert rows == [
        ("0001-A", "0001-A/T1.nii.gz", None, "no model serves it"),
        ("study-1", "1-a", 3, "a localizer"),
    ]


def test_statuses_that_did_not_occur_are_not_counted():
    report = start_report(models=(), device="cpu", backend="torch", options={})
    report = report.with_series(entry("a").result)
    assert page_data(report, [entry("a")], notes=[])["counts"] == {"ok": 1}
