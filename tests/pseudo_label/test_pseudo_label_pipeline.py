"""From folders of labelled and unlabelled volumes to pseudo labels, with the real strategies."""

import csv
import json
import signal

import nibabel as nib
import numpy as np
import pytest
from pseudo_label_samples import Workplace, without_times

from sslmedsam2.contract.pseudo_labels import Shard
from sslmedsam2.errors import ExitCode
from sslmedsam2.fewshot.strategy import FewShotSettings
from sslmedsam2.imaging.orientation import to_canonical
from sslmedsam2.imaging.reading import read_grid, read_mask, read_volume
from sslmedsam2.pseudo_label.pipeline import pseudo_label

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workplace(tmp_path, small_sam2):
    """Two labelled volumes, and nothing to label yet."""
    place = Workplace(tmp_path, small_sam2)
    place.add_support("1001-A-S1", seed=1)
    place.add_support("1002-A-S2", seed=2)
    return place


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


def test_each_query_gets_mask_maps_record_and_picture_on_its_own_grid(workplace):
    image = workplace.add_query("Vendor-B1/0003-B1/T2.nii.gz", left_handed=True)

    summary = workplace.run()

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


def test_a_left_handed_query_gets_the_result_of_its_right_handed_twin(workplace):
    workplace.add_query("0001-A/T2.nii.gz", seed=5)
    workplace.add_query("0002-A/T2.nii.gz", seed=5, left_handed=True)

    workplace.run()

    one, other = (
        to_canonical(read_volume(workplace.paths(case).probability)).array_zyx
        for case in ("0001-A", "0002-A")
    )
    assert np.ptp(one) > 0
    np.testing.assert_array_equal(one, other)


def test_table_calibration_and_run_are_written_beside_the_cases(workplace):
    workplace.add_query("0001-A/T2.nii.gz")
    workplace.add_query("0001-A/DWI_800.nii.gz")
    workplace.add_query("0001-A/GED1.nii.gz")
    workplace.add_query("scan.nii.gz")

    summary = workplace.run()

    rows = rows_of(summary)
    assert [(row["case"], row["sequence"]) for row in rows] == [
        ("0001-A", "DWI_800"),
        ("0001-A", "T2"),
        ("scan", ""),
    ]
    assert all(float(row["seconds"]) > 0 and row["verdict"] for row in rows)
    calibration = json.loads((workplace.output / "calibration.json").read_text())
    assert [case["name"] for case in calibration["cases"]] == ["1001-A-S1/GED4", "1002-A-S2/GED4"]
    assert calibration["calibration"]["n_cases"] == 2
    run = json.loads((workplace.output / "run.json").read_text())
    assert run["exit_code"] == 0
    assert run["queries"] == 3
    assert run["options"]["settings"]["strategy"] == "retrieval"


def test_sequences_choose_the_queries(workplace):
    workplace.add_query("0001-A/T2.nii.gz")
    workplace.add_query("0001-A/GED1.nii.gz")

    summary = workplace.run(sequences=("GED1",))

    assert [record.sequence for record in summary.records] == ["GED1"]


def test_shards_in_one_folder_give_what_one_run_gives(workplace, tmp_path):
    for number in range(3):
        workplace.add_query(f"000{number}-A/T2.nii.gz", seed=20 + number)
    whole = tmp_path / "whole"

    alone = workplace.run(output_dir=whole)
    second = workplace.run(shard=Shard(2, 2))
    first = workplace.run(shard=Shard(1, 2))

    assert [record.case for record in first.records] == ["0000-A", "0002-A"]
    assert [record.case for record in second.records] == ["0001-A"]
    assert snapshot(workplace.output) == snapshot(whole)
    assert [row["case"] for row in rows_of(first)] == [row["case"] for row in rows_of(alone)]
    assert (workplace.output / "run_1_of_2.json").is_file()


def test_resume_keeps_what_still_stands_and_does_the_rest_again(workplace):
    for case in ("0000-A", "0001-A", "0002-A", "0003-A"):
        workplace.add_query(f"{case}/T2.nii.gz", seed=int(case[:4]))
    workplace.run()
    before = snapshot(workplace.output)
    written = workplace.paths("0000-A").mask.stat().st_mtime_ns
    workplace.paths("0001-A").mask.write_bytes(b"torn")
    workplace.paths("0002-A").record.write_text("{}")
    workplace.add_query("0003-A/T2.nii.gz", seed=99)

    summary = workplace.run(resume=True)

    assert summary.kept == 1
    assert summary.exit_code == ExitCode.OK
    assert workplace.paths("0000-A").mask.stat().st_mtime_ns == written
    after = snapshot(workplace.output)
    assert {name for name in before if before[name] != after[name]} >= {
        "0003-A/T2_pseudo.json",
        "0003-A/probability_T2.nii.gz",
    }
    assert all(before[name] == after[name] for name in before if not name.startswith("0003-A"))


def test_resume_does_not_mix_results_of_other_settings_or_supports(workplace):
    workplace.add_query("0001-A/T2.nii.gz")
    workplace.run()

    assert workplace.run(resume=True).kept == 1
    assert workplace.run(resume=True, settings=FewShotSettings(seed=1)).kept == 0
    workplace.add_support("1002-A-S2", seed=3)
    assert workplace.run(resume=True).kept == 0


def test_the_published_procedure_goes_the_same_way(workplace):
    workplace.add_query("0001-A/T2.nii.gz", n_slices=4)

    summary = workplace.run(settings=FewShotSettings(strategy="random-insertion"))

    assert summary.exit_code == ExitCode.OK
    assert workplace.record("0001-A")["provenance"]["settings"]["strategy"] == "random-insertion"


def test_one_folder_may_hold_labelled_and_unlabelled_volumes(workplace):
    workplace.query = workplace.support
    workplace.add_query("1001-A-S1/T2.nii.gz")
    workplace.add_query("0001-A/GED4.nii.gz")

    summary = workplace.run()

    assert [(record.case, record.sequence) for record in summary.records] == [
        ("0001-A", "GED4"),
        ("1001-A-S1", "T2"),
    ]


def test_a_copy_of_a_support_is_labelled_without_it(workplace):
    workplace.add_query("1001-A-S1/GED4.nii.gz", seed=1)

    workplace.run()

    record = workplace.record("1001-A-S1", "GED4")
    assert [score["name"] for score in record["supports"]] == ["1002-A-S2/GED4"]
    assert any(warning.startswith("labelled: ") for warning in record["warnings"])


def test_a_single_support_labels_but_nothing_is_accepted(tmp_path, small_sam2):
    place = Workplace(tmp_path, small_sam2)
    place.add_support("1001-A-S1")
    place.add_query("0001-A/T2.nii.gz")

    summary = place.run()

    assert summary.exit_code == ExitCode.OK
    assert place.record("0001-A")["calibration"]["n_cases"] == 0
    assert place.record("0001-A")["verdict"] != "accept"


def test_a_signal_stops_between_queries_and_resume_completes(workplace):
    for number in range(6):
        workplace.add_query(f"000{number}-A/T2.nii.gz", seed=number, n_slices=3)

    def interrupt(_record, done, _total):
        if done == 1:
            signal.raise_signal(signal.SIGTERM)

    stopped = pseudo_label(workplace.options(), on_record=interrupt)

    assert stopped.exit_code == ExitCode.INTERRUPTED
    assert 1 <= len(stopped.records) < 6
    assert len(rows_of(stopped)) == len(stopped.records)
    assert not list(workplace.output.glob(".*"))
    resumed = workplace.run(resume=True)
    assert resumed.exit_code == ExitCode.OK
    assert resumed.kept == len(stopped.records)
    assert len(rows_of(resumed)) == 6
