"""From folders of labelled and unlabelled volumes to pseudo labels, with the real strategies."""

import csv
import json
import shutil
import signal

import nibabel as nib
import numpy as np
import pytest
from pseudo_label_samples import Workplace, without_times

from sslmedsam2.contract.pseudo_label_outputs import Shard
from sslmedsam2.errors import ExitCode
from sslmedsam2.fewshot.strategy import FewShotSettings
from sslmedsam2.imaging.orientation import to_canonical
from sslmedsam2.imaging.reading import read_grid, read_mask, read_volume
from sslmedsam2.pseudo_label.pipeline import pseudo_label
from sslmedsam2.pseudo_label.query import LabelWork

pytestmark = pytest.mark.usefixtures("one_thread")


TWINS = ("0001-A", "0003-B1")
"""Cases whose T2 are the same image, that of the second stored left-handed."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_sam2):
    """Two labelled volumes, queries of many kinds, and the summary of a run on them."""
    place = Workplace(tmp_path_factory.mktemp("finished"), small_sam2)
    place.add_support("1001-A-S1", seed=1)
    place.add_support("1002-A-S2", seed=2)
    place.add_query("0001-A/T2.nii.gz")
    place.add_query("0001-A/DWI_800.nii.gz", seed=11, n_slices=3)
    place.add_query("Vendor-B1/0003-B1/T2.nii.gz", left_handed=True)
    # A copy of a support.
    place.add_query("1001-A-S1/GED4.nii.gz", seed=1)
    place.add_query("scan.nii.gz", seed=12, n_slices=4)
    return place, place.run()


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the folders of the finished run, to spoil."""
    return finished[0].copy_to(tmp_path / "copy")


def rows_of(summary):
    with summary.table_path.open(newline="") as file:
        return list(csv.DictReader(file))


def snapshot(folder):
    """Describe all pseudo labels of a folder, without the seconds that they took."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name.endswith("_pseudo.json") or path.name == "calibration.json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix in (".gz", ".png"):
            found[name] = path.read_bytes()
    return found


def test_each_query_gets_mask_maps_record_and_picture_on_its_own_grid(finished):
    workplace, summary = finished
    image = workplace.query / "Vendor-B1/0003-B1/T2.nii.gz"

    assert summary.exit_code == ExitCode.OK
    paths = workplace.paths("0003-B1")
    grid = read_grid(image)
    affine = nib.load(image).affine
    for path in (paths.mask, paths.probability, paths.uncertainty):
        assert nib.load(path).shape == grid.source.native_shape
        np.testing.assert_array_equal(nib.load(path).affine, affine)
    probability = np.asarray(nib.load(paths.probability).dataobj)
    assert 0 <= probability.min() < probability.max() <= 1
    mask = read_mask(paths.mask).array_zyx
    assert (read_volume(paths.probability).array_zyx[mask > 0] > 0.5).all()
    assert paths.preview.stat().st_size > 0
    record = workplace.record("0003-B1")
    assert record["vendor"] == "B1"
    assert record["image"] == "Vendor-B1/0003-B1/T2.nii.gz"
    assert record["verdict"] in ("accept", "doubtful", "reject")
    assert record["interval"][0] <= record["estimated_dice"] <= record["interval"][1]
    assert record["encoder_calls"] > 0
    assert {score["name"] for score in record["supports"]} == {"1001-A-S1/GED4", "1002-A-S2/GED4"}
    assert set(record["provenance"]["supports"]) == {"1001-A-S1/GED4", "1002-A-S2/GED4"}
    assert len(record["provenance"]["sam2_sha256"]) == 64


def test_a_left_handed_query_gets_the_result_of_its_right_handed_twin(finished):
    one, other = (
        to_canonical(read_volume(finished[0].paths(case).probability)).array_zyx for case in TWINS
    )
    assert np.ptp(one) > 0
    np.testing.assert_array_equal(one, other)


def test_a_query_of_three_slices_is_labelled(finished):
    workplace, _ = finished
    image = workplace.query / "0001-A/DWI_800.nii.gz"

    assert nib.load(image).shape[2] == 3
    assert nib.load(workplace.paths("0001-A", "DWI_800").mask).shape == nib.load(image).shape


def test_table_calibration_and_run_are_written_beside_the_cases(finished):
    workplace, summary = finished

    rows = rows_of(summary)
    assert [(row["case"], row["sequence"]) for row in rows] == [
        ("0001-A", "DWI_800"),
        ("0001-A", "T2"),
        ("0003-B1", "T2"),
        ("1001-A-S1", "GED4"),
        ("scan", ""),
    ]
    assert all(float(row["seconds"]) > 0 and row["verdict"] for row in rows)
    calibration = json.loads((workplace.output / "calibration.json").read_text())
    assert [case["name"] for case in calibration["cases"]] == ["1001-A-S1/GED4", "1002-A-S2/GED4"]
    assert calibration["calibration"]["n_cases"] == 2
    run = json.loads((workplace.output / "run.json").read_text())
    assert run["exit_code"] == 0
    assert run["queries"] == 5
    assert run["options"]["settings"]["strategy"] == "retrieval"


def test_a_copy_of_a_support_is_labelled_without_it(finished):
    record = finished[0].record("1001-A-S1", "GED4")

    assert [score["name"] for score in record["supports"]] == ["1002-A-S2/GED4"]
    assert any(warning.startswith("labelled: ") for warning in record["warnings"])


def test_what_a_dead_worker_has_left_on_the_disk_is_removed(copy, monkeypatch):
    left = []
    monkeypatch.setattr(LabelWork, "close", lambda work: left.append(work))

    # No other run may lose its own.
    other = copy.output / ".scratch-of-another-run"
    other.mkdir()
    copy.paths("0001-A", "DWI_800").record.unlink()
    pseudo_label(copy.options(sequences=("DWI_800",), resume=True))

    assert len(left) == 1
    assert list(copy.output.glob(".*")) == [other]


def test_sequences_choose_the_queries(copy):
    (copy.query / "scan.nii.gz").unlink()
    copy.add_query("0001-A/GED1.nii.gz", n_slices=3)

    summary = copy.run(sequences=("GED1",), resume=True)

    assert [record.sequence for record in summary.records] == ["GED1"]


def test_shards_in_one_folder_give_what_one_run_gives(finished, copy):
    whole, alone = finished
    shutil.rmtree(copy.output)

    second = copy.run(shard=Shard(2, 2))
    assert [record.case for record in second.records] == ["0001-A", "1001-A-S1"]
    masks = {path.parent.name for path in copy.output.rglob("*_pred.nii.gz")}
    assert masks == {"0001-A", "1001-A-S1"}
    first = copy.run(shard=Shard(1, 2))

    assert [record.case for record in first.records] == ["0001-A", "0003-B1", "scan"]
    assert snapshot(copy.output) == snapshot(whole.output)
    assert [row["case"] for row in rows_of(first)] == [row["case"] for row in rows_of(alone)]
    assert (copy.output / "run_1_of_2.json").is_file()
    assert (copy.output / "run_2_of_2.json").is_file()


def test_resume_keeps_what_still_stands_and_does_the_rest_again(copy):
    before = snapshot(copy.output)
    kept = copy.paths("0001-A").mask
    written = kept.stat().st_mtime_ns
    copy.paths("0001-A", "DWI_800").mask.write_bytes(b"torn")
    copy.paths("scan", None).record.write_text("{}")
    copy.add_query("Vendor-B1/0003-B1/T2.nii.gz", seed=99)

    summary = copy.run(resume=True)

    assert summary.kept == 2
    assert summary.exit_code == ExitCode.OK
    assert kept.stat().st_mtime_ns == written
    after = snapshot(copy.output)
    redone = "0003-B1/"
    assert {name for name in before if before[name] != after[name]} >= {
        f"{redone}T2_pseudo.json",
        f"{redone}probability_T2.nii.gz",
    }
    assert all(before[name] == after[name] for name in before if not name.startswith(redone))


def test_resume_does_not_mix_results_of_other_settings_or_supports(copy):
    (copy.query / "scan.nii.gz").unlink()
    only = {"resume": True, "sequences": ("DWI_800",)}

    assert copy.run(**only).kept == 1
    assert copy.run(**only, settings=FewShotSettings(seed=1)).kept == 0
    copy.add_support("1002-A-S2", seed=3)
    assert copy.run(**only).kept == 0


@pytest.fixture
def one_support(tmp_path, small_sam2):
    """One labelled volume, and a query of few slices."""
    place = Workplace(tmp_path, small_sam2)
    place.add_support("1001-A-S1", seed=1)
    place.add_query("0001-A/T2.nii.gz", n_slices=4)
    return place


def test_the_published_procedure_goes_the_same_way(one_support):
    summary = one_support.run(settings=FewShotSettings(strategy="random-insertion"))

    assert summary.exit_code == ExitCode.OK
    provenance = one_support.record("0001-A")["provenance"]
    assert provenance["settings"]["strategy"] == "random-insertion"


def test_one_folder_may_hold_labelled_and_unlabelled_volumes(one_support):
    one_support.query = one_support.support
    one_support.add_query("1001-A-S1/T2.nii.gz", n_slices=3)
    one_support.add_query("0001-A/GED4.nii.gz", n_slices=3)

    summary = one_support.run()

    assert [(record.case, record.sequence) for record in summary.records] == [
        ("0001-A", "GED4"),
        ("1001-A-S1", "T2"),
    ]


def test_a_single_support_labels_but_nothing_is_accepted(one_support):
    summary = one_support.run()

    assert summary.exit_code == ExitCode.OK
    assert one_support.record("0001-A")["calibration"]["n_cases"] == 0
    assert one_support.record("0001-A")["verdict"] != "accept"


def test_a_signal_stops_between_queries_and_resume_completes(copy):
    shutil.rmtree(copy.query)
    for number in range(6):
        copy.add_query(f"100{number}-A/T2.nii.gz", seed=number, n_slices=3)
    for path in copy.output.iterdir():
        if path.name != "calibration.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def interrupt(_record, done, _total):
        if done == 1:
            signal.raise_signal(signal.SIGTERM)

    stopped = pseudo_label(copy.options(resume=True), on_record=interrupt)

    assert stopped.exit_code == ExitCode.INTERRUPTED
    assert 1 <= len(stopped.records) < 6
    assert len(rows_of(stopped)) == len(stopped.records)
    assert not list(copy.output.glob(".*"))
    resumed = copy.run(resume=True)
    assert resumed.exit_code == ExitCode.OK
    assert resumed.kept == len(stopped.records)
    assert len(rows_of(resumed)) == 6
