import json
from pathlib import Path

import numpy as np
import pytest

from sslmedsam2.errors import InputError, OutputError
from sslmedsam2.imaging.volume import Geometry, Source, Volume
from sslmedsam2.reporting import run_report
from sslmedsam2.reporting.run_report import (
    NOTES,
    DicomRecord,
    InputGeometry,
    LeftOutRecord,
    ModelRecord,
    SeriesResult,
    SeriesStatus,
    installed_versions,
    load_report,
    start_report,
    write_report,
)


@pytest.fixture
def report():
    return start_report(
        models=(ModelRecord("liver_mr", {"plans.json": "ab" * 32}),),
        device="cpu",
        backend="openvino",
        options={"mode": "exact", "sequences": ["GED4", "T1"], "seed": None},
    )


def series(case="0001-A", sequence="GED4", status=SeriesStatus.OK, **more):
    path = f"Vendor-A/{case}/{sequence}.nii.gz"
    return SeriesResult(case, "A", sequence, path, f"{case}/{sequence}_pred", status, **more)


def full_series(tmp_path):
    geometry = Geometry((4, 5, 6), (7.5, 1.5, 1.5), (1.0, 2.0, 3.0), np.diag([1.0, -1.0, 1.0]))
    source = Source(tmp_path / "a.nii.gz", (6, 5, 4, 1), np.dtype(np.int16), None)
    volume = Volume(np.zeros((4, 5, 6), np.float32), geometry, source)
    return series(
        seconds={"read": 0.5, "network": 2.25},
        peak_memory_mb=812.5,
        liver_volume_ml=1432.0,
        components=1,
        touches_border=False,
        mean_foreground_confidence=0.97,
        warnings=("2 NaN voxels set to 0",),
        geometry=InputGeometry.of(volume),
    )


def test_report_survives_the_round_trip(report, tmp_path):
    path = tmp_path / "run_report.json"
    whole = report.with_series(full_series(tmp_path)).ended(exit_code=0)
    write_report(whole, path)
    assert load_report(path) == whole


def test_what_was_left_out_survives_the_round_trip_and_is_counted(tmp_path):
    whole = start_report(
        models=(), device="cpu", backend="openvino", options={},
        dicom=(
            DicomRecord("study-1", "1-a", None, "left_out", "a localizer", 3),
            DicomRecord("study-1", "2-b", "T2", "segment", "the description says t2", 30),
            DicomRecord("study-1", "3-c", "T1", "unusable", "1 slice is missing", 29),
        ),
        left_out=(LeftOutRecord("0001-A", "T1", "0001-A/T1.nii.gz", "no model serves it"),),
    )  # fmt: skip
    write_report(whole, tmp_path / "run_report.json")
    assert load_report(tmp_path / "run_report.json") == whole
    assert whole.n_left_out == 2


def test_a_report_of_before_there_was_such_a_list_can_be_read(report, tmp_path):
    path = tmp_path / "run_report.json"
    write_report(report, path)
    document = json.loads(path.read_text())
    del document["left_out"]
    path.write_text(json.dumps(document))
    assert load_report(path) == report


def test_geometry_says_that_a_scan_is_left_handed(tmp_path):
    geometry = full_series(tmp_path).geometry
    assert geometry.left_handed
    assert geometry.native_shape == (6, 5, 4, 1)
    assert geometry.native_dtype == "int16"


def test_series_are_written_sorted_by_case_and_sequence(report, tmp_path):
    for case, sequence in (("0002-B1", "T1"), ("0001-A", "T2"), ("0001-A", "GED4")):
        report = report.with_series(series(case, sequence))
    write_report(report, tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text())["series"]
    assert [(entry["case"], entry["sequence"]) for entry in written] == [
        ("0001-A", "GED4"),
        ("0001-A", "T2"),
        ("0002-B1", "T1"),
    ]


def test_counts_are_by_status(report, tmp_path):
    report = report.with_series(series()).with_series(series("0002-A", status=SeriesStatus.FAILED))
    write_report(report, tmp_path / "r.json")
    counts = json.loads((tmp_path / "r.json").read_text())["counts"]
    assert counts["ok"] == counts["failed"] == 1
    assert counts["empty"] == counts["fallback"] == counts["skipped_resume"] == 0


def test_a_second_result_of_a_series_replaces_the_first(report):
    report = report.with_series(series(status=SeriesStatus.FAILED)).with_series(series())
    assert [result.status for result in report.series] == [SeriesStatus.OK]


def test_report_of_a_running_run_has_no_end(report, tmp_path):
    write_report(report, tmp_path / "r.json")
    loaded = load_report(tmp_path / "r.json")
    assert loaded.finished is None
    assert loaded.exit_code is None
    assert not loaded.interrupted


def test_interrupted_run_says_so(report):
    ended = report.ended(exit_code=130, interrupted=True)
    assert ended.interrupted
    assert ended.exit_code == 130
    assert ended.finished >= ended.started


def test_numpy_numbers_and_nan_become_plain_json(report, tmp_path):
    result = series(
        liver_volume_ml=np.float32(12.5),
        components=np.int64(2),
        touches_border=np.bool_(True),
        mean_foreground_confidence=float("nan"),
    )
    write_report(report.with_series(result), tmp_path / "r.json")
    loaded = load_report(tmp_path / "r.json").series[0]
    assert (loaded.liver_volume_ml, loaded.components, loaded.touches_border) == (12.5, 2, True)
    assert loaded.mean_foreground_confidence is None


def test_versions_name_installed_packages_and_none_for_missing_ones(monkeypatch):
    versions = installed_versions()
    assert set(versions) == {"python", "torch", "numpy", "nnunetv2", "openvino"}
    assert versions["numpy"] == np.__version__
    monkeypatch.setattr(run_report, "_REPORTED_PACKAGES", ("no-such-package",))
    assert installed_versions()["no-such-package"] is None


@pytest.mark.parametrize(
    "content",
    [None, "", "{}", "[]", '{"schema_version": 99}', '{"schema_version": 1, "series": 3}'],
    ids=["missing", "empty", "no-schema", "list", "other-schema", "wrong-fields"],
)
def test_unusable_report_raises_one_named_error(content, tmp_path):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"r\.json") as caught:
        load_report(path)
    assert caught.value.kind == ("unreadable_record" if content is None else "bad_record")
    assert "\n" not in str(caught.value)


def test_failed_write_leaves_the_old_report(report, tmp_path):
    path = tmp_path / "r.json"
    write_report(report, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_report(report.with_series(series(error=object())), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_unwritable_place_raises_output_error(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_report(report, tmp_path / "file" / "r.json")


def test_the_guide_explains_every_note():
    guide = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    assert [name for name in sorted(NOTES) if f"`{name}`" not in guide] == []
