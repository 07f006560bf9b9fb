import base64
import json
import re
import shutil

import numpy as np
import pytest
from qc_runs import HOSTILE_CASE, QcRun
from tiny_scans import abdomen, write_scan

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode, NoInputError, UsageError
from sslmedsam2.predict.page import ReportOptions, report
from sslmedsam2.reporting.run_report import SeriesStatus, load_report
from sslmedsam2.submission.evaluate import evaluate


@pytest.fixture
def qc(tmp_path):
    return QcRun(tmp_path)


def made(qc, **options):
    return report(ReportOptions(qc.run, **{"input_path": qc.input, **options}))


def page_series(qc):
    text = (qc.page / "index.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', text)[1])
    return {row["case"]: row for row in data["series"]}, data


def test_every_series_gets_its_volumes(qc):
    qc.add("0001-A")
    qc.add("0002-A", "T1")
    page = made(qc)
    assert page.index_path == qc.page / "index.html"
    assert page.exit_code is ExitCode.OK
    assert [entry.shown for entry in page.entries] == ["volumes", "volumes"]
    files = sorted(path.name for path in (qc.page / "cases").iterdir())
    assert files == ["0001.js", "0001.png", "0002.js", "0002.png"]
    assert not list(qc.run.rglob(".*"))


def test_an_input_without_any_scan_of_the_run_replaces_no_page(qc, tmp_path):
    qc.add("0001-A")
    before = made(qc).index_path.read_bytes()

    with pytest.raises(NoInputError, match="it holds no scan of this run"):
        made(qc, input_path=tmp_path)
    assert (qc.page / "index.html").read_bytes() == before


def test_table_and_record_lie_beside_the_page_for_download(qc):
    qc.add("0001-A")
    made(qc)
    assert "0001-A" in (qc.page / "liver_volumes.csv").read_text(encoding="utf-8")
    assert load_report(qc.page / "run_report.json") == load_report(qc.run / "run_report.json")
    text = (qc.page / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'href="([^"]*)" download', text) == ["liver_volumes.csv", "run_report.json"]


def test_mean_and_median_volume_leave_out_guesses_and_masks_to_check(qc):
    qc.add("0001-A", liver_volume_ml=1000.0)
    qc.add("0002-A", liver_volume_ml=1200.0)
    qc.add("0003-A", liver_volume_ml=2000.0)
    qc.add("0004-A", liver_volume_ml=9000.0, status=SeriesStatus.FALLBACK)
    qc.add("0005-A", liver_volume_ml=8.0, status=SeriesStatus.CHECK)
    made(qc)
    assert page_series(qc)[1]["volumes"] == (
        "Liver volume: mean 1400 ml, median 1200 ml of 3 masks, without 2 to check"
    )


def test_the_page_may_go_elsewhere(qc, tmp_path):
    qc.add("0001-A")
    made(qc, output_dir=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "cases" / "0001.js").is_file()
    assert not qc.page.exists()


def test_a_single_input_file_stands_for_its_folder(qc):
    qc.add("0001-A")
    shutil.move(qc.input / "Vendor-A", qc.input.parent / "Vendor-A")
    single = write_scan(qc.input / "any.nii.gz")
    shutil.move(qc.input.parent / "Vendor-A", qc.input / "Vendor-A")
    assert made(qc, input_path=single).entries[0].shown == "volumes"


def test_without_the_input_the_previews_are_shown(qc):
    qc.add("0001-A", preview=True)
    qc.add("0002-A")
    page = made(qc, input_path=None)
    assert page.exit_code is ExitCode.OK
    assert {entry.result.case: entry.shown for entry in page.entries} == {
        "0001-A": "preview",
        "0002-A": "nothing",
    }
    assert "data:image/png;base64," in (qc.page / "cases" / "0001.js").read_text()


def test_figures_against_references_are_those_of_evaluate(qc):
    qc.add("0001-A", shift=3)
    qc.add("0002-A")
    qc.add_reference("0001-A")
    page = made(qc, references=qc.references)
    (row,) = evaluate(predictions=qc.run, references=qc.references).rows
    first, second = page.entries
    assert first.result.case == "0001-A"
    assert (first.score.dice, first.score.hausdorff_mm) == (
        row.metrics.dice,
        row.metrics.hausdorff_mm,
    )
    assert 0.5 < first.score.dice < 1
    assert second.score is None


def test_a_reference_is_found_for_a_case_in_another_spelling(qc):
    qc.add("0001-a")
    qc.add_reference("0001-A")
    assert made(qc, references=qc.references).entries[0].score.dice == 1


BIDS = {"layout": "bids"}
SOCKET = {"layout": "grand-challenge"}
AS_T2 = {"sequence": "T2"}


@pytest.mark.parametrize(
    ("scan", "case", "options"),
    [
        ("p1.nii.gz", "p1", AS_T2),
        ("p1.nii.gz", "p1", {**AS_T2, "mask_format": "nrrd"}),
        ("p1.nii.gz", "p1", {**AS_T2, **SOCKET}),
        ("p1/T2.nii.gz", "p1", SOCKET),
        ("p1.nii.gz", "p1", {**AS_T2, **BIDS}),
        ("p1/T2.nii.gz", "p1", BIDS),
        ("sub-01/anat/sub-01_T2w.nii.gz", "sub-01", BIDS),
        ("sub-01/anat/sub-01_T2w.nii.gz", "sub-01", {**AS_T2, **BIDS}),
        ("sub-01_angio.nii.gz", "sub-01_angio", {**AS_T2, **BIDS}),
    ],
    ids=str,
)
def test_score_and_preview_are_found_whatever_the_names_of_masks(workplace, scan, case, options):
    workplace.add(scan)
    references = workplace.root / "references"
    write_scan(references / case / "mask_T2.nii.gz", abdomen()[1], dtype=np.uint8)
    workplace.run(previews=True, **options)

    (entry,) = report(ReportOptions(workplace.output, references=references)).entries

    assert (entry.result.case, entry.result.sequence) == (case, "T2")
    assert entry.score.dice > 0.8
    assert entry.shown == "preview"
    (row,) = evaluate(predictions=workplace.output, references=references).rows
    assert (row.case, row.sequence, row.metrics.dice) == (case, "T2", entry.score.dice)


def test_scans_with_and_without_a_sequence_in_their_names_keep_their_pictures(workplace):
    workplace.add("p1/T2.nii.gz")
    workplace.add("p1.nii.gz", array_zyx=np.flip(abdomen()[0], axis=0))
    workplace.run(previews=True, **AS_T2)

    page = report(ReportOptions(workplace.output))

    previews = {"p1/T2.nii.gz": "p1_T2.png", "p1.nii.gz": "p1_liver.png"}
    for entry in page.entries:
        shown = page.index_path.parent / "cases" / f"{entry.series_id}.js"
        png = workplace.output / "previews" / previews[entry.result.input_path]
        assert base64.b64encode(png.read_bytes()).decode() in shown.read_text()


def test_references_of_other_cases_are_named(qc):
    qc.add("0001-A")
    qc.add_reference("0001-A")
    qc.add_reference("0009-A", "T2")
    made(qc, references=qc.references)
    assert page_series(qc)[1]["notes"] == [
        "1 references belong to no series of this run: 0009-A T2"
    ]


def test_a_reference_on_another_grid_is_not_drawn_and_says_so(qc):
    qc.add("0001-A")
    write_scan(qc.references / "0001-A" / "mask_GED4.nii.gz", abdomen()[1][:-1], dtype=np.uint8)
    (entry,) = made(qc, references=qc.references).entries
    assert entry.score.dice is None
    assert "another grid" in entry.score.note
    assert entry.shown == "volumes"


def test_the_guess_for_an_unreadable_image_is_shown_alone(qc):
    guess = qc.add("0001-A", status=SeriesStatus.FALLBACK, error="the file ends early")
    (qc.input / guess.input_path).write_bytes(b"\x1f\x8b")
    page = made(qc)
    (entry,) = page.entries
    assert page.exit_code is ExitCode.OK
    assert entry.shown == "volumes"
    assert entry.view_note.startswith("The guess alone is shown: ")
    text = (qc.page / "index.html").read_text(encoding="utf-8")
    assert 'title="a guess, not a measurement">(1432)<' in text
    assert '<span class="interval">a guess</span></td>' in text


def test_a_missing_mask_is_shown_with_its_reason_and_the_others_go_on(qc):
    qc.add("0001-A")
    lost = qc.add("0002-A", preview=True)
    (qc.run / lost.output_path).unlink()
    page = made(qc)
    assert page.exit_code is ExitCode.SOME_CASES_FAILED
    first, second = page.entries
    assert (first.result.case, first.shown) == ("0002-A", "preview")
    assert "the file does not exist" in first.problem
    assert second.shown == "volumes"


def test_the_page_tells_nothing_about_the_machine(qc, tmp_path):
    lost = qc.add("0001-A")
    (qc.run / lost.output_path).unlink()
    moved = qc.add("0002-A")
    write_scan(qc.input / moved.input_path, abdomen()[0][:-2])
    write_scan(qc.references / "0003-A" / "mask_GED4.nii.gz", abdomen()[1] * 7.5, dtype=np.float32)
    qc.add("0003-A")
    qc.add_reference("0002-A")
    qc.add_reference("0002-A").with_name("GED4_mask.nii.gz").write_bytes(b"")
    page = made(qc, references=qc.references)
    assert sum(entry.problem is not None for entry in page.entries) == 2
    assert str(tmp_path) not in page.index_path.read_text(encoding="utf-8")


def test_an_image_on_another_grid_than_its_mask_is_refused(qc):
    result = qc.add("0001-A")
    write_scan(qc.input / result.input_path, abdomen()[0][:-2])
    (entry,) = made(qc).entries
    assert "lies on another grid" in entry.problem


def test_a_failed_series_keeps_the_error_of_the_run(qc):
    qc.add("0001-A")
    qc.add_failed("0002-A", error="0002-A: it is broken. Correct it.")
    page = made(qc)
    assert page.exit_code is ExitCode.OK
    assert page.entries[0].result.case == "0002-A"
    assert page.entries[0].problem is None
    assert page_series(qc)[0]["0002-A"]["error"] == "0002-A: it is broken. Correct it."


def test_a_series_without_a_mask_shows_its_image(qc):
    qc.add_failed("0001-A", error="the network found no liver")
    write_scan(qc.input / "Vendor-A" / "0001-A" / "GED4.nii.gz")
    assert made(qc).entries[0].shown == "volumes"


def test_hostile_names_reach_the_page_as_they_are(qc):
    qc.add(HOSTILE_CASE)
    made(qc)
    assert HOSTILE_CASE in page_series(qc)[0]
    assert HOSTILE_CASE not in (qc.page / "index.html").read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_page(qc):
    qc.add("0001-A")
    qc.add_reference("0001-A")

    def files():
        made(qc, references=qc.references)
        paths = (path for path in qc.page.rglob("*") if path.is_file())
        return {path.relative_to(qc.page): path.read_bytes() for path in paths}

    assert files() == files()


def test_a_run_of_which_nothing_was_left_out_says_nothing_of_it(qc):
    qc.add("0001-A")
    made(qc)
    assert page_series(qc)[1]["left_out"] == []


def test_a_run_without_series_gives_an_empty_page(qc):
    assert made(qc, input_path=None).entries == ()
    assert (qc.page / "index.html").is_file()


def _other_schema(qc):
    path = qc.run / "run_report.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))


def _edited(**changes):
    """Change fields of the one series of a run's report."""

    def damage(qc):
        qc.add("0001-A")
        path = qc.run / "run_report.json"
        document = json.loads(path.read_text())
        document["series"][0] |= changes
        path.write_text(json.dumps(document))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_edited(case=None), "series[0].case: Expected 'str'"),
        (_edited(seconds={"read": "long"}), "series[0].seconds[...]: Expected 'float'"),
        (_edited(output_path=3), "series[0].output_path: Expected 'str | null'"),
        (_edited(warnings=[3]), "series[0].warnings[0]: Expected 'str'"),
        (
            lambda qc: (qc.run / "run_report.json").write_bytes(b"\xff\xfe"),
            "it is not usable",
        ),
        (lambda qc: (qc.run / "run_report.json").write_text("[" * 99_999), "it is not usable"),
        (lambda qc: (qc.run / "run_report.json").unlink(), "it holds no run_report.json"),
        (lambda qc: shutil.rmtree(qc.run), "there is no such folder"),
        (_other_schema, "schema version is 99, not 1"),
        (lambda qc: (qc.run / "run_report.json").write_text("{"), "it is not usable"),
        (lambda qc: shutil.rmtree(qc.input), "there is no such input folder"),
    ],
)
def test_what_makes_a_page_impossible_is_one_line(qc, capsys, damage, words):
    qc.input.mkdir()
    damage(qc)
    code = main(["report", "--run", str(qc.run), "--input", str(qc.input)])
    said = capsys.readouterr().err
    assert code == ExitCode.NO_VALID_INPUT
    assert said.count("\n") == 1
    assert words in said
    assert not qc.page.exists()


def test_missing_references_are_an_error(qc):
    qc.add("0001-A")
    with pytest.raises(NoInputError, match="there is no such folder"):
        made(qc, references=qc.references)


def test_the_command_says_where_the_page_is(qc, capsys):
    qc.add("0001-A")
    code = main(["report", "--run", str(qc.run), "--input", str(qc.input)])
    assert code == ExitCode.OK
    assert capsys.readouterr().out == (
        f"open {qc.page / 'index.html'} in a browser: 1 scans, 1 in 3-D\n"
    )


def test_a_folder_with_other_files_is_refused_and_left_alone(qc, tmp_path):
    qc.add("0001-A")
    theirs = tmp_path / "site" / "cases" / "0002.png"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"a photograph")

    with pytest.raises(UsageError, match="it holds files that are no results page"):
        made(qc, output_dir=tmp_path / "site")
    assert [path for path in (tmp_path / "site").rglob("*") if path.is_file()] == [theirs]

    made(qc, output_dir=tmp_path / "page")
    assert made(qc, output_dir=tmp_path / "page").exit_code is ExitCode.OK
